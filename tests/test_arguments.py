# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A command line and a file in the same words, and messages in those words too."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxkv import InputError
from jaxkv.cli.arguments import make_parser, parse
from jaxkv.core.settings import flags_named


@pytest.fixture
def parser():
    """Of a small command with one of each kind of option."""
    made = make_parser("toy", "A toy.")
    made.add_argument("what", choices=["this", "that"])
    made.add_argument("--policy", type=str)
    made.add_argument("--size", type=int, default=3)
    made.add_argument("--top-share", type=float | None)
    made.add_argument("--lengths", type=str, default="")
    made.add_argument("--word", action="append", type=str)
    made.add_argument("--loud", action="store_true")
    made.add_argument("--config", type=str)
    return made


@pytest.fixture
def file(tmp_path: Path):
    """Writes a config file: its path."""

    def write(text: str) -> str:
        path = tmp_path / "file.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_policy_fields_are_plain_values(parser) -> None:
    words = "this --policy.a 3 --policy.b=0.5 --policy.c-d true --policy.e none --policy.f text"
    given, fields = parse(parser, words.split())
    assert given.what == "this" and given.size == 3 and given.word is None
    assert fields == {"a": 3, "b": 0.5, "c_d": True, "e": None, "f": "text"}
    assert parse(parser, ["this", "--policy.a", "-4"])[1] == {"a": -4}


def test_a_file_and_the_command_line_say_the_same(parser, file) -> None:
    words = "--size 5 --top-share 0.25 --lengths 1,2 --word a --word b --loud --policy p"
    typed, _ = parse(parser, ["this", *words.split()])
    text = "size: 5\ntop_share: 0.25\nlengths: [1, 2]\nword: [a, b]\nloud: true\npolicy: p\n"
    for path in (file(text), file(text.replace("_", "-"))):
        for config in (["--config", path], [f"--config={path}"]):
            read, _ = parse(parser, [*config, "this"])
            assert vars(read) == vars(typed)


def test_the_command_line_wins(parser, file) -> None:
    path = file("size: 5\nword: [a, b]\npolicy: {name: p, x: 1, y: 2}\nloud: false\n")
    given, fields = parse(
        parser, ["this", "--config", path, "--size", "6", "--word=c", "--policy.x", "9", "--loud"]
    )
    assert (given.size, given.word, given.loud, given.policy) == (6, ["c"], True, "p")
    assert fields == {"x": 9, "y": 2}
    given, fields = parse(parser, ["this", "--config", path, "--policy", "q", "--policy.z", "3"])
    assert given.policy == "q" and fields == {"z": 3}  # x and y are settings of p
    assert parse(parser, ["this", "--config", path, "--policy=p"])[1] == {"x": 1, "y": 2}


def test_the_last_of_several_files_counts(parser, file, tmp_path) -> None:
    first = file("size: 5\n")
    last = tmp_path / "last.yaml"
    last.write_text("size: 7\n")
    given, _ = parse(parser, ["this", "--config", first, "--config", str(last)])
    assert given.size == 7


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("this --size big", "--size is 'big'; it must be a whole number"),
        ("this --size 1.5", "--size is '1.5'; it must be a whole number"),
        ("this --top-share big", "--top-share is 'big'; it must be a number"),
        ("this --sise 3", "--sise is unknown; did you mean --size? --help lists what there is"),
        ("this --qqq", "--qqq is unknown; --help lists what there is"),
        ("this --siz 3", "--siz is unknown"),
        ("this --size", "--size: expected one argument"),
        ("this --config", "--config needs a value"),
        ("this --policy.x", "--policy.x needs a value"),
        ("other", "other"),
        ("", "what"),
    ],
)
def test_mistakes_are_told_in_the_words_typed(parser, words, told) -> None:
    with pytest.raises(InputError) as error:
        parse(parser, words.split())
    assert told in str(error.value) and "\n" not in str(error.value)
    assert "Parser key" not in str(error.value) and "<class" not in str(error.value)


def test_messages_get_the_flag_that_was_typed() -> None:
    for names, prefix, message, expected in (
        (["size"], "--", "size is 0; it must be 1", "--size is 0; it must be 1"),
        (["size"], "--", "sizes differ", "sizes differ"),
        ([], "--", "size is 0", "size is 0"),
        (None, "--file: ", "it is gone", "--file: it is gone"),
    ):
        with pytest.raises(InputError) as error, flags_named(names, prefix):
            raise InputError(message)
        assert str(error.value) == expected
