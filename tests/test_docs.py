# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/ say what is so: their code is run, top to bottom."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
from test_architecture import FLOORS, ROOT

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def test_there_are_pages() -> None:
    assert {page.stem for page in PAGES} >= {"architecture", "new_policy"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_code_runs_and_prints_what_it_says(page: Path, tmp_path, monkeypatch, capsys) -> None:
    """A block without a language after one of Python is what that one prints."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(page.stem)  # where a dataclass looks for its names
    monkeypatch.setitem(sys.modules, page.stem, module)
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert any(language == "python" for language, _ in blocks)
    for (language, text), (after, printed) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language != "python":
            continue
        exec(compile(text, str(page), "exec", dont_inherit=True), module.__dict__)
        out = capsys.readouterr().out
        if not after and printed:
            assert out.strip() == printed.strip()


@pytest.mark.slow
def test_the_readme_s_code_runs(smollm2, tmp_path, monkeypatch, capsys) -> None:
    """With the real model, which `smollm2` has brought here."""
    test_its_code_runs_and_prints_what_it_says(README, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_commands_that_are_shown_have_their_flags() -> None:
    """Every flag in a block of bash is one of the command that it is given to."""
    known: dict[str, set[str]] = {}
    told = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for part in re.split(r"^## ", told, flags=re.M)[1:]:
        name = re.match(r"`jaxkv (\w+)`", part)
        if name:
            known[name[1]] = set(re.findall(r"^\| `(--[\w-]+)", part, re.M))
    seen = 0
    for page in [README, ROOT / "CONTRIBUTING.md", *PAGES]:
        blocks = [text for language, text in BLOCK.findall(page.read_text()) if language == "bash"]
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            command = re.search(r"(?:python -m jaxkv\.|\bjaxkv )(\w+)(.*)", line.split("  #")[0])
            if command is None or command[1] not in known:
                continue
            flags = re.findall(r"(?<=\s)--[\w-]+", command[2])
            wrong = set(flags) - known[command[1]] - {"--help", "--config", "--policy"}
            assert not wrong, (page.name, line, wrong)
            seen += len(flags)
    assert seen > 40


def test_the_floors_are_those_that_are_tested() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    told = {
        name: int(floor)
        for floor, names in re.findall(r"^\| (\d+) \| (.*?) \|", text, re.M)
        for name in re.findall(r"`([\w.]+)`", names)
    }
    assert told == FLOORS
