# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.decode` as users meet it: what it prints, and what it says of wrong input."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxkv import load_cache, nbytes
from jaxkv.cache import packed
from jaxkv.cli import flags
from jaxkv.cli.decode import interactive
from jaxkv.decode.__main__ import main
from jaxkv.text.stops import Row

ROOT = Path(__file__).parent.parent
SMALL = ["--model", "tiny-random", "--policy.window", "20", "--max-new-tokens", "6"]
RAW = [*SMALL, "--raw"]
DRAWN = [*RAW, "--temperature", "9", "--seed", "3"]
FOX = ["--prompt", "The quick brown fox"]
OTHER = ["--prompt", "jumps over"]


@pytest.fixture
def run(capsys):
    """Runs the command: (stdout, stderr)."""

    def call(*arguments: str) -> tuple[str, str]:
        main(list(arguments))
        return capsys.readouterr()

    return call


@pytest.fixture
def run_json(run):
    """Runs the command with --json: the one object on stdout."""

    def call(*arguments: str) -> dict:
        out, _ = run(*arguments, "--json")
        assert out.count("\n") == 1
        return json.loads(out)

    return call


@pytest.fixture
def refused(capsys):
    """Runs the command, which must refuse in one line; the line."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == ""
        assert err.startswith("jaxkv.decode: error: ") and err.count("\n") == 1
        assert not any(word in err for word in ("<class", "Parser key", "Traceback"))
        return err

    return call


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--policy nope", ["--policy 'nope'", "full, window, streaming"]),
        ("--policy.sinkz 3", ["'sinkz'", "sinks, window"]),
        ("--policy full --policy.window 3", ["'window'", "it has queries, moments"]),
        ("--policy window --policy.window 0", ["--policy.window is 0", "at least 1"]),
        ("--policy.window=0", ["--policy.window is 0", "at least 1"]),
        ("--policy.sinks -1", ["--policy.sinks is -1", "at least 0"]),
        ("--policy.window many", ["--policy.window", "'many'", "int"]),
        ("--policy.window true", ["--policy.window", "True", "int"]),
        ("--policy.window", ["--policy.window needs a value"]),
        ("--dtype int8", ["--dtype is 'int8'", "float32, bfloat16"]),
        ("--kv-dtype fp4", ["--kv-dtype is 'fp4'", "float32, bfloat16, int8 or int4"]),
        ("--temperature hot", ["--temperature is 'hot'", "a number"]),
        ("--temperature -1", ["--temperature is -1.0", "0 (greedy) or above"]),
        ("--temperature nan", ["--temperature is 'nan'", "a number"]),
        ("--top-k 0 --temperature 1", ["--top-k is 0", "at least 1"]),
        ("--top-k few", ["--top-k is 'few'", "a whole number"]),
        ("--top-p 2 --temperature 1", ["--top-p is 2.0", "above 0 and at most 1"]),
        ("--top-p 0 --temperature 1", ["--top-p is 0.0", "above 0 and at most 1"]),
        ("--top-p most", ["--top-p is 'most'", "a number"]),
        ("--top-k 3", ["--top-k", "temperature above 0"]),
        ("--seed x", ["--seed is 'x'", "a whole number"]),
        ("--seed 1.5", ["--seed is '1.5'", "a whole number"]),
        ("--max-new-tokens 0", ["--max-new-tokens is 0", "at least 1"]),
        ("--max-new-tokens many", ["--max-new-tokens is 'many'", "a whole number"]),
        ("--prefill-chunk 0", ["--prefill-chunk is 0", "at least 1"]),
        ("--max-length -3", ["--max-length is -3", "at least 1"]),
        ("--frobnicate", ["--frobnicate is unknown", "--help"]),
        ("--promptt x", ["--promptt is unknown", "did you mean --prompt?"]),
        ("--max-new 3", ["--max-new is unknown", "did you mean --max-new-tokens?"]),
        ("stray", ["stray is unknown"]),
        ("--chat --raw", ["--raw", "--chat"]),
        ("--stop=", ["--stop is ''", "at least one character"]),
        ("--interactive", ["--interactive", "--prompt"]),
        ("--answer-prefix", ["--answer-prefix", "expected one argument"]),
        ("--config", ["--config needs a value"]),
        ("--config /no/such.yaml", ["--config /no/such.yaml", "No such file"]),
        ("--prompt-file /no/such.txt", ["--prompt-file /no/such.txt", "No such file"]),
        ("--prompt-file .", ["--prompt-file .", "directory"]),
        ("--prompt=", ["--prompt is empty", "some text"]),
        ("--load-cache /no/such", ["--load-cache", "/no/such", "not a saved cache"]),
        ("--save-cache .", ["--save-cache", "not a saved cache"]),
        ("--model /no/such", ["--model '/no/such'", "no such file"]),
        ("--model no-such", ["--model no-such", "tiny-random", "hub id"]),
    ],
)
def test_wrong_flags_are_refused_in_one_line(refused, arguments, told) -> None:
    line = refused(*SMALL, *FOX, *arguments.split())
    assert all(words in line for words in told), line


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("prompt-file", b"", ["is empty", "some text"]),
        ("prompt-file", b" \n", ["is empty", "some text"]),
        ("prompt-file", b"\xff\xfe\x00", ["not UTF-8"]),
        ("model", b"GGUF\x03\x00\x00", ["cut off"]),
        ("config", b"a: [1\n b: {", ["not YAML"]),
        ("config", b"\xff\xfe\xff", ["not UTF-8"]),
        ("config", b"- 1", ["names and their values"]),
        ("config", b"", ["names and their values"]),
        ("config", b"modle: x", ["'modle'", "did you mean 'model'?"]),
        ("config", b"policy_field: x", ["'policy-field'", "policy"]),
        ("config", b"temperature: hot", ["--temperature is 'hot'", "a number"]),
        ("config", b"seed: [1, 2]", ["--seed is '1,2'", "a whole number"]),
        ("config", b"seed: {a: 1}", ["seed", "one value"]),
        ("config", b"json: 7", ["json", "7", "true or false"]),
        ("config", b"policy: 7", ["--policy '7' is unknown", "streaming"]),
        ("config", b"policy: {name: streaming, sinks: many}", ["--policy.sinks", "'many'", "int"]),
        ("config", b"policy.sinkz: 3", ["'sinkz'", "sinks, window"]),
    ],
)
def test_wrong_files_are_refused_in_one_line(refused, tmp_path, name, content, told) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    line = refused(*SMALL, *FOX, f"--{name}", str(path))
    assert all(words in line for words in told), line
    assert f"--{name}" in line or "--temperature" in line or "--seed" in line or "--policy" in line


def test_a_prompt_longer_than_a_full_cache_is_refused(refused) -> None:
    line = refused("--model", "tiny-random", "--policy", "full", "--max-length", "5", *FOX)
    assert "prompt has 29 tokens" in line and "at most 4" in line and "--max-length" in line


def test_no_prompt_is_refused(refused) -> None:
    assert "--prompt TEXT" in refused(*SMALL)


def test_help_teaches() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jaxkv.decode", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for words in ("--policy.FIELD VALUE", "--load-cache DIR", "examples:", "tiny-random", "Ctrl-C"):
        assert words in done.stdout
    assert done.stderr == ""


def test_one_json_object_with_every_field(run_json) -> None:
    report = run_json(*DRAWN, *FOX)
    assert report["prompt_tokens"] == 16 and report["new_tokens"] == 6
    assert len(report["token_ids"]) == 6 and report["finish_reason"] == "length"
    assert report["policy"] == {"name": "streaming", "sinks": 4, "window": 20}
    assert set(report["timing"]) >= {
        "load_s", "compile_s", "prefill_s", "decode_s", "first_token_s", "tokens_per_s",
    }  # fmt: skip
    assert report["timing"]["tokens_per_s"] > 0
    cache = report["cache"]
    assert cache["kept_tokens"] == [[22, 22]] * 3
    assert 0 < cache["nominal_bytes"] <= cache["physical_bytes"] <= cache["peak_bytes"]
    assert set(report["compilations"]) == {"prefill", "decode"}


def test_a_batch_has_results_like_each_alone(run, run_json) -> None:
    both = run_json(*RAW, *FOX, *OTHER)
    alone = [run_json(*RAW, *FOX), run_json(*RAW, *OTHER)]
    for row, one in zip(both["results"], alone, strict=True):
        assert {key: row[key] for key in row if key != "kept_tokens"} == {
            key: one[key] for key in row if key != "kept_tokens"
        }
        assert row["kept_tokens"] == one["cache"]["kept_tokens"]
    out, _ = run(*RAW, *FOX, *OTHER)
    assert out == "".join(f"--- {i + 1}\n{one['text']}\n" for i, one in enumerate(alone))


def test_the_streamed_text_is_the_texts_of_the_json(run, run_json) -> None:
    out, err = run(*DRAWN, *FOX)
    assert out == run_json(*DRAWN, *FOX)["text"] + "\n"
    assert err.count("\n") == 1 and "tokens/s" in err and "[streaming sinks=4 window=20]" in err


def test_seeds_reproduce_and_differ(run_json) -> None:
    first, again = run_json(*DRAWN, *FOX), run_json(*DRAWN, *FOX)
    other = run_json(*DRAWN, *FOX, "--seed", "4")
    assert first["token_ids"] == again["token_ids"] != other["token_ids"]
    assert again["compilations"] == {"prefill": 0, "decode": 0}
    assert run_json(*DRAWN, *FOX, "--seed", "3")["token_ids"] == first["token_ids"]


def test_prompts_from_files_and_stdin(run_json, tmp_path, monkeypatch) -> None:
    expected = run_json(*RAW, *FOX)["token_ids"]
    path = tmp_path / "prompt.txt"
    path.write_text(FOX[1])
    assert run_json(*RAW, "--prompt-file", str(path))["token_ids"] == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(FOX[1].encode())))
    assert run_json(*RAW, "--prompt-file", "-")["token_ids"] == expected
    assert len(run_json(*RAW, *OTHER, "--prompt-file", str(path))["results"]) == 2


def test_prompts_are_text_whatever_they_look_like(run_json) -> None:
    for text in ("123", "null", "[1, 2]", "{a: b}", "# no comment"):
        assert run_json(*RAW, "--prompt", text)["prompt_tokens"] > 0


@pytest.mark.parametrize(
    "policy",
    ["policy: {name: streaming, sinks: 2, window: 20}", "policy: streaming\npolicy.sinks: 2\n"],
)
def test_a_config_file_says_the_same(run_json, tmp_path, policy) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: tiny-random\nmax_new_tokens: 3\nprompt: {FOX[1]}\nraw: true\n{policy}")
    report = run_json("--config", str(path), "--policy.window", "20")
    assert report["policy"] == {"name": "streaming", "sinks": 2, "window": 20}
    assert report["new_tokens"] == 3
    report = run_json("--config", str(path), "--policy.window=20", "--max-new-tokens", "5", *OTHER)
    assert (report["new_tokens"], report["prompt_tokens"]) == (5, 7)  # and not a batch of two


def test_the_command_line_wins_over_another_policy_and_form(run_json, tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("policy: {name: streaming, sinks: 2}\nchat: true\nstop: [a, b]\nseed: null\n")
    report = run_json(*RAW, "--config", str(path), "--policy", "window", *FOX)
    assert report["policy"] == {"name": "window", "window": 20}
    assert report["prompt_tokens"] == 16  # raw


def test_stop_strings_end_an_answer(run_json) -> None:
    whole = run_json(*DRAWN, *FOX)["text"]
    stop = whole[2:4]
    report = run_json(*DRAWN, *FOX, "--stop", "nowhere", "--stop", stop)
    assert report["text"] == whole[: whole.index(stop)] and report["finish_reason"] == "stop"


def test_the_form_of_a_prompt(run_json) -> None:
    raw, chat = run_json(*RAW, *FOX), run_json(*SMALL, *FOX, "--chat")
    assert run_json(*SMALL, *FOX)["token_ids"] == chat["token_ids"]
    assert chat["prompt_tokens"] > raw["prompt_tokens"] == 16
    begun = run_json(*SMALL, *FOX, "--answer-prefix", "abcd")
    assert begun["prompt_tokens"] == chat["prompt_tokens"] + 3


@pytest.mark.parametrize("form", [RAW, DRAWN], ids=["greedy", "drawn"])
def test_a_kept_cache_goes_on_where_it_stopped(run_json, tmp_path, form) -> None:
    whole = run_json(*form, *FOX, "--max-new-tokens", "12")["token_ids"]
    kept, later = str(tmp_path / "kept"), str(tmp_path / "later")
    first = run_json(*form, *FOX, "--save-cache", kept)
    load = [word for word in form if word not in ("--seed", "3")]
    for _ in range(2):  # it may be loaded again and again
        rest = run_json(*load, "--load-cache", kept, "--save-cache", later)
        assert first["token_ids"] + rest["token_ids"] == whole
        assert rest["prompt_tokens"] == 0
    assert run_json(*load, "--load-cache", later)["new_tokens"] == 6
    if form is DRAWN:
        other = run_json(*load, "--load-cache", kept, "--seed", "8")["token_ids"]
        assert other != whole[6:]


def test_a_kept_cache_is_asked_again(run_json, tmp_path) -> None:
    kept = str(tmp_path / "kept")
    run_json(*RAW, *FOX, *OTHER, "--save-cache", kept)
    asked = [run_json(*RAW, "--load-cache", kept, *OTHER, *FOX)["results"] for _ in range(2)]
    assert asked[0] == asked[1]
    assert [row["prompt_tokens"] for row in asked[0]] == [7, 16]


def test_an_answer_cut_by_a_stop_string_is_not_closed(run_json, tmp_path) -> None:
    """Its end-of-sequence token is not in the cache, so the next turn has to bring it."""
    kept, again = str(tmp_path / "kept"), str(tmp_path / "again")
    run_json(*DRAWN, *FOX, "--save-cache", again)
    text = run_json(*DRAWN, *FOX)["text"]
    chat = [word for word in DRAWN if word != "--raw"]
    run_json(*DRAWN, *FOX, "--stop", text[2:4], "--save-cache", kept)
    cut = run_json(*chat, "--load-cache", kept, *OTHER)
    assert cut["prompt_tokens"] == run_json(*chat, "--load-cache", again, *OTHER)["prompt_tokens"]


def test_a_kept_cache_of_something_else_is_refused(run, refused, tmp_path) -> None:
    kept = tmp_path / "kept"
    run(*RAW, *FOX, "--save-cache", str(kept))
    load = ["--load-cache", str(kept), *RAW]
    assert "window" in refused(*load, "--policy", "window")
    assert "'window': 21" in refused(*load, "--policy.window", "21")
    assert "--kv-dtype is bfloat16" in refused(*load, "--kv-dtype", "bfloat16")
    assert "--max-length is 7" in refused(*load, "--max-length", "7")
    assert "holds 1 stream" in refused(*load, *FOX, *OTHER)
    note = kept / "cache.json"
    text = note.read_text()
    note.write_text(text.replace("tiny-random", "another"))
    assert "another model" in refused(*load)
    note.write_text(text[:-9])
    assert "damaged" in refused(*load)
    note.write_text(text)
    arrays = kept / "cache.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-100])
    assert "damaged" in refused(*load)


def test_a_full_kept_cache_refuses_what_does_not_fit(run_json, refused, tmp_path) -> None:
    kept = str(tmp_path / "kept")
    full = ["--model", "tiny-random", "--raw", "--policy", "full"]
    report = run_json(*full, *FOX, "--max-length", "20", "--save-cache", kept)
    assert (report["new_tokens"], report["finish_reason"]) == (4, "length")
    assert "is full" in refused(*full, "--load-cache", kept)
    assert "room for 0" in refused(*full, "--load-cache", kept, *OTHER)


def test_interactive_turns_in_constant_memory(run, monkeypatch, tmp_path) -> None:
    kept = str(tmp_path / "kept")
    turns = ["hello there", "", "tell me more", "and more", "and the end"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(turns) + "\n"))
    out, err = run(*SMALL, "--temperature", "9", "--interactive", "--save-cache", kept)
    assert "Ctrl-C" in err and len(out) > 4 * 3
    cache = load_cache(kept)
    assert int(cache.layers[0].seen[0]) > 4 * 20 and cache.layers[0].slots == 4 + 20 + 1
    before = nbytes(cache)
    monkeypatch.setattr("sys.stdin", io.StringIO("again\n"))
    run(*SMALL, "--temperature", "9", "--interactive", "--load-cache", kept, "--save-cache", kept)
    after = load_cache(kept)
    assert nbytes(after) == before
    assert int(after.layers[0].seen[0]) > int(cache.layers[0].seen[0])


def test_interactive_refuses_a_turn_that_does_not_fit(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello there\nand again\n"))
    with pytest.raises(SystemExit) as end:
        main([*RAW[:2], "--raw", "--policy", "full", "--max-length", "16", "--interactive"])
    assert end.value.code == 2 and "room for 0 tokens" in capsys.readouterr().err


def test_an_interrupt_ends_the_answer_and_not_the_chat(run, monkeypatch) -> None:
    fed = []
    plain = Row.feed

    def feed(row: Row, ids) -> str:
        fed.append(row)
        if len(fed) == 3:
            signal.raise_signal(signal.SIGINT)
        return plain(row, ids)

    monkeypatch.setattr(interactive.Row, "feed", feed)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    run(*RAW, "--max-new-tokens", "40", "--interactive")
    counts = [len(row.ids) for row in dict.fromkeys(fed)]
    assert counts == [1 + 8 + 8, 40]


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_session(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    words = [*DRAWN, "--max-new-tokens", "1000000", "--interactive", "--save-cache", str(kept)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    with subprocess.Popen(
        [sys.executable, "-m", "jaxkv.decode", *words], env=environment, cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout and process.stderr
        for turn in (b"one\n", b"two\n"):
            process.stdin.write(turn)
            process.stdin.flush()
            shown = b""
            while len(shown) < 20:
                shown += os.read(process.stdout.fileno(), 1)
            process.send_signal(signal.SIGINT)
            while select.select([process.stdout], [], [], 2)[0]:
                os.read(process.stdout.fileno(), 4096)
        process.stdin.close()
        assert process.wait(60) == 0
        assert b"Traceback" not in process.stderr.read()
    assert 15 < int(np.asarray(load_cache(kept).layers[0].seen)[0]) < 1000000


def test_flags_offer_the_forms_that_there_are() -> None:
    """By name, as flags are known before jax is imported."""
    assert flags.KV_DTYPES == packed.FORMS
