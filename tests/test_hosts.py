# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Two processes with four devices each, over gloo: what one device gives, told once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxkv.decode.__main__ import main

TOLD = (
    "--model", "tiny-random", "--raw", "--prompt", "One", "--prompt", "Two and three",
    "--prompt", "Why?", "--policy", "full", "--max-length", "128", "--max-new-tokens", "24",
    "--temperature", "9", "--json",
)  # fmt: skip
COMPILE = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4"


def begin(words: list[str], mesh: str = "data=2,model=4") -> list[subprocess.Popen[str]]:
    """Both processes of a command."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": COMPILE}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "jaxkv.decode", *words, "--mesh", mesh,
             "--hosts", f"localhost:{port},2,{index}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for index in range(2)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    try:
        return [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()


def alone(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    main(words)
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_two_processes_give_what_one_device_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stop string ends one row; the caches that are kept are those of one device."""
    plain = alone(capsys, *TOLD)["results"]
    stop = next(x["text"] for x in plain if len(x["text"]) > 9)[3:6]
    one, many = str(tmp_path / "one"), str(tmp_path / "many")
    words = [*TOLD, "--stop", stop]
    expected = alone(capsys, *words, "--save-cache", one)
    processes = begin([*words, "--save-cache", many])
    (first, _), (second, error) = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], error
    found = json.loads(first)
    assert second == ""
    for mine, other in zip(found["results"], expected["results"], strict=True):
        assert mine == other
    assert {x["finish_reason"] for x in found["results"]} == {"stop", "length"}
    assert found["cache"]["layout"] == "slots"
    arrays, others = (load_file(f"{path}/cache.safetensors") for path in (many, one))
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_allclose(array, others[name], atol=1e-4, err_msg=name)
    again = [
        alone(capsys, "--model", "tiny-random", "--load-cache", path, "--json", "--seed", "3")
        for path in (one, many)
    ]
    assert again[0]["results"] == again[1]["results"]


@pytest.mark.slow
def test_an_interrupt_of_one_ends_both() -> None:
    words = ["--model", "tiny-random", "--prompt", "One", "--max-new-tokens", "100000000"]
    processes = begin(words, "model=8")
    assert processes[0].stdout is not None
    assert processes[0].stdout.read(1)  # the answer has begun
    processes[1].send_signal(signal.SIGINT)
    began = time.monotonic()
    (_, first), (_, second) = ended(processes)
    assert time.monotonic() - began < 60
    assert processes[1].returncode == 130 and "interrupted" in second
    assert processes[0].returncode not in (0, None), first
