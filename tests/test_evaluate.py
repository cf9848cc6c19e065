# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`jaxkv.evaluate`: the command's rows from a program, and what they look like."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

import jaxkv
from jaxkv.core.errors import InputError
from jaxkv.eval import api
from jaxkv.eval.__main__ import main
from jaxkv.eval.runner.journal import json_lines
from jaxkv.eval.runner.options import parse_options
from jaxkv.eval.runner.result import Result
from jaxkv.eval.tasks.registry import TASKS

TEXT = "The grass is green, or so they say. " * 10
# All use the same few programs: compiling is most of their time.
PASSKEY = {"lengths": (520, 560), "depths": 2, "prefill_chunk": 128, "max_length": 640}
POLICIES = "full,streaming:window=32"
TIMES = ("compile_s", "run_s", "prefill_s", "tokens_per_s")


@pytest.fixture(scope="module")
def model() -> jaxkv.Model:
    return jaxkv.load("tiny-random")


@pytest.fixture(scope="module")
def passkey(model) -> jaxkv.Results:
    return jaxkv.evaluate(model, "passkey", policies=POLICIES, **PASSKEY)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def ppl(model, text) -> jaxkv.Results:
    policies = ["full", jaxkv.StreamingLLM(sinks=2, window=30)]
    return jaxkv.evaluate(
        model, "ppl", policies=policies, budgets=[16, 32], text_file=text, tokens=90,
        prefill_chunk=32,
    )  # fmt: skip


def made(*budgets: int, task: str = "passkey", names: tuple[str, ...] = ("snapkv", "tova")):
    """Results that nobody ran."""
    found = [
        Result(
            task, 10.0 * at + index, 4, {"512": 1.0}, {"name": name, "budget": budget},
            {"physical_bytes": 10**5 * budget, "nominal_bytes": 1, "peak_bytes": 2},
            {"query_aware": False, "bytes_read_per_token": 1000 * budget,
             "cells": {"512": {"0": 25.0, "50": 75.0}}, "kept_tokens": [[1, 2], [3, budget]]},
        )
        for index, name in enumerate(names)
        for at, budget in enumerate(budgets)
    ]  # fmt: skip
    return jaxkv.Results(task, "tiny-random", "made", tuple(found))


def without_times(rows: list[dict]) -> list[dict]:
    return [{name: row[name] for name in row if name not in TIMES} for row in rows]


