# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The chat in a terminal: what is pasted, what is told the chat itself, what moves meanwhile."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_architecture import ROOT

from jaxkv.checkpoints import toy
from jaxkv.cli.decode.slash import is_command
from jaxkv.decode.__main__ import main

WORDS = ["--model", "tiny-random", "--policy.window", "20", "--max-new-tokens", "6"]
DRAWN = [*WORDS, "--temperature", "9", "--seed", "3"]


@pytest.fixture
def talk(capsys, monkeypatch):
    """Says lines to a chat: (stdout, stderr)."""

    def call(lines: list[str], *more: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
        main([*DRAWN, "--interactive", *more])
        return capsys.readouterr()

    return call


def test_after_a_reset_the_chat_is_a_new_one(talk) -> None:
    out, err = talk(["hello there", "and more", "/reset", "hello there", "and more"])
    lines = out.splitlines(keepends=True)
    assert len(lines) % 2 == 0 and lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    assert "all is forgotten" in err
    assert talk(["hello there", "and more", "hello there", "and more"])[0] != out


def test_a_reset_goes_back_to_a_kept_cache(talk, tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")
    talk(["hello there"], "--save-cache", kept)
    out, err = talk(["again", "/reset", "again"], "--load-cache", kept)
    half = len(out) // 2
    assert out[:half] == out[half:] and f"as {kept} was" in err


def test_what_was_said_is_written_and_can_be_gone_on_with(talk, tmp_path: Path, capsys) -> None:
    path = tmp_path / "said.json"
    save = f"/save {path}"
    out, err = talk(["hello there", "and more", save], "--system", "Be kind.")
    turns = json.loads(path.read_text())
    assert [x["role"] for x in turns] == ["system", *["user", "assistant"] * 2]
    assert [x["content"] for x in turns[:2]] == ["Be kind.", "hello there"]
    assert "".join(x["content"] + "\n" for x in turns if x["role"] == "assistant") == out
    assert f"{path}: 5 messages" in err
    main([*WORDS, "--messages", str(path), "--json"])
    tokenizer = toy.tokenizer()
    expected = len(tokenizer.encode(tokenizer.render(turns), special=True))
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == expected
    talk(["/reset", "one", save])
    assert [x["content"] for x in json.loads(path.read_text())][0] == "one"


def test_the_chat_tells_of_itself(talk) -> None:
    out, err = talk(["/help", "hello", "/stats", "/policy", "hello", "/stats"])
    for name in ("/help", "/reset", "/stats", "/policy", "/save FILE"):
        assert name in err
    first, last = re.findall(r"\[streaming sinks=4 window=20\] (\d+) \+ (\d+) tokens", err)
    assert int(last[0]) > int(first[0]) and (int(first[1]), int(last[1])) == (6, 12)
    told = re.search(r"window=20: of (\d+) tokens a head keeps (\d+)\n", err)
    assert told is not None
    seen, kept = map(int, told.groups())
    assert kept == min(seen, 24)
    assert "tokens" not in out


def test_a_wrong_command_is_a_line_and_the_chat_goes_on(talk, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = ["/stat", "/save", f"/save {tmp_path}", "/save a\0b", "hello"]
    out, err = talk(wrong)
    assert out.count("\n") >= 1
    told = ("/stat is unknown; did you mean /stats?", "/save needs", "is a folder; it must be")
    assert all(words in err for words in told)
    assert "Traceback" not in err


def test_what_is_a_command_and_what_a_message() -> None:
    for line in ("/help", "/save a b.json", "/nonsense  ", "/stats\t"):
        assert is_command(line)
    for line in ("/etc/passwd holds what?", " /help", "/", "/Help", "a /help", "/help\nme", "//"):
        assert not is_command(line)


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, kind: str, home: Path, *more: str):
        self.handle, inner = pty.openpty()
        environment = {**os.environ, "TERM": kind, "JAX_COMPILATION_CACHE_DIR": str(home)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxkv", "decode", *DRAWN, "--interactive", *more],
            stdin=inner, stdout=inner, stderr=inner, cwd=ROOT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(inner)
        self.shown = ""

    def say(self, text: str) -> str:
        """Types a text, and gives what is shown until the next prompt."""
        os.write(self.handle, text.encode())
        return self.until_asked()

    def until_asked(self) -> str:
        new, until = "", time.monotonic() + 120
        while time.monotonic() < until:
            if select.select([self.handle], [], [], 1.0)[0]:
                new += os.read(self.handle, 4096).decode(errors="replace")
            elif new.endswith("> "):
                self.shown += new
                return new
        raise AssertionError(f"no prompt after {new!r}")

    def end(self) -> int:
        os.write(self.handle, b"\x04")
        status = self.process.wait(60)
        os.close(self.handle)
        return status


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "pasted"),
    [
        ("dumb", "one\rtwo\rthree\r"),  # the lines, as fast as they can be
        ("xterm-256color", "\x1b[200~one\rtwo\rthree\x1b[201~\r"),  # marked as pasted
    ],
)
def test_what_is_pasted_is_one_message(kind: str, pasted: str, tmp_path: Path) -> None:
    terminal = Terminal(kind, tmp_path / "compiled")
    path = tmp_path / "said.json"
    try:
        assert "Ctrl-C" in terminal.until_asked()
        terminal.say(pasted)
        terminal.say("four\r")
        assert "4 messages" in terminal.say(f"/save {path}\r")
    finally:
        status = terminal.end()
    assert status == 0, terminal.shown
    said = [x["content"] for x in json.loads(path.read_text()) if x["role"] == "user"]
    assert said == ["one\ntwo\nthree", "four"]
    moves = kind != "dumb"
    assert ("thinking" in terminal.shown) == ("compiling" in terminal.shown) == moves
