# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What long work tells of itself, in a notebook and in a log."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

import jaxkv
from jaxkv.checkpoints import toy
from jaxkv.core.progress import bars


class TestANotebook:
    @pytest.fixture
    def shown(self, monkeypatch) -> list[tuple[int, str]]:
        """What a cell is told: which output, and its text."""
        told: list[tuple[int, str]] = []
        outputs: list[int] = []

        class Handle:
            def __init__(self):
                self.number = len(outputs)
                outputs.append(self.number)

            def update(self, data, raw):
                assert raw and set(data) == {"text/plain"}
                told.append((self.number, data["text/plain"]))

        def display(data, raw, display_id):
            assert display_id is True
            handle = Handle()
            handle.update(data, raw)
            return handle

        ipython: Any = types.ModuleType("IPython")
        ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
        ipython.display = types.ModuleType("IPython.display")
        ipython.display.display = display
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
        return told

    def test_one_line_is_written_anew(self, shown, capsys):
        with bars() as progress:
            for policy in ("full", "window"):
                progress(policy, 0, 0)
                for done in range(1, 1001):
                    progress(policy, done, 1000)
        assert {output for output, _ in shown} == {0} and len(shown) < 20
        lines = [line for _, line in shown]
        assert lines[0] == "full: compiling a program ..."
        assert lines.index("window: compiling a program ...") > 0
        assert lines[-1].startswith("window: 100%, ") and lines[-1].endswith(" s")
        out, err = capsys.readouterr()
        assert out == err == "" and "\x1b" not in "".join(lines)

    def test_nothing_to_tell_is_no_line(self, shown):
        with bars():
            pass
        assert not shown

    def test_an_evaluation_tells_what_it_does(self, shown, tmp_path):
        (tmp_path / "text").write_text("The grass is green. The sky is blue. " * 10)
        jaxkv.evaluate(
            toy.load(), "ppl", policies="window:window=16", text_file=tmp_path / "text", tokens=90,
            prefill_chunk=32,
        )  # fmt: skip
        lines = [line for _, line in shown]
        assert lines[0] == "ppl window window=16: compiling a program ..."
        assert "100%" in lines[-1]


def test_a_log_has_a_line_for_each_kind_of_work(capsys):
    with bars() as progress:
        for done in (0, 1, 2):
            progress("passkey full", done, 2 if done else 0)
        progress("rows", 1, 2)
    assert capsys.readouterr().err.splitlines() == [
        "passkey full: compiling a program ...", "rows ...",
    ]  # fmt: skip
