# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""However a command ends, it is one line: Ctrl-C at any moment, closed streams, strangers' text."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxkv.cli.edge import one_line_errors
from jaxkv.core.errors import InputError, one_line, say, visible

ROOT = Path(__file__).parent.parent


class Terminal(io.StringIO):
    """What a text is shown on."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_obeys_nothing() -> None:
    nasty = "a\x1b[2Jb\x07\r\x9b31m\u202ec\td\né🙂"
    assert visible(nasty, Terminal()) == "a\\x1b[2Jb\\x07\\r\\x9b31m\\u202ec\td\né🙂"
    assert visible(nasty, io.StringIO()) == nasty
    assert visible(nasty, None) == nasty


def test_error_lines_are_shown_harmless(monkeypatch) -> None:
    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    with pytest.raises(SystemExit) as end, one_line_errors("cmd"):
        raise InputError("the model's name is 'x\x1b]0;title\x07'\nand more")
    assert end.value.code == 2
    assert shown.getvalue() == "cmd: error: the model's name is 'x\\x1b]0;title\\x07' and more\n"
    say("\x1b")
    assert shown.getvalue().endswith("\\x1b\n")


def test_an_error_line_has_a_bounded_length() -> None:
    assert len(one_line("x" * 10**7)) < 700
    assert one_line("a\n\n b") == "a b"


def test_a_reader_that_has_seen_enough() -> None:
    code = (
        "from jaxkv.cli.edge import one_line_errors\n"
        "with one_line_errors('cmd'):\n    print('x' * 10**6)\n    raise SystemExit(0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(20) == 1 and process.stderr.read() == b""


# Streams that are closed by the shell, before anything is opened.
@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, tmp_path: Path) -> None:
    model = "--model tiny-random --max-new-tokens 2 --policy full"
    ways = (f"{model} --prompt a", f"{model} --interactive", f"{model} --prompt-file -")
    # Each way meets a stream that it needs and lacks, and the last of all meets all at once.
    for words in ways if closed == "<&- >&- 2>&-" else ways[:: 2 if closed == "<&-" else 3]:
        line = f"{sys.executable} -m jaxkv.decode {words} {closed}"
        run = subprocess.run(
            line, shell=True, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert run.returncode == (2 if "file -" in words else 0), run  # no prompt, no answer
        assert "Traceback" not in run.stderr + run.stdout


_BUSY = """
import sys, time
from jaxkv.cli.edge import one_line_errors
from jaxkv.cli.interrupts import raises, unheard
with one_line_errors("cmd", "interrupted, nothing was written"):
    how = sys.argv[1]
    print("ready", flush=True)
    if how == "starting":
        while True:
            try:
                import time
                time.sleep(0.01)
            except BaseException:  # as somebody's import might
                pass
    elif how == "working":
        with raises():
            time.sleep(60)
    elif how == "deaf":
        with raises():
            while True:
                try:
                    time.sleep(60)
                except KeyboardInterrupt:
                    pass
    else:
        with raises(), unheard():
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                time.sleep(4)
                print("goes on", flush=True)
"""


@pytest.mark.parametrize("how", ["starting", "working", "deaf", "its own"])
def test_ctrl_c_ends_in_one_line(how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _BUSY, how], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        took = time.monotonic() - began
    if how == "its own":
        assert (process.returncode, out, err) == (0, "goes on\n", "")
        return
    assert process.returncode == 130 and out == ""
    assert err.strip() == "cmd: interrupted, nothing was written"
    assert took < {"deaf": 8}.get(how, 2)


# Every command, at several moments of its first seconds.
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="signals are seen in /proc")
@pytest.mark.parametrize(
    ("command", "after"),
    [*(("decode", after) for after in (0.05, 0.3, 0.9, 2.0, 3.5)), ("eval", 2.5), ("convert", 3.0)],
)
def test_ctrl_c_in_the_first_seconds(command: str, after: float, tmp_path: Path) -> None:
    words = {
        "decode": ["--model", "llama-3.2-1b-random", "--prompt", "a", "--max-new-tokens", "9999"],
        "eval": ["passkey", "--model", "llama-3.2-1b-random", "--lengths", "4096"],
        "convert": ["llama-3.2-1b-random", str(tmp_path / "out")],
    }[command]
    with subprocess.Popen(
        [sys.executable, "-m", f"jaxkv.{command}", *words], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        # Python's own first moments are not ours: it is there when it has the package's name.
        wait_until_imported(process.pid)
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "Traceback" not in err and f"jaxkv.{command}: interrupted" in err
    assert not (tmp_path / "out").exists()


def wait_until_imported(pid: int) -> None:
    """Until the process has our handler for Ctrl-C, as its status tells."""
    caught = 1 << (signal.SIGINT - 1)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        threads = len(os.listdir(f"/proc/{pid}/task"))
        status = Path(f"/proc/{pid}/status").read_text()
        mask = next(x for x in status.splitlines() if x.startswith("SigCgt")).split()[1]
        if int(mask, 16) & caught and threads > 1:
            return
        time.sleep(0.01)
    raise AssertionError("the command did not begin")


@pytest.mark.slow
def test_a_line_that_is_not_utf8_ends_no_chat() -> None:
    command = "--model tiny-random --max-new-tokens 2 --interactive".split()
    with subprocess.Popen(
        [sys.executable, "-m", "jaxkv.decode", *command], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout
        out, err = process.communicate(b"hello\n\xff\xfe\nhello again\n", timeout=120)
    assert process.returncode == 0 and b"Traceback" not in err
    assert b"not UTF-8 text; say it again" in err and out.count(b"\n") >= 2
