# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole or not at all, whoever is killed when; and files are read that are files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jaxkv.core import files
from jaxkv.core.checksums import check_sums, file_sum, sums_of
from jaxkv.core.errors import InputError
from jaxkv.core.files import whole_file, whole_folder
from jaxkv.core.reading import parse_json, read_bytes, read_json, read_text
from jaxkv.eval.runner.journal import Journal, alone, append_line, json_lines

ROOT = Path(__file__).parent.parent

_KILLED = """
import os, signal, sys
from pathlib import Path
from jaxkv.core import files
target, when = Path(sys.argv[1]), sys.argv[2]
moves = []
plain = os.replace
def replace(a, b):
    plain(a, b)
    moves.append(b)
    if when == f"after move {len(moves)}":
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
with files.whole_folder(target) as part:
    (part / "a").write_text("new")
    if when == "in the middle":
        os.kill(os.getpid(), signal.SIGKILL)
    (part / "b").write_text("new")
"""


@pytest.mark.parametrize("when", ["in the middle", "after move 1", "after move 2"])
def test_a_killed_run_leaves_the_old_or_the_new_or_nothing(tmp_path: Path, when: str) -> None:
    target = tmp_path / "kept"
    with whole_folder(target) as part:
        for name in "ab":
            (part / name).write_text("old")
    run = subprocess.run([sys.executable, "-c", _KILLED, str(target), when], cwd=ROOT)
    assert run.returncode == -signal.SIGKILL
    found = {path.name: path.read_text() for path in target.iterdir()} if target.exists() else {}
    expected = {"in the middle": "old", "after move 1": None, "after move 2": "new"}[when]
    assert found == ({name: expected for name in "ab"} if expected else {})
    assert len(list(tmp_path.iterdir())) > 1 or expected is None  # what it left
    # The next run finds the old one, puts its own there, and nothing is left over.
    seen = []
    with pytest.raises(KeyboardInterrupt):
        with whole_folder(target) as part:
            seen += [path.read_text() for path in sorted(target.iterdir())]
            raise KeyboardInterrupt
    assert seen == [expected or "old"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_what_another_run_is_writing_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    with whole_file(target) as one:
        one.write_text("one")
        with whole_file(target) as two:
            assert one.exists() and one != two
            two.write_text("two")
        assert target.read_text() == "two"
    assert target.read_text() == "one" and list(tmp_path.iterdir()) == [target]


def test_files_of_others_with_such_names_stay(tmp_path: Path) -> None:
    names = [".kept.part", ".kept.notes.of.mine.part", ".keptx.0123456789ab.part", "kept.old"]
    for name in names:
        (tmp_path / name).write_text("mine")
    with whole_file(tmp_path / "kept") as part:
        part.write_text("x")
    assert {path.name for path in tmp_path.iterdir()} == {*names, "kept"}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_what_is_written_follows_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with whole_file(tmp_path / "file") as part:
            part.write_text("x")
        with whole_folder(tmp_path / "folder") as part:
            (part / "inside").write_text("x")
        append_line(tmp_path / "journal", 1)
    finally:
        os.umask(before)
    for name in ("file", "folder/inside", "journal"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_link_in_the_place_of_a_journal_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "journal").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError):
        append_line(tmp_path / "journal", 1)
    with pytest.raises(OSError):
        with alone(tmp_path / "journal", "it"):
            pass
    assert (tmp_path / "mine").read_text() == "precious"


def test_one_process_works_on_a_report(tmp_path: Path) -> None:
    with alone(tmp_path / "lock", "--out a.json"):
        with pytest.raises(InputError, match="--out a.json is being written by another process"):
            with alone(tmp_path / "lock", "--out a.json"):
                pass
    with alone(tmp_path / "lock", "--out a.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_journal_of_nonsense_is_no_journal(tmp_path: Path) -> None:
    lines = ["[1]", "7", '{"key": [], "value": 1}', "{", "9" * 5000, '{"key": "a", "value": 2}']
    (tmp_path / "j").write_text("\n".join(lines + ["[" * 100_000]))
    journal = Journal(tmp_path / "j")
    assert journal.get("a") == 2
    assert len(list(json_lines(tmp_path / "j"))) == 4


def test_sums_find_a_flipped_bit_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    large = os.urandom(2**24 + 1000)
    (tmp_path / "sub" / "large").write_bytes(large)
    (tmp_path / "empty").write_bytes(b"")
    sums = sums_of(tmp_path)
    assert set(sums) == {"sub/large", "empty"}
    check_sums(tmp_path, sums)
    assert file_sum(tmp_path / "empty") != file_sum(tmp_path / "sub" / "large")
    for at in (0, 2**24 - 1, 2**24, len(large) - 1):
        flipped = bytearray(large)
        flipped[at] ^= 1
        (tmp_path / "sub" / "large").write_bytes(flipped)
        with pytest.raises(InputError, match="sub/large is not as written"):
            check_sums(tmp_path, sums)
    (tmp_path / "empty").unlink()
    for bad in ({"empty": sums["empty"]}, {"../x": [0, ""]}, {"/etc/passwd": 1}, None, [1]):
        with pytest.raises(InputError):
            check_sums(tmp_path, bad)


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(InputError, match="it must be a plain file"):
            read_bytes(path)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)
    with pytest.raises(InputError, match="no name of a file"):
        read_bytes("a\0b")


def test_no_more_is_read_than_the_bound(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    assert len(read_bytes(tmp_path / "f", 100)) == 100
    with pytest.raises(InputError, match="more than the 99 bytes"):
        read_bytes(tmp_path / "f", 99)


def test_text_and_json_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="it is not UTF-8 text"):
        read_text(tmp_path / "f", "it")
    with pytest.raises(InputError, match="it cannot be read: No such"):
        read_text(tmp_path / "none", "it")
    with pytest.raises(InputError, match="none is missing"):
        read_json(tmp_path / "none")
    for text in ("{", "9" * 5000, "[" * 100_000, '"\\ud800"', ""):
        with pytest.raises(InputError, match="it is not JSON"):
            parse_json(text, "it")
    assert parse_json('"\\ud83d\\ude00"', "it") == "\U0001f600"
    (tmp_path / "f").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        read_json(tmp_path / "f")


def test_many_writers_of_one_file_leave_one(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            with whole_file(tmp_path / "f") as part:
                part.write_text(str(number) * 1000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = (tmp_path / "f").read_text()
    assert len(text) == 1000 and len(set(text)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_without_locks_nothing_is_deleted(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / ".f.0123456789ab.part").write_text("of somebody")
    monkeypatch.setattr(files, "fcntl", None)
    with whole_file(tmp_path / "f") as part:
        part.write_text("x")
    assert {p.name for p in tmp_path.iterdir()} == {"f", ".f.0123456789ab.part"}
