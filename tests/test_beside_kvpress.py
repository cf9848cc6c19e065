# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.bench.beside_kvpress`, with no torch and no kvpress. No time is asserted."""

from __future__ import annotations

import ast
import json
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxkv
from jaxkv.bench import beside_kvpress
from jaxkv.bench.beside import env, worker
from jaxkv.bench.beside.report import print_report
from jaxkv.bench.beside.timed_rows import answer_job, make_job, score_job
from jaxkv.bench.beside_kvpress import compare, main, run_job
from jaxkv.checkpoints.toy import load as toy
from jaxkv.core.errors import InputError
from jaxkv.generate.prompts import prompt_ids
from jaxkv.policies.snapkv import SnapKV

WORKER = Path(worker.__file__)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "full,fast"], "'fast'"),
        (["--budgets", "16"], "window of 32"),
        (["--budgets", "4", "--window", "2"], "sinks"),
        (["--budgets", "many"], "64,128"),
        (["--lengths", "0"], "--lengths"),
        (["--depths", "0"], "--depths is 0"),
        (["--rows-per-cell", "0"], "--rows-per-cell is 0"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--tokens", "7"], "at least 8"),
        (["--seed", "-1"], "--seed is -1"),
        (["--window", "0"], "--window is 0"),
        (["--kernel", "4"], "--kernel is 4"),
        (["--rows", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--out", "/"], "folder"),
        (["--env", "/nowhere"], "no virtual environment"),
    ],
)
def test_wrong_input_is_one_line_and_starts_nothing(monkeypatch, capsys, arguments, said):
    def refuse(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and len(err.splitlines()) == 1
    assert said in err and "Traceback" not in err


@given(st.integers(2, 200_000), st.data())
def test_kvpress_keeps_exactly_the_budget(tokens, data):
    budget = data.draw(st.integers(1, tokens - 1))
    ratio = worker.compression_ratio(budget, tokens)
    # As compute_n_kept of kvpress 0.5.5 and StreamingLLMPress have it, and as PyramidKVPress.
    assert 0 < ratio < 1
    assert int(tokens * (1 - ratio)) == budget == round(tokens * (1 - ratio))


@pytest.mark.parametrize("tokens", [1, 100, 128])
def test_a_context_within_the_budget_is_not_compressed(tokens):
    assert worker.compression_ratio(128, tokens) == 0


def test_the_worker_needs_nothing_of_ours(tmp_path):
    py_compile.compile(str(WORKER), cfile=str(tmp_path / "worker.pyc"), doraise=True)
    names = set()
    for node in ast.walk(ast.parse(WORKER.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level
            names.add(node.module.split(".")[0])
    assert names - set(sys.stdlib_module_names) == {"torch", "transformers", "kvpress"}


def options_of(*words):
    options, _ = beside_kvpress.parse(beside_kvpress._parser(), list(words))
    beside_kvpress._check(options)
    return options


def made_rows():
    row = {"answers": ["7", "8"], "metric": "contained", "max_new_tokens": 4}
    row |= {"context": "", "question": "", "answer_prefix": ""}
    return {
        "folder": "/model",
        "rows": [row | {"ids": [[1] * n, [2, 3]], "length": n + 2} for n in (98, 198)],
        "eos": [0],
        "streaming": None,
        "where": {"device": "a slide rule", "jax": "0"},
    }


def answered(text, kept, megabytes, seconds):
    """A run: two rows, the second twice as slow."""
    row = {"ids": [7], "text": text, "kept_bytes": 1, "end_kept_bytes": 2}
    row |= {"physical_bytes": round(megabytes * 1e6), "end_physical_bytes": 9}
    return {
        "rows": [
            row | {"length": length, "prefill_s": s, "question_s": s / 10, "step_s": s / 100}
            for length, s in ((100, seconds), (200, 2 * seconds))
        ],
        "kept_tokens": [[kept, kept], [kept, kept + 2]],
        "peak_rss_bytes": round(seconds * 1e8),
    }


def test_the_report_of_both_sides_by_turns(capsys):
    options = options_of("--methods", "full,snapkv", "--budgets", "64,128", "--rounds", "2")
    made, asked = made_rows(), []

    def run(side, job):
        if job["do"] == "score":
            assert side == "jaxkv"
            return score_job(job)
        asked.append((job["method"], job["budget"], side))
        assert job["rows"] == made["rows"]
        assert job["policy"]["name"] == job["method"]
        if job["budget"] == 128 and side == "kvpress":
            return {"failed": "ValueError: no"}
        later = 3.0 if (job["method"], side) in [turn[::2] for turn in asked[:-1]] else 1.0
        if side == "jaxkv":
            return answered(" 7 and 8.", 64, 4.0, later)
        versions = {"kvpress": "0.5.5", "torch": "2", "transformers": "5"}
        return answered(" 7.", 62, 2.0, 2 * later) | {"same_prompts": 1, "versions": versions}

    report = compare(options, made, run)
    both = ["jaxkv", "kvpress"]
    assert asked == [
        *[("full", None, side) for side in both * 2],
        *[("snapkv", 64, side) for side in both * 2],
        ("snapkv", 128, "jaxkv"),
        ("snapkv", 128, "kvpress"),  # which failed, and so would another
        ("snapkv", 128, "jaxkv"),
    ]
    assert report["kvpress"] == "0.5.5" and report["device"] == "a slide rule"
    assert report["context_and_question_tokens"] == [[98, 2], [198, 2]]
    rows = {(row["method"], row["budget"], row["side"]): row for row in report["rows"]}
    ours, theirs = (rows["snapkv", 64, side] for side in both)
    assert ours["as"] == "snapkv budget=64 window=32 kernel=7" and theirs["as"] == "SnapKVPress"
    assert ours["by"] == {"100": 100.0, "200": 100.0} and ours["same_answers"] == 2
    assert ours["kept_tokens"] == 64.5 and ours["kept_tokens_of_layers"] == [64, 65]
    # Rows took 1, 2 and in the second run 3, 6 seconds; theirs twice that.
    assert (ours["prefill_s"], theirs["prefill_s"]) == (2.5, 5.0)
    assert (ours["tokens_per_s"], theirs["tokens_per_s"]) == (40.0, 20.0)
    assert (ours["peak_rss_bytes"], theirs["peak_rss_bytes"]) == (2e8, 4e8)
    failed = rows["snapkv", 128, "kvpress"]
    assert failed["failed"] == "ValueError: no" and "score" not in failed
    assert rows["snapkv", 128, "jaxkv"]["same_answers"] is None
    won = [(win["method"], win["budget"], win["measure"]) for win in report["kvpress_wins"]]
    assert won == [("full", None, "cache MB"), ("snapkv", 64, "cache MB")]
    assert ("snapkv", 64, "score") in [
        (win["method"], win["budget"], win["measure"]) for win in report["jaxkv_wins"]
    ]
    measures = {line.pop("measure"): line for line in report["measures"]}
    assert measures["cache MB"] == {"cases": 2, "jaxkv": 0, "kvpress": 2}  # one more failed
    assert measures["prefill s"] == {"cases": 2, "jaxkv": 2, "kvpress": 0}
    json.dumps(report, allow_nan=False)

    print_report(report | {"load_before": 5.0, "cores": 4})
    said = capsys.readouterr().out
    assert "kvpress snapkv 128 failed: ValueError: no" in said
    assert "kvpress wins in cache MB: full 2.00 against 4.00; snapkv 64 2.00 against 4.00" in said
    assert "tokenizes the same: 1 of 2" in said and "busy" in said
    line = next(x for x in said.splitlines() if x.split()[:3] == ["snapkv", "64", "kvpress"])
    assert line.split()[3:] == ["50.0", "62.5", "0.00", "2.00", "400", "5.000", "0.500", "20.0"]


def test_a_quiet_machine_and_no_win_are_said(capsys):
    options = options_of("--methods", "full", "--rounds", "1", "--query-aware")

    def run(side, job):
        if job["do"] == "score":
            return score_job(job)
        assert job["query_aware"]
        run = answered("7", 64, 4.0, 1.0)
        return run | {"rows": [row | {"question_s": 0.0} for row in run["rows"]]}

    report = compare(options, made_rows(), run)
    assert report["kvpress_wins"] == report["jaxkv_wins"] == []
    print_report(report | {"load_before": 0.1, "cores": 2})
    said = capsys.readouterr().out
    assert "kvpress wins nowhere" in said and "busy" not in said
    line = next(x for x in said.splitlines() if x.split()[:3] == ["full", "-", "kvpress"])
    assert line.split()[-2] == "-" and "question in the context" in said


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ("json.dump(json.load(open(source)) | {'b': 2}, open(target, 'w'))", {"a": 1, "b": 2}),
        ("raise ValueError('too short')", {"failed": "ValueError: too short"}),
        ("sys.exit('jaxkv.bench.beside.timed_rows: error: a budget')", {"failed": "a budget"}),
        ("sys.exit(3)", {"failed": "ended with status 3"}),
        ("os.kill(os.getpid(), 9)", {"failed": "ended by signal 9"}),
        ("pass", {"failed": "ended with status 0"}),
    ],
)
def test_a_job_ends_in_a_result_or_a_reason(tmp_path, program, result):
    (tmp_path / "result.json").write_text("{}")  # of the job before
    start = "import json, os, sys; source, target = sys.argv[1:]; "
    command = [sys.executable, "-S", "-c", start + program]
    assert run_job(command, {"a": 1}, str(tmp_path)) == result


def test_an_environment_is_made_once_and_whole(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JAXKV_HOME", str(tmp_path))
    ran = []

    def run(command, **kwargs):
        ran.append(" ".join(map(str, command)))
        # The index of CPU wheels cannot be reached; at first, neither can the package index.
        fails = "--index-url" in command or (len(ran) == 3 and "pip" in command)
        return subprocess.CompletedProcess(command, int(fails), "", "ERROR: no network\n")

    monkeypatch.setattr(env.subprocess, "run", run)
    with pytest.raises(InputError, match="ERROR: no network.*kvpress==.*--env FOLDER"):
        env.own_python()
    assert len(ran) == 3
    python = env.own_python()
    assert python.is_relative_to(tmp_path / "kvpress-env")
    assert "venv --clear" in ran[3] and "kvpress==0.5.5" in ran[5] and "torch==" in ran[5]
    assert env.own_python() == python and len(ran) == 6
    assert "making an environment" in capsys.readouterr().err


def test_an_environment_without_kvpress_is_refused(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/false")
    with pytest.raises(InputError, match="no kvpress"):
        env.given_python(str(tmp_path))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside") / "model"
    job = {"model": "tiny-random", "folder": str(folder), "rows": None, "seed": 0}
    job |= {"lengths": [330, 300], "depths": 1, "rows_per_cell": 1}
    return make_job(job) | {"folder": str(folder)}


def test_rows_are_the_ids_of_their_prompts(made):
    model = toy("float32")
    assert [row["length"] for row in made["rows"]] == [300, 330]  # the longest last
    for row in made["rows"]:
        prompt = row["context"] + row["question"]
        whole = prompt_ids(model, prompt, answer_prefix=row["answer_prefix"])
        first, rest = row["ids"]
        assert first + rest == whole and len(whole) <= row["length"] and rest
    assert made["streaming"] is None  # no pattern of this model is shipped


def test_rows_of_a_file_keep_their_metric(tmp_path):
    row = {"context": "A b.", "question": " C?", "answer": ["x", "y"], "metric": "any_contained"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    job = {"model": "tiny-random", "folder": str(tmp_path / "model")}
    rows = make_job(job | {"rows": str(tmp_path / "rows.jsonl")})["rows"]
    scored = score_job({"rows": rows, "texts": [["the Y"], ["none"]]})
    assert scored == {"scores": [[100.0], [0.0]]}


def test_our_side_answers_as_generate_does(made):
    """The exported model, in a session that is fed by hand, against the original in one call."""
    policy = {"name": "snapkv", "budget": 40, "window": 8, "kernel": 3}
    job = made | {"query_aware": True, "tokens": 8, "policy": policy, "threads": os.cpu_count()}
    found = answer_job(job)
    model = toy("float32")
    for row, answer in zip(made["rows"], found["rows"], strict=True):
        wanted = jaxkv.generate(
            model,
            row["context"] + row["question"],
            answer_prefix=row["answer_prefix"],
            policy=SnapKV(budget=40, window=8, kernel=3),
            max_new_tokens=row["max_new_tokens"],
        )
        assert answer["ids"] == wanted.token_ids[0] and answer["text"] == wanted.texts[0]
        assert answer["question_s"] == 0 < answer["step_s"]
    assert {count for layer in found["kept_tokens"] for count in layer} == {40}
    heads = sum(map(len, found["kept_tokens"]))
    of_token = 2 * 4 * model.config.head_dim
    assert found["rows"][-1]["kept_bytes"] == 40 * heads * of_token
    assert found["rows"][-1]["kept_bytes"] < found["rows"][-1]["physical_bytes"]


def test_the_question_comes_after_the_context_was_compressed(made):
    job = made | {"query_aware": False, "tokens": 8, "threads": os.cpu_count()}
    found = answer_job(job | {"policy": {"name": "full"}})
    context = len(made["rows"][-1]["ids"][0])
    assert {count for layer in found["kept_tokens"] for count in layer} == {context}
    assert all(row["question_s"] > 0 for row in found["rows"])
    assert found["rows"][-1]["end_kept_bytes"] > found["rows"][-1]["kept_bytes"]


@pytest.mark.slow
def test_the_command_from_end_to_end(tmp_path, monkeypatch, capsys):
    """With an environment whose interpreter answers as kvpress might."""
    monkeypatch.setenv("JAXKV_HOME", str(tmp_path / "home"))
    (tmp_path / "env" / "bin").mkdir(parents=True)
    python = tmp_path / "env" / "bin" / "python"
    canned = answered(" 8", 30, 1.0, 1.0) | {"same_prompts": 1, "versions": {"kvpress": "9"}}
    python.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        "if sys.argv[1:3] == ['-I', '-c']: sys.exit(0)\n"
        "assert sys.argv[2].endswith('beside/worker.py'), sys.argv\n"
        f"made = {canned!r}\nmade['rows'] = made['rows'][:1]\n"
        "assert json.load(open(sys.argv[3]))['policy'] == {'name': 'full'}\n"
        "json.dump(made, open(sys.argv[4], 'w'))\n"
    )
    python.chmod(0o755)
    out = tmp_path / "new" / "beside.json"
    main(
        ["--model", "tiny-random", "--methods", "full", "--lengths", "300", "--depths", "1",
         "--rounds", "1", "--tokens", "8", "--env", str(tmp_path / "env"), "--out", str(out)]
    )  # fmt: skip
    report = json.loads(out.read_text())
    assert [row["side"] for row in report["rows"]] == ["jaxkv", "kvpress"]
    assert report["kvpress"] == "9" and report["jax"] and report["platform"] == "cpu"
    assert report["command"].startswith("python -m jaxkv.bench.beside_kvpress --model tiny-random")
    ours = report["rows"][0]
    assert ours["n"] == 1 and ours["runs"][0]["program_peak_bytes"] > 0
    assert "tiny-random" in capsys.readouterr().out
