# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Sweeps and interrupted evaluations: what is finished is neither lost nor done again."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

import jaxkv
from jaxkv.core.errors import InputError
from jaxkv.eval.__main__ import main
from jaxkv.eval.questions import answers
from jaxkv.eval.questions.contexts import Contexts
from jaxkv.eval.questions.metrics import contained
from jaxkv.eval.runner.journal import Journal, append_line, json_lines, key_of, plain
from jaxkv.generate.loop import compilations
from jaxkv.policies.registry import POLICIES, describe, make_policies, with_budget

ROWS = [
    {"context": "The key is 42. " * n, "question": "What is it?", "answer": "42",
     "max_new_tokens": 3}
    for n in (1, 3, 5)
]  # fmt: skip


@pytest.fixture
def sweep(tmp_path, capsys):
    """Runs a sweep over rows: (report, its lines)."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))

    def call(*more: str, out: str = "points.jsonl", model: str = "tiny-random"):
        main(
            ["rows", "--model", model, "--rows", str(path), "--prefill-chunk", "64", "--json",
             "--policy", "full,tova", "--out", str(tmp_path / out), *more]
        )  # fmt: skip
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Counts batches that are really answered; a test may set how many are allowed."""
    calls, real = [0, 10**9], answers._answer_batch

    def answer(*args):
        if calls[0] >= calls[1]:
            raise KeyboardInterrupt
        calls[0] += 1
        return real(*args)

    monkeypatch.setattr(answers, "_answer_batch", answer)
    return calls


def without_times(rows: list[dict]) -> list[dict]:
    """What a result is, less how long it took and where."""
    names = "task score n by policy cache kept_tokens query_aware bytes_read_per_token curve"
    return [{name: row[name] for name in names.split() if name in row} for row in rows]


@pytest.mark.slow
def test_points_are_added_and_never_run_again(sweep, counted, tmp_path) -> None:
    first = sweep("--budgets", "8")
    assert [row["policy"]["name"] for row in first] == ["full", "tova"] and counted[0] == 6
    lines = list(json_lines(tmp_path / "points.jsonl"))
    assert {"point", "score", "cache", "bytes_read_per_token", "tokens_per_s", "jax", "jaxkv",
            "seed", "model", "date", "command"} <= lines[0].keys()  # fmt: skip
    more = sweep("--budgets", "8,12")
    assert counted[0] == 9 and len(more) == 3
    assert without_times(more[:2]) == without_times(first)
    assert list(json_lines(tmp_path / "points.jsonl"))[:2] == lines
    sweep("--budgets", "8,12", "--batch-size", "3", "--seed", "1")
    assert counted[0] == 12 and len(list(json_lines(tmp_path / "points.jsonl"))) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["points.jsonl", "rows.jsonl"]


@pytest.mark.slow
def test_one_prefill_serves_all_that_choose_after_it(sweep, monkeypatch) -> None:
    """With the answers and the tokens that each policy has when it reads the contexts itself."""
    read, real = [], Contexts.read

    def reading(self, key, *rest):
        read.append((key, key in self.held))
        return real(self, key, *rest)

    monkeypatch.setattr(Contexts, "read", reading)
    policies = "full,tova:budget=8,snapkv:budget=12:window=4:decode_room=8,h2o:budget=8"
    together = sweep("--policy", policies)
    assert [row.get("shared_prefill", False) for row in together] == [False, True, True, False]
    assert [held for _, held in read] == [False] * 3 + [True] * 3 and len(set(read)) == 6
    alone = sweep("--policy", policies, "--each-reads", out="alone.jsonl")
    assert len(read) == 6 and not any("shared_prefill" in row for row in alone)
    for mine, theirs in zip(together, alone, strict=True):
        for name in ("policy", "score", "by", "kept_tokens", "bytes_read_per_token"):
            assert mine[name] == theirs[name]
        sizes = [row["cache"]["physical_bytes"] for row in (mine, theirs)]
        assert sizes[0] == sizes[1]


@pytest.mark.slow
def test_programs_are_let_go_unless_the_next_policy_runs_them(sweep, monkeypatch) -> None:
    forgotten, before = [], compilations()["decode"]
    monkeypatch.setattr("jaxkv.eval.runner.report.forget_programs", lambda: forgotten.append(1))
    policies = "recycled:k=8:stride=1,recycled:k=8:stride=2,recycled:k=9:stride=2"
    assert len(sweep("--policy", policies, "--batch-size", "3")) == 3
    assert len(forgotten) == 2 and compilations()["decode"] - before == 2


@pytest.mark.slow
@pytest.mark.parametrize("out", ["points.jsonl", "report.json"])
def test_an_interrupted_run_goes_on(
    sweep, counted, tmp_path, capsys, monkeypatch, out: str
) -> None:
    put, real = [], Journal.put
    monkeypatch.setattr(Journal, "put", lambda self, key, x: (put.append(key), real(self, key, x)))
    counted[1] = 4  # within the second policy
    with pytest.raises(SystemExit) as stopped:
        sweep(out=out)
    assert stopped.value.code == 130 and "goes on" in capsys.readouterr().err
    assert len(list(json_lines(tmp_path / out))) == (1 if out == "points.jsonl" else 0)
    assert (tmp_path / f".{out}.work").exists()
    counted[1] = 10**9
    resumed = sweep(out=out)
    assert counted[0] == 6 and not (tmp_path / f".{out}.work").exists()
    assert len(put) == len(set(put))  # what is found is not written again
    assert without_times(resumed) == without_times(sweep(out="other.json"))


@pytest.mark.slow
def test_a_finished_report_is_kept(sweep, tmp_path, capsys) -> None:
    sweep(out="report.json")
    before = (tmp_path / "report.json").read_bytes()
    with pytest.raises(SystemExit):
        sweep(out="report.json")
    assert "is a finished report" in capsys.readouterr().err
    assert (tmp_path / "report.json").read_bytes() == before
    sweep("--overwrite", out="report.json")
    assert json.loads((tmp_path / "report.json").read_text())["rows"]


@pytest.mark.slow
def test_perplexity_goes_on(tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "ppl.json"
    words = ["ppl", "--model", "tiny-random", "--tokens", "90", "--policy",
             "full,window:window=16", "--json", "--prefill-chunk", "32"]  # fmt: skip
    main(words)
    expected = json.loads(capsys.readouterr().out)
    real, calls = jaxkv.eval.tasks.ppl.score_stream, []

    def score(model, policy, *rest):
        calls.append(policy)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, policy, *rest)

    monkeypatch.setattr(jaxkv.eval.tasks.ppl, "score_stream", score)
    with pytest.raises(SystemExit):
        main([*words, "--out", str(out)])
    main([*words, "--out", str(out)])
    assert [describe(policy)["name"] for policy in calls] == ["full", "window", "window"]
    capsys.readouterr()
    assert without_times(json.loads(out.read_text())["rows"]) == without_times(expected)


@given(st.dictionaries(st.text(min_size=1), st.lists(st.floats(allow_nan=False)), max_size=4))
def test_a_journal_gives_back_what_was_put(tmp_path_factory, values: dict) -> None:
    path = tmp_path_factory.mktemp("journal") / "work"
    first = Journal(path)
    for key, value in values.items():
        first.put(key, value)
    if path.exists():
        with open(path, "ab") as file:
            file.write(b'{"key": "cut sh')
    again = Journal(path)
    assert {key: again.get(key) for key in values} == values
    again.put("after", 1)
    assert Journal(path).get("after") == 1 and Journal(path).get("cut sh") is None


def test_keys_tell_functions_and_settings_apart(tmp_path: Path) -> None:
    row = answers.Row("a", "b", "", ("c",), 4)
    assert key_of(row) == key_of(answers.Row("a", "b", "", ("c",), 4))
    assert plain(row)[1]["metric"] == "jaxkv.eval.questions.metrics.contained"
    partials = [functools.partial(contained, answers=[x]) for x in "ab"]
    assert key_of(partials[0]) != key_of(partials[1])
    append_line(tmp_path / "x", [1])
    assert list(json_lines(tmp_path / "x")) == [[1]]


def test_budgets_are_tokens_in_every_policy() -> None:
    policies = {name: with_budget(make_policies(name, {})[0], 200) for name in POLICIES}
    fields = {name: describe(policy) for name, policy in policies.items()}
    for name in ("snapkv", "pyramidkv", "adakv", "headkv", "h2o", "tova"):
        assert fields[name]["budget"] == 200
    assert fields["window"]["window"] == fields["recompute"]["window"] == 200
    for name in ("streaming", "streaming-plus"):
        assert fields[name]["window"] + fields[name]["sinks"] == 200
    assert fields["recycled"]["k"] == 200
    assert policies["full"] == jaxkv.Full()
    with pytest.raises(InputError, match="--budgets has 3, where of 'streaming' window is -1"):
        with_budget(jaxkv.StreamingLLM(), 3)
