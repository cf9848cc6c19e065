# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.convert`: what it prints, and what it leaves behind when it fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxkv.checkpoints import sources
from jaxkv.convert.__main__ import main
from jaxkv.core.errors import InputError


def _run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_converts(tmp_path: Path, capsys, dtype: str) -> None:
    status, out, _ = _run(capsys, "tiny-random", tmp_path / "m", "--dtype", dtype, "--json")
    report = json.loads(out)
    assert status == 0 and report["dtype"] == dtype and report["parameters"] == 143_808
    assert report["bytes"] == 143_808 * (4 if dtype == "float32" else 2)
    expected, model = sources.load("tiny-random", dtype), sources.load(tmp_path / "m", dtype)
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)
    assert model.fingerprint == expected.fingerprint == report["fingerprint"]


def test_it_says_what_it_did(tmp_path: Path, capsys) -> None:
    status, out, _ = _run(capsys, "tiny-random", tmp_path / "m")
    assert status == 0 and out.count("\n") == 1 and "0.1M parameters" in out


def test_help_teaches(capsys) -> None:
    status, out, _ = _run(capsys, "--help")
    assert status == 0 and "python -m jaxkv.convert model.Q4_K_M.gguf" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "src"),
        (["tiny-random"], "dst"),
        (["tiny-random", "OUT", "--dtype", "float16"], "float16"),
        (["tiny-random", "OUT", "--colour", "red"], "--colour"),
        (["nonsense", "OUT"], "nonsense"),
        (["./gone.gguf", "OUT"], "gone.gguf"),
        (["tiny-random", "FILE/m"], "FILE"),
        (["tiny-random", "FILE"], "--overwrite"),
        (["tiny-random", "FILE", "--overwrite"], "not a checkpoint"),
        (["tiny-random", "FOLDER", "--overwrite"], "not a checkpoint"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, capsys, arguments: list, named: str) -> None:
    (tmp_path / "FILE").write_text("precious")
    (tmp_path / "FOLDER").mkdir()
    places = {p: tmp_path / p for p in ("OUT", "FILE", "FOLDER", "FILE/m")}
    status, out, err = _run(capsys, *(places.get(a, a) for a in arguments))
    lines = [line for line in err.splitlines() if not line.endswith(" ...")]
    assert status == 2 and out == "" and len(lines) == 1 and named in lines[0]
    assert (tmp_path / "FILE").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["FILE", "FOLDER"]


def test_overwriting_must_be_asked_for(tmp_path: Path, capsys) -> None:
    assert _run(capsys, "tiny-random", tmp_path / "m")[0] == 0
    status, _, err = _run(capsys, "tiny-random", tmp_path / "m", "--dtype", "bfloat16")
    assert status == 2 and "--overwrite" in err
    assert _run(capsys, "tiny-random", tmp_path / "m", "--overwrite")[0] == 0
    assert sources.load(tmp_path / "m").config.num_layers == 3
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


_SLOW = """
import os, sys, time
from jaxkv.text import tokenizer
from jaxkv.convert.__main__ import main
def wait(self, folder):
    print("half", flush=True)
    time.sleep(60)
tokenizer.Tokenizer.save = wait
main(sys.argv[1:])
"""


def test_a_killed_conversion_is_not_taken_for_whole(tmp_path: Path, capsys) -> None:
    command = [sys.executable, "-c", _SLOW, "tiny-random", str(tmp_path / "m")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "m").exists()
    with pytest.raises(InputError, match="no such file"):
        sources.load(tmp_path / "m")
    for rest in tmp_path.iterdir():
        with pytest.raises(InputError):
            sources.load(rest)
    assert _run(capsys, "tiny-random", tmp_path / "m")[0] == 0
    assert sources.load(tmp_path / "m").config.num_layers == 3


_LIMITED = """
import resource, sys
from jaxkv.convert.__main__ import main
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 10_000, 100_000])
def test_a_full_disk_is_one_line(tmp_path: Path, size: int) -> None:
    # A limit on the size of files fails a write in the middle, as a full disk does.
    command = [sys.executable, "-c", _LIMITED, str(size), "tiny-random", str(tmp_path / "m")]
    run = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in run.stderr.splitlines() if not line.endswith(" ...")]
    assert run.returncode == 2 and len(lines) == 1 and "error:" in lines[0], run.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SLOW, "tiny-random", str(tmp_path / "m")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == b"half\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []
