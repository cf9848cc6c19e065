# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Finished pieces of work on disk, so that an evaluation that was cut short goes on from there."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """Options as data that is the same in every process; functions become their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [type(value).__qualname__, fields]
    if isinstance(value, functools.partial):
        return [plain(value.func), plain(value.args), plain(value.keywords)]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def key_of(*parts: Any) -> str:
    """A short name for what a piece of work depends on: equal parts, equal names."""
    text = json.dumps(plain(parts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def json_lines(path: Path) -> Iterator[Any]:
    """The values of a file with one JSON text a line; a line that a kill cut short is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def append_line(path: Path, value: Any) -> None:
    """Adds one JSON line, and waits until it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        # A line that was cut short by a kill must not run into this one.
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


class Journal:
    """Values by key, each on disk as soon as it is there; without a path it holds nothing.

    Attributes:
      path: of the file, or None.
    """

    def __init__(self, path: Path | None):
        self.path = path
        lines = json_lines(path) if path else ()
        self._values = {line["key"]: line["value"] for line in lines if "key" in line}

    def get(self, key: str) -> Any:
        """What is kept under a key, or None."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keeps plain data."""
        if self.path is not None:
            self._values[key] = value
            append_line(self.path, {"key": key, "value": value})

    def end(self) -> None:
        """Deletes the file: its work is in a report."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
