# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`jaxkv COMMAND` and `python -m jaxkv`: all commands under one name, found without jax."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from test_architecture import ROOT

from jaxkv import __version__
from jaxkv.__main__ import commands, main
from jaxkv.bench.command import _parser as bench_parser
from jaxkv.calibrate.command import parse_options as calibrate_options
from jaxkv.cli.decode.options import _parser as decode_parser
from jaxkv.decode.__main__ import main as decode
from jaxkv.eval.runner.options import parse_options as eval_options


def test_all_commands_are_listed_with_a_line_each(capsys) -> None:
    main([])
    shown = capsys.readouterr()
    main(["--help"])
    assert capsys.readouterr() == shown and shown.err == ""
    assert {"bench", "calibrate", "convert", "decode", "eval", "plan"} <= set(commands())
    for name in commands():
        (line,) = [x for x in shown.out.splitlines() if x.startswith(f"  {name} ")]
        assert len(line) > 30, f"{name} says nothing of itself"


def test_a_list_needs_no_jax() -> None:
    code = "import sys; from jaxkv.__main__ import main; main([]); print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_the_version(capsys) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"jaxkv {__version__}\n"


@pytest.mark.parametrize("name", commands())
def test_every_command_tells_the_version_and_helps(name: str, capsys) -> None:
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit) as end:
            main([name, flag])
        out, err = capsys.readouterr()
        assert not end.value.code and err == ""
        assert out == f"jaxkv {__version__}\n" if flag == "--version" else "usage" in out


def test_a_task_and_a_kind_tell_the_version_too(capsys) -> None:
    for parse, words in ((eval_options, "ppl"), (calibrate_options, "duo")):
        with pytest.raises(SystemExit) as end:
            parse([words, "--version"])
        assert end.value.code == 0 and capsys.readouterr().out == f"jaxkv {__version__}\n"


def test_an_unknown_command_is_one_line(capsys) -> None:
    for word, told in (("decod", "did you mean decode?"), ("xyz", "there are bench, calibrate")):
        with pytest.raises(SystemExit) as end:
            main([word])
        out, err = capsys.readouterr()
        assert (end.value.code, out, err.count("\n")) == (2, "", 1)
        assert f"command {word!r} is unknown" in err and told in err


def test_a_command_does_the_same_by_either_name(capsys) -> None:
    words = ["--model", "tiny-random", "--raw", "--prompt", "hello", "--max-new-tokens", "4"]
    found = []
    for call, more in ((main, ["decode"]), (decode, [])):
        call([*more, *words, "--json"])
        found.append(json.loads(capsys.readouterr().out)["token_ids"])
    assert found[0] == found[1] and len(found[0]) == 4


def test_the_exit_status_is_that_of_the_command(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["decode", "--frobnicate"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("jaxkv.decode: error: ")


def test_flags_are_shown_in_groups() -> None:
    shown = decode_parser().format_help()
    titles = ["model:", "policy:", "text:", "sampling:", "devices:", "output:"]
    places = [shown.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places)
    for title, flag in (("model", "--revision"), ("text", "--raw"), ("output", "--json")):
        begin = shown.index(f"\n{title}:\n")
        assert f"{flag}" in shown[begin:].split("\n\n")[0]
    assert "\nmodel:\n" in bench_parser().format_help()


def completed(line: str) -> set[str]:
    """What bash offers after a line, by argcomplete's way of asking."""
    read, write = os.pipe()
    script = (
        "import os, sys; os.dup2(int(sys.argv[1]), 8); sys.argv = ['jaxkv'];"
        "from jaxkv.__main__ import run; run()"
    )
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line,
        "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
    }  # fmt: skip
    with open(read) as answer:
        subprocess.run(
            [sys.executable, "-c", script, str(write)], cwd=ROOT, env=environment,
            pass_fds=[write], capture_output=True, timeout=60,
        )  # fmt: skip
        os.close(write)
        return {word.strip() for word in answer.read().splitlines()}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("jaxkv de", {"decode"}),
        ("jaxkv decode --inter", {"--interactive"}),
        ("jaxkv eval ppl --text", {"--text-file"}),
        ("jaxkv bench --min", {"--min-speedup", "--min-roofline"}),
    ],
)
def test_shells_complete_commands_and_flags(line: str, offered: set[str]) -> None:
    pytest.importorskip("argcomplete")
    assert completed(line) == offered


def test_another_version_or_tokenizer_is_another_result() -> None:
    """What an earlier run of the same evaluation has finished is not taken for this one's."""
    words = [[], ["--revision", "v1"], ["--revision", "v2"], ["--tokenizer", "v1"]]
    assert len({eval_options(["ppl", *more])[1].loaded for more in words}) == 4