def told(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    main([*words, "--model", "tiny-random", "--json"])
    return json.loads(capsys.readouterr().out)


class TestTheCommandsRows:
    def test_passkey(self, capsys, passkey):
        words = ["--lengths", "520,560", "--depths", "2", "--prefill-chunk", "128"]
        rows = told(
            capsys, "passkey", *words, "--max-length", "640", "--policy", POLICIES
        )  # fmt: skip
        assert without_times(rows) == without_times(json.loads(passkey.to_json()))
        assert len(rows) == 2 and rows[0]["cells"].keys() == {"520", "560"}

    def test_ppl_with_budgets_and_instances(self, capsys, text, ppl):
        rows = told(
            capsys, "ppl", "--text-file", str(text), "--tokens", "90", "--prefill-chunk", "32",
            "--policy", "full,streaming:sinks=2:window=30", "--budgets", "16,32",
        )  # fmt: skip
        assert without_times(rows) == without_times(json.loads(ppl.to_json()))
        assert [row["policy"].get("window") for row in rows] == [None, 14, 30]

    def test_rows_and_a_name_and_one_policy(self, capsys, tmp_path):
        """A single result is an object, as the command prints it."""
        path = tmp_path / "rows.jsonl"
        row = {"context": "The key is 42.", "question": "What?", "answer": "4", "max_new_tokens": 2}
        path.write_text(json.dumps(row))
        settings = {"rows": path, "query_aware": True, "prefill_chunk": 128, "max_length": 640}
        found = jaxkv.evaluate("tiny-random", "rows", policies=jaxkv.Full(), **settings)
        mine = json.loads(found.to_json())
        theirs = told(
            capsys, "rows", "--rows", str(path), "--query-aware", "--prefill-chunk", "128",
            "--max-length", "640", "--policy", "full",
        )  # fmt: skip
        assert without_times([mine]) == without_times([theirs])
        assert found.rows[0]["query"] == "aware"

    def test_both_go_one_way(self, monkeypatch, capsys):
        """The command's rows are those of `run`, as `evaluate`'s are."""
        monkeypatch.setattr(api, "run", lambda task, common, own, *rest: made(7))
        assert told(capsys, "passkey")[1]["policy"]["budget"] == 7
        assert jaxkv.evaluate("tiny-random", "passkey")[1].rows[0]["budget"] == 7

    def test_a_sweep_of_one_goes_on_in_the_other(self, capsys, model, text, tmp_path, monkeypatch):
        out = tmp_path / "points.jsonl"
        settings = {"text_file": text, "tokens": 90, "prefill_chunk": 32, "out": out}
        first = jaxkv.evaluate(model, "ppl", policies="window:window=16", **settings)
        monkeypatch.setattr("jaxkv.eval.tasks.ppl.score_stream", None)  # nothing is run again
        again = told(
            capsys, "ppl", "--text-file", str(text), "--tokens", "90", "--prefill-chunk", "32",
            "--policy", "window:window=16", "--out", str(out),
        )  # fmt: skip
        assert again["score"] == first.rows[0]["score"]
        (line,) = json_lines(out)
        assert line["command"].startswith("jaxkv.evaluate('tiny-random', 'ppl', policies='window")

    def test_over_a_mesh(self, text, ppl):
        over = jaxkv.load("tiny-random", mesh=jaxkv.mesh(model=2))
        found = jaxkv.evaluate(
            over, "ppl", policies="streaming:sinks=2:window=14", text_file=text, tokens=90,
            prefill_chunk=32,
        )  # fmt: skip
        assert found.found[0].policy == ppl.found[1].policy
        assert found.found[0].by["all"] == pytest.approx(ppl.found[1].by["all"], rel=1e-3)

    def test_weights_of_the_same_name_are_not_taken_for_others(self, model, text, tmp_path):
        settings = {"text_file": text, "tokens": 90, "prefill_chunk": 32}
        settings["out"] = tmp_path / "points.jsonl"
        other = dataclasses.replace(model, fingerprint="another")
        for one in (model, other):
            jaxkv.evaluate(one, "ppl", policies="window:window=16", **settings)
        assert len(list(json_lines(tmp_path / "points.jsonl"))) == 2


class TestWrongInput:
    @pytest.mark.parametrize(
        ("task", "settings", "said"),
        [
            ("nosuch", {}, "task 'nosuch' is unknown; choose one of ppl, passkey"),
            ("passkey", {"depth": 3}, "'depth' is unknown; did you mean 'depths'? there are batch"),
            ("passkey", {"json": True}, "'json' is unknown"),
            ("passkey", {"depths": 0}, "depths is 0; it must be at least 1"),
            ("passkey", {"depths": "many"}, "depths is 'many'; it must be a whole number"),
            ("passkey", {"depths": None, "lengths": (5, "x")}, "lengths is '5,x'; it must be"),
            ("passkey", {"lengths": [[5]]}, "lengths is [[5]]; it must be one value or a list"),
            ("passkey", {"rows_per_cell": -1}, "rows_per_cell is -1; it must be at least 1"),
            ("passkey", {"query_aware": 2}, "query_aware is 2; it must be true or false"),
            ("passkey", {"classic": True, "wording": "safe"}, "classic is a wording, and wording"),
            ("ppl", {"kv_dtype": "int3"}, "kv_dtype is 'int3'; it must be float32"),
            ("ppl", {"seed": -1}, "seed is -1; it must be at least 0"),
            ("ppl", {"budgets": (0,)}, "budgets is '0'; it must be tokens such as 64,128,256"),
            ("ppl", {"policies": []}, "policies is empty"),
            ("ppl", {"policies": "nosuch"}, "policy 'nosuch' is unknown"),
            ("ppl", {"policies": [jaxkv.Full]}, "policy is the class Full; give one of it"),
            ("ppl", {"policies": [3]}, "int is not a frozen dataclass"),
            ("ppl", {"policies": "snapkv"}, "a stream has none; give prompt_tokens"),
            ("ppl", {"out": "/"}, "out '/' is a folder"),
            ("rows", {}, "there are no rows; give rows FILE"),
        ],
    )
    def test_is_one_line(self, model, task, settings, said):
        with pytest.raises(InputError) as wrong:
            jaxkv.evaluate(model, task, **settings)
        assert said in str(wrong.value) and "\n" not in str(wrong.value)
        assert "--" not in str(wrong.value)

    def test_is_found_before_a_model_is_loaded(self, monkeypatch):
        monkeypatch.setattr("jaxkv.checkpoints.sources.load", None)
        with pytest.raises(InputError, match="depths is 0"):
            jaxkv.evaluate("tiny-random", "passkey", depths=0)

    @pytest.mark.parametrize("name", TASKS)
    def test_every_flag_of_a_task_is_a_keyword(self, name):
        """But for those that say which model, where to, and in which form."""
        _, common, _ = parse_options(["ppl"])
        assert common.plot_kind is None
        with pytest.raises(InputError) as wrong:
            jaxkv.evaluate("tiny-random", name, nosuch=1)
        known = str(wrong.value).partition("there are ")[2].split(", ")
        flags: list[str] = []
        TASKS[name].add_arguments(lambda flag, **_: flags.append(flag))
        names = {flag.removeprefix("--").replace("-", "_") for flag in flags}
        assert names <= set(known)
        both = {"budgets", "kv_dtype", "max_length", "out", "overwrite", "prefill_chunk", "seed"}
        assert set(known) == names | both


class TestResults:
    def test_rows_are_tidy(self, passkey, ppl):
        rows = passkey.rows
        assert [(row["policy"], row["length"], row["depth"]) for row in rows] == [
            (name, length, depth)
            for name in ("full", "streaming") for length in (520, 560) for depth in (0.0, 100.0)
        ]  # fmt: skip
        assert rows[-1]["settings"] == "sinks=4 window=32" and rows[-1]["budget"] == 36
        assert {row["query"] for row in rows} == {"agnostic"}
        streaming = passkey.found[1]
        assert rows[-1]["cache_bytes"] == streaming.cache["physical_bytes"]
        assert rows[-1]["read_bytes"] == streaming.details["bytes_read_per_token"]
        assert [row["budget"] for row in ppl.rows] == [None, 16, 32]
        assert ppl.rows[1]["by.common"] == ppl.found[1].by["common"]
        assert ppl.rows[1]["length"] is None and ppl.rows[1]["query"] is None
        json.dumps(rows + ppl.rows)  # plain data

    def test_budgets_are_those_that_were_asked_for(self):
        rows = jaxkv.Results("ppl", "m", "c", tuple(
            Result("ppl", 1.0, 1, {}, policy, {f"{x}_bytes": 1 for x in (
                "physical", "nominal", "peak")})
            for policy in ({"name": "full"}, {"name": "window", "window": 9}, {"name": "recycled",
                "k": 64}, {"name": "from.elsewhere:Policy", "budget": 3})
        )).rows  # fmt: skip
        assert [row["budget"] for row in rows] == [None, 9, 64, None]

    def test_a_part(self):
        results = made(8, 16)
        assert len(results) == 4 and len(results[1:3]) == 2
        assert results[-1].found == results.found[-1:]
        with pytest.raises(IndexError):
            results[4]

    def test_it_is_shown_in_a_few_lines(self):
        lines = repr(made(8, 16)).splitlines()
        assert lines[0] == "passkey of tiny-random: 4 rows"
        assert lines[1].split() == ["policy", "query", "score", "n", "cache", "MB", "peak", "MB"]
        assert lines[2].split() == ["snapkv", "budget=8", "agnostic", "0.00", "4", "0.80", "0.00"]
        assert len({len(line) for line in lines[1:]}) == 1
        many = repr(made(*range(8, 48))).splitlines()
        assert len(many) == 15 and many[-1] == "... and 68 more; .table has all"

    def test_a_notebook_shows_a_table(self):
        shown = made(8, names=("a<b",))._repr_html_()
        assert shown.count("<tr>") == 2 and "a&lt;b" in shown and "a<b" not in shown
        assert ">512<" in shown  # a group
        assert made(*range(8, 48))._repr_html_().count("<tr>") == 13

    def test_a_report_is_the_commands(self, passkey, tmp_path):
        passkey.save(tmp_path / "new" / "report.json")
        report = json.loads((tmp_path / "new" / "report.json").read_text())
        assert report["rows"] == json.loads(passkey.to_json())
        assert report["command"] == (
            "jaxkv.evaluate('tiny-random', 'passkey', policies='full,streaming:sinks=4:window=32', "
            "lengths=(520, 560), depths=2, prefill_chunk=128, max_length=640)"
        )
        assert {"model", "device", "jax", "date"} < report.keys()
        for path, said in (("x.csv", "must end in .json"), (tmp_path / "a.json", "is a folder")):
            (tmp_path / "a.json").mkdir(exist_ok=True)
            with pytest.raises(InputError, match=said):
                passkey.save(path)

    def test_without_pandas_it_says_so(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(InputError, match="to_pandas needs pandas, which is not installed"):
            made(8).to_pandas()

    def test_pandas(self, monkeypatch):
        pandas = pytest.importorskip("pandas", reason="pandas is not installed")
        frame = made(8, 16).to_pandas()
        assert isinstance(frame, pandas.DataFrame) and len(frame) == 8
        assert frame.groupby("policy")["score"].mean().to_dict() == {"snapkv": 50.0, "tova": 50.0}


class TestPlots:
    def test_into_given_axes(self):
        figure = Figure(figsize=(9, 4), layout="constrained")
        one, two, three, four = figure.subplots(1, 4)
        results = made(8, 16)
        assert results.plot("tradeoff", ax=one) is one
        assert [line.get_label() for line in one.lines] == ["snapkv", "tova"]
        assert list(one.lines[0].get_xdata()) == [0.8, 1.6]
        assert list(one.lines[1].get_ydata()) == [1.0, 11.0]
        assert results[0].plot("heat", ax=two) is two
        assert two.images[0].get_array().tolist() == [[25.0], [75.0]]
        assert results[:2].plot("kept", ax=[three, four]) == [three, four]
        assert four.images[0].get_array().tolist() == [[1, 2], [3, 16]]
        figure.draw_without_rendering()

    def test_a_figure_of_its_own(self):
        import matplotlib.pyplot

        before = matplotlib.pyplot.get_fignums()
        axes = made(8, 16).plot("tradeoff")
        assert len(axes) == 2 and len(matplotlib.pyplot.get_fignums()) == len(before) + 1
        figure = axes[0].figure
        assert (
            figure.get_suptitle() == "passkey: score of 4 answers, question unknown when evicting"
        )
        assert list(axes[1].lines[0].get_xdata()) == [0.008, 0.016]
        matplotlib.pyplot.close(figure)
        heat = made(8, 16).plot("heat")
        assert len(heat) == 4
        matplotlib.pyplot.close(heat[0].figure)

    def test_the_curve_marks_the_caches_size(self, ppl):
        axis = ppl.plot("curve", ax=Figure(layout="constrained").subplots())
        labels = ["full", "streaming window=14", "streaming window=30"]
        assert [line.get_label() for line in axis.lines][:3] == labels
        assert ["cache full: 32 tokens" in text.get_text() for text in axis.texts].count(True) == 1
        (mark,) = [line for line in axis.lines if line.get_linestyle() == ":"][-1:]
        assert list(mark.get_xdata()) == [32, 32]

    def test_what_ppl_sampled_is_not_compared_with_what_it_read(self, model, text):
        results = jaxkv.evaluate(
            model, "ppl", policies="window:window=16,recompute:window=12", text_file=text,
            tokens=90, prefill_chunk=32, positions=3,
        )  # fmt: skip
        axis = results.plot("tradeoff", ax=Figure(layout="constrained").subplots())
        assert [line.get_label() for line in axis.lines] == ["window"]
        assert list(axis.lines[0].get_ydata()) == [results.found[0].by["common"]]

    @pytest.mark.parametrize(
        ("kind", "count", "said"),
        [
            ("nosuch", 1, "kind is 'nosuch'; it must be one of tradeoff, heat, kept, curve, bars"),
            ("curve", 1, "kind is 'curve', which shows a measure over the position, and rows of "
             "passkey have none; they give tradeoff, heat, kept, bars"),
            ("heat", 1, "ax is 1 axes; heat of 2 rows takes 2"),
            ("tradeoff", 3, "ax is 3 axes; tradeoff of 2 rows takes 1 or 2"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_one_line(self, kind, count, said):
        axes = Figure().subplots(1, count)
        with pytest.raises(InputError) as wrong:
            made(8).plot(kind, ax=axes)
        assert str(wrong.value) == said

    def test_axes_are_axes(self):
        for ax, said in (("here", "ax has 'here'; it must be axes"), ([], "ax is empty")):
            with pytest.raises(InputError, match=said):
                made(8).plot("tradeoff", ax=ax)

    def test_nothing_is_drawn_that_cannot_be(self):
        import matplotlib.pyplot

        before = matplotlib.pyplot.get_fignums()
        with pytest.raises(InputError):
            made(8).plot("curve")
        assert matplotlib.pyplot.get_fignums() == before

    def test_the_command_draws_each_kind_to_its_file(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(api, "run", lambda task, common, own, *rest: made(8, 16))
        for kind in TASKS["passkey"].kinds:
            path = tmp_path / f"{kind}.png"
            told(capsys, "passkey", "--plot", str(path), "--plot-kind", kind)
            assert path.read_bytes().startswith(b"\x89PNG")
        assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 4

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["passkey", "--plot-kind", "heat"], "--plot-kind is 'heat', and there is no picture"),
            (["passkey", "--plot", "x.png", "--plot-kind", "curve"], "--plot-kind is 'curve'; of "
             "passkey it must be one of tradeoff, kept, bars, heat"),
            (["attention", "--plot", "x.png", "--plot-kind", "heat"], "is not for attention"),
        ],
    )  # fmt: skip
    def test_a_kind_that_cannot_be_is_refused_before_the_work(self, capsys, words, said):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--model", "nosuch"])
        assert ended.value.code == 2 and said in capsys.readouterr().err

    def test_a_kind_that_rows_do_not_have_is_one_line(self, capsys, tmp_path, monkeypatch):
        result = dataclasses.replace(made(8).found[0], details={"query_aware": True})
        found = dataclasses.replace(made(8), found=(result,))
        monkeypatch.setattr(api, "run", lambda task, common, own, *rest: found)
        with pytest.raises(SystemExit):
            main(["passkey", "--plot", str(tmp_path / "x.png"), "--plot-kind", "heat"])
        assert "error: --plot-kind is 'heat', which shows scores by" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
