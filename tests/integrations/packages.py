# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The packages of others that are tried here: `make integrations` prints them, or fails.

Their own requirements bring TensorFlow and what trains models; `requirements.txt` beside this file
has what their models and samplers import.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements.txt"


def pinned() -> dict[str, str]:
    """Versions by name."""
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def wrong() -> list[str]:
    """What is missing or has another version, in words."""
    found = []
    for name, version in pinned().items():
        try:
            there = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            there = "not installed"
        if there != version:
            found.append(f"{name} is {there}; these tests are for {version}")
    return found


def hollow(name: str) -> None:
    """Lets a package's modules be imported without its `__init__`, which brings its trainers."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations is not None
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package


@contextlib.contextmanager
def tensorflow_by_name() -> Iterator[None]:
    """A module in its place while kauldron is imported, which names its tensors in types."""
    there = importlib.util.find_spec("tensorflow") is not None
    if not there:
        sys.modules["tensorflow"] = module = types.ModuleType("tensorflow")
        vars(module)["Tensor"] = type("Tensor", (), {})
    yield
    if not there:
        del sys.modules["tensorflow"]  # others look whether it is there


def main() -> None:
    """Prints versions."""
    print(*(f"{name} {version}" for name, version in pinned().items()), sep=", ")
    if missing := wrong():
        sys.exit("\n".join(missing))


if __name__ == "__main__":
    main()
