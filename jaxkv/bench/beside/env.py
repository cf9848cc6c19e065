# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The Python environment that kvpress runs in: its versions of torch and transformers are no ours.

An environment that is made here is made once, in the cache folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from jaxkv.core.errors import InputError
from jaxkv.core.files import home, write_json

REQUIREMENTS = ("kvpress==0.5.5", "torch==2.13.0")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # elsewhere torch comes with CUDA, 3 GB more
_MARK = "complete.json"  # written last: what was interrupted is made anew


def given_python(folder: str) -> Path:
    """The interpreter of an environment that the user made.

    Raises:
      InputError: there is none, or no kvpress in it.
    """
    python = _python(Path(folder))
    if not python.exists():
        raise InputError(f"--env {folder} is no virtual environment; it must hold {python.name}")
    find = "import importlib.metadata as m; m.version('kvpress'), m.version('torch')"
    if subprocess.run([python, "-I", "-c", find], capture_output=True).returncode:
        raise InputError(f"--env {folder} has no kvpress with torch; install {_named()} in it")
    return python


def own_python() -> Path:
    """The interpreter of our own environment, which is made if need be.

    Raises:
      InputError: it cannot be made.
    """
    folder = home() / "kvpress-env"
    mark = folder / _MARK
    if mark.is_file() and json.loads(mark.read_text()) == list(REQUIREMENTS):
        return _python(folder)
    _tell(f"making an environment with {_named()} in {folder}: 1.4 GB, some minutes")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _step([sys.executable, "-m", "venv", "--clear", str(folder)], "venv")
    install = [str(_python(folder)), "-m", "pip", "install", "--quiet", "--progress-bar", "off"]
    torch = next(name for name in REQUIREMENTS if name.startswith("torch"))
    try:
        _tell(f"installing {torch} for CPUs")
        alone = ["--no-deps", "--retries", "0", "--index-url", CPU_INDEX]
        _step([*install, *alone, torch], "pip")
    except InputError:
        _tell(f"{CPU_INDEX} cannot be used; torch comes from the package index")
    _tell("installing kvpress and what it needs")
    _step([*install, *REQUIREMENTS], "pip")
    write_json(mark, list(REQUIREMENTS))
    return _python(folder)


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _step(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise InputError(
            f"no environment for kvpress could be made ({what}: {lines[-1].strip()}); make one "
            f"with {_named()} and give --env FOLDER"
        )


def _named() -> str:
    return " and ".join(REQUIREMENTS)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
