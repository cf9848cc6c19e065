# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.eval`: perplexity, rows and passkey."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from jaxkv.checkpoints import toy
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.eval.__main__ import main
from jaxkv.eval.questions import answers, metrics, rows
from jaxkv.eval.questions.wordings import WORDINGS
from jaxkv.eval.runner.options import make_policies, parse_options
from jaxkv.eval.runner.result import Result, print_table
from jaxkv.eval.tasks import copying, passkey, ppl
from jaxkv.eval.tasks.nll import bounded_tokens, score_decoded, score_sampled, score_stream
from jaxkv.models.decoder import forward, init_cache
from jaxkv.policies.full import Full
from jaxkv.policies.recompute import SlidingRecompute
from jaxkv.policies.snapkv import SnapKV
from jaxkv.policies.streaming import StreamingLLM
from jaxkv.policies.window import Window

ROW = {"context": "The key is 42.\n", "question": "What is the key?", "answer": "42"}


@pytest.fixture(scope="module")
def model() -> Model:
    return toy.load()


@pytest.fixture(scope="module")
def stream() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 512, 60).astype(np.int32)


def numpy_nll(model: Model, tokens: np.ndarray) -> np.ndarray:
    """Of every token of [B, S] but the first, [B, S - 1], from the logits of one full forward."""
    cache = init_cache(model.config, Full(), *tokens.shape)
    compiled = jax.jit(forward, static_argnums=(1, 2))
    logits, _ = compiled(model.params, model.config, Full(), jnp.asarray(tokens), cache)
    logits = np.asarray(logits, np.float64)[:, :-1]
    top = logits.max(axis=-1, keepdims=True)
    lse = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    return lse - np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> object:
    main([*arguments, "--model", "tiny-random", "--json"])
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("jaxkv.eval: error: ")
    assert "Traceback" not in err
    return last


class TestPerplexity:
    def test_is_that_of_the_logits(self, model, stream):
        expected = numpy_nll(model, stream[None])[0]
        for policy in (Full(), StreamingLLM(sinks=2, window=500)):
            scores = score_stream(model, policy, stream, 4096, chunk=16)
            np.testing.assert_array_equal(scores.positions, np.arange(1, 60))
            np.testing.assert_allclose(scores.nll, expected, rtol=1e-4, atol=1e-3)
            wanted = math.exp(expected[:9].mean())
            assert ppl.perplexity(scores, lambda at: at < 10) == pytest.approx(wanted, rel=1e-2)

    def test_does_not_depend_on_the_chunk(self, model, stream):
        policy = StreamingLLM(sinks=2, window=9)
        large, small = (
            score_stream(model, policy, stream[:30], 4096, chunk=chunk).nll for chunk in (32, 1)
        )
        np.testing.assert_allclose(large, small, rtol=1e-4, atol=1e-3)

    def test_after_a_prompt_it_is_that_of_decoding(self, model, stream):
        expected = numpy_nll(model, stream[None])[0][19:]
        for policy in (Full(), SnapKV(budget=60, window=4)):
            scores = score_decoded(model, policy, stream, 20, 4096)
            np.testing.assert_array_equal(scores.positions, np.arange(20, 60))
            np.testing.assert_allclose(scores.nll, expected, rtol=1e-4, atol=1e-3)

    def test_recompute_is_a_forward_over_the_window(self, model, stream):
        policy = SlidingRecompute(window=7)
        positions = np.array([8, 20, 59])
        scores = score_sampled(model, policy, stream, positions)
        slices = np.stack([stream[at - 8 : at + 1] for at in positions])
        direct = numpy_nll(model, slices)[:, -1]
        np.testing.assert_allclose(scores.nll, direct, rtol=1e-4, atol=1e-3)

    def test_full_stops_where_its_cache_ends(self, model, stream):
        scores = score_stream(model, Full(), stream, 20, chunk=16)
        assert scores.positions[-1] == 19
        streaming = score_stream(model, Window(window=5), stream, 20, chunk=16)
        assert streaming.positions[-1] == 59

    def test_text_is_cut_to_its_first_tokens(self, model):
        text = "The rain in Spain. " * 300
        ids = model.tokenizer.encode(text)
        for tokens in (2, 100, len(ids), len(ids) + 5):
            got = ppl.token_stream(model, text, tokens)
            assert got.tolist() == ids[:tokens]

    def test_positions_are_one_a_stretch(self):
        got = ppl.stratified(10, 110, 10, seed=3)
        assert [int(at - 10) // 10 for at in got] == list(range(10))
        assert ppl.stratified(5, 8, 10, seed=0).tolist() == [5, 6, 7]
        assert (ppl.stratified(10, 110, 10, seed=4) != got).any()

    def test_bounded_tokens(self, model):
        assert bounded_tokens(model, Full()) is None
        assert bounded_tokens(model, StreamingLLM(sinks=2, window=9)) == 11
        assert bounded_tokens(model, SlidingRecompute(window=9)) == 9

    def test_report_and_plot(self, capsys, tmp_path):
        text, plot = tmp_path / "text", tmp_path / "new" / "ppl.png"
        text.write_text("The grass is green, or so they say. " * 10)
        got = run(
            capsys, "ppl", "--text-file", str(text), "--tokens", "60", "--max-length", "40",
            "--positions", "5", "--prefill-chunk", "32", "--plot", str(plot),
            "--policy", "full,streaming:sinks=2,recompute:window=12", "--policy.window", "10",
        )  # fmt: skip
        full, streaming, recompute = got
        assert [row["policy"]["name"] for row in got] == ["full", "streaming", "recompute"]
        assert streaming["policy"] == {"name": "streaming", "sinks": 2, "window": 10}
        assert recompute["policy"]["window"] == 12
        assert [row["n"] for row in got] == [39, 59, 5]
        assert [row["common_tokens"] for row in got] == [39] * 3
        assert full["by"]["sampled"] is None  # it does not reach all of them
        assert streaming["by"]["sampled"] is not None
        assert recompute["score"] == recompute["by"]["sampled"]
        assert full["score"] == full["by"]["all"] == full["by"]["common"]
        assert not recompute["first_tokens_included"]
        for row in got:
            assert set(row["cache"]) == {"nominal_bytes", "physical_bytes", "peak_bytes"}
        assert full["cache"]["nominal_bytes"] == 39 * 3 * 2 * 2 * 16 * 4
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert [path.name for path in plot.parent.iterdir()] == ["ppl.png"]

    def test_a_report_file_says_what_made_it(self, capsys, tmp_path):
        text, out = tmp_path / "some text", tmp_path / "new" / "ppl.json"
        text.write_text("The grass is green, or so they say. " * 10)
        got = run(
            capsys, "ppl", "--text-file", str(text), "--tokens", "60", "--prompt-tokens", "20",
            "--policy", "full,recycled:k=8:stride=4", "--out", str(out),
        )  # fmt: skip
        report = json.loads(out.read_text())
        assert report["rows"] == got
        assert {"device", "platform", "jax", "python", "date"} < set(report)
        assert report["command"].startswith("python -m jaxkv.eval ppl --text-file ")
        assert shlex.split(report["command"])[5] == str(text)
        full, recycled = got
        assert "steps" not in full
        # The prompt predicts the first of 40 tokens, and a step each of the others; every fourth
        # step is a full one.
        assert recycled["steps"]["decoded"] == 39
        assert recycled["steps"]["effective_stride"] == 39 / 9

    def test_a_number_that_is_not_finite_is_null(self):
        row = Result("ppl", math.nan, 0, {"all": math.inf}, {"name": "full"}, {})
        assert row.as_json()["score"] is None
        assert row.as_json()["by"] == {"all": None}


class TestPieces:
    def test_they_make_the_whole_prompt(self, model):
        row = rows.row_of(ROW | {"answer_prefix": "It is"}, "row")
        first, rest = answers.pieces(model, row)
        decode = model.tokenizer.decode
        assert decode(first, skip_special=False) == "<|im_start|>user\nThe key is 42.\n"
        assert decode(rest, skip_special=False) == (
            "What is the key?<|im_end|>\n<|im_start|>assistant\nIt is"
        )

    def test_a_token_across_the_boundary_goes_to_the_second(self, model):
        row = rows.row_of({"context": "so", "question": "on", "answer": "x"}, "row")
        first, rest = answers.pieces(model, row)
        ids = model.tokenizer.encode(
            "<|im_start|>user\nsoon<|im_end|>\n<|im_start|>assistant\n", True
        )
        assert first + rest == ids

    @pytest.mark.parametrize("context, question", [("", "Why?"), ("Because.", "")])
    def test_one_may_be_empty(self, model, context, question):
        row = rows.row_of({"context": context, "question": question, "answer": "x"}, "row")
        first, rest = answers.pieces(model, row)
        text = model.tokenizer.decode(first, skip_special=False)
        assert text == f"<|im_start|>user\n{context}"
        assert rest


class TestRows:
    @pytest.mark.parametrize("form", ["list", "lines"])
    def test_formats(self, tmp_path, form):
        values = [ROW, ROW | {"answer": ["a", "b\u2028"], "max_new_tokens": 3, "length": 512}]
        text = (
            json.dumps(values, ensure_ascii=False)
            if form == "list"
            else "\n".join(json.dumps(v, ensure_ascii=False) for v in values) + "\n\n"
        )
        path = tmp_path / "rows"
        path.write_text(text, encoding="utf-8")
        first, second = rows.read_rows(str(path))
        assert (first.answers, first.max_new_tokens, first.length) == (("42",), 128, None)
        assert (second.answers, second.max_new_tokens) == (("a", "b\u2028"), 3)
        assert second.length == 512

    def test_metric_is_the_fraction_contained(self):
        assert metrics.contained("It is Paris.", ["paris", "rome"]) == 50.0

    def test_groups(self):
        made = [
            rows.row_of(ROW | {"task": "qa", "length": n, "depth": d}, "row")
            for n in (5, 7)
            for d in (0, 50.5)
        ]
        by = answers.group_scores(made, [0.0, 100.0, 100.0, 100.0])
        assert by == {"qa": 75.0, "5": 50.0, "7": 100.0, "depth 0": 50.0, "depth 50.5": 100.0}
        assert answers.cells(made, [0.0, 100.0, 100.0, 100.0])["5"] == {"0": 0.0, "50.5": 100.0}

    def test_batches_and_query_awareness_change_nothing_under_full(self, model):
        made = [
            rows.row_of(ROW | {"context": "word " * n, "max_new_tokens": new}, "row")
            for n, new in ((40, 4), (3, 6), (20, 5))
        ]
        prompts = [answers.pieces(model, row) for row in made]
        _, common, _ = parse_options(["ppl", "--prefill-chunk", "32"])

        def texts(query_aware: bool, size: int) -> list[str]:
            manner = answers.Manner(query_aware, size)
            return answers.answer_rows(
                model, common, Full(), manner, made, prompts, lambda done, total: None
            ).texts

        expected = texts(False, 1)
        assert all(expected)
        assert texts(True, 1) == expected
        assert texts(True, 2) == expected

    def test_saved_rows_are_read_as_they_were(self, tmp_path):
        made = rows.row_of(ROW | {"metric": "token_f1", "chat": False, "depth": 12.5}, "row")
        rows.save_rows(str(tmp_path / "rows.jsonl"), [made])
        assert rows.read_rows(str(tmp_path / "rows.jsonl")) == (made,)
        assert made.metric is metrics.token_f1 and made.chat is False
        for wrong in ({"metric": "rouge"}, {"metric": [1]}, {"chat": 2}):
            with pytest.raises(InputError, match="it must be"):
                rows.row_of(ROW | wrong, "row")

    def test_score_and_bars(self, capsys, tmp_path):
        path, plot = tmp_path / "rows.jsonl", tmp_path / "rows.svg"
        path.write_text(json.dumps(ROW | {"max_new_tokens": 4, "task": "qa"}))
        got = run(
            capsys, "rows", "--rows", str(path), "--plot", str(plot), "--policy", "full",
            "--prefill-chunk", "32",
        )  # fmt: skip
        assert isinstance(got, dict)
        assert (got["task"], got["score"], got["n"]) == ("rows", 0.0, 1)
        assert got["by"] == {"qa": 0.0}
        assert plot.read_text().lstrip().startswith("<?xml")


class TestPasskey:
    def test_prompts_fill_their_length_and_needles_are_at_their_depth(self, model):
        made = passkey.make_rows(model, (600, 900), depths=3, rows_per_cell=1, seed=0)
        assert [(row.length, row.depth) for row in made] == [
            (n, d) for n in (600, 900) for d in (0.0, 50.0, 100.0)
        ]
        for row in made:
            tokens = len(answers.row_ids(model, row))
            assert row.length is not None and row.depth is not None
            assert row.length - 30 < tokens <= row.length
            before, _, after = row.context.partition("One of the special magic numbers")
            assert row.answers[0] in after
            noise_before = before.count(".") - 3  # three sentences of instructions
            noise = row.context.count(".") - 4
            assert noise_before == round(noise * row.depth / 100)
            assert len(row.answers[0]) == 7

    def test_rows_do_not_depend_on_the_others(self, model):
        both = passkey.make_rows(model, (600, 700), 2, 1, seed=5)
        assert passkey.make_rows(model, (700,), 2, 1, seed=5) == both[2:]
        assert passkey.make_rows(model, (700,), 2, 1, seed=6) != both[2:]

    def test_wordings_are_in_their_own_texts_and_have_scores_of_their_own(self, model):
        made = passkey.make_rows(model, (700,), 2, 1, seed=0, wordings=tuple(WORDINGS))
        assert [row.task for row in made[::2]] == [f"{name}-700" for name in WORDINGS]
        for row, wording in zip(made[1::2], WORDINGS.values(), strict=True):
            number = row.answers[0]
            assert len(number) == wording.digits and row.context.count(number) in (1, 2)
            assert row.context.startswith(wording.intro)
            before = row.context.partition(wording.key.partition(" {")[0])[0]
            straw = wording.hay()
            assert before.endswith((*(f"{x} " for x in straw), f"{wording.intro}\n"))
            assert 600 < len(answers.row_ids(model, row)) <= 700
        assert passkey.make_rows(model, (700,), 2, 1, seed=0)[0].task is None

    def test_classic_is_a_wording(self):
        for words in (["--classic"], ["--wording", "classic"]):
            assert parse_options(["passkey", *words])[2].wordings == ("classic",)
        assert parse_options(["passkey", "--wording", "all"])[2].wordings == tuple(WORDINGS)

    def test_report_rows_and_heat_map(self, capsys, tmp_path, model):
        saved, plot = tmp_path / "rows.jsonl", tmp_path / "map.png"
        main(
            ["passkey", "--model", "tiny-random", "--lengths", "520", "--depths", "2",
             "--policy", "streaming:window=32", "--save-rows", str(saved), "--plot", str(plot),
             "--prefill-chunk", "128"]
        )  # fmt: skip
        out = capsys.readouterr().out
        assert "streaming sinks=4 window=32" in out and "depth 100" in out
        assert rows.read_rows(str(saved)) == passkey.make_rows(model, (520,), 2, 1, seed=0)
        assert plot.read_bytes().startswith(b"\x89PNG")

    @pytest.mark.real_model
    @pytest.mark.slow
    def test_the_model_finds_it(self, smollm2):
        _, common, options = parse_options(
            ["passkey", "--policy", "full", "--lengths", "300", "--depths", "2", *toys.REAL]
        )
        (got,) = passkey.evaluate(smollm2, common, options, lambda what, done, total: None)
        assert (got.score, got.n) == (100.0, 2)


class TestCopy:
    def test_every_line_but_the_first_is_asked_for_and_fits_in_the_answer(self, model):
        row = copying.make_row(model, 9, seed=0, index=2)
        listed = row.context.strip().split("\n")[2:]
        assert len({line.partition(":")[0] for line in listed}) == 9
        assert row.answer_prefix.endswith("\n" + listed[0])
        assert row.answers == tuple(listed[1:])
        assert len(model.tokenizer.encode("\n".join(listed))) < row.max_new_tokens
        assert row != copying.make_row(model, 9, seed=0, index=3)
        assert row == copying.make_row(model, 9, seed=0, index=2)

    def test_report(self, capsys):
        got = run(
            capsys, "copy", "--lines", "2", "--cases", "2", "--policy", "streaming-plus:window=9"
        )
        assert (got["task"], got["n"], got["score"]) == ("copy", 2, 0.0)
        assert got["query_aware"] is True

    @pytest.mark.real_model
    @pytest.mark.slow
    def test_the_model_copies_a_short_list(self, smollm2):
        _, common, options = parse_options(
            ["copy", "--policy", "full", "--lines", "8", "--cases", "1", *toys.REAL]
        )
        (full,) = copying.evaluate(smollm2, common, options, lambda what, done, total: None)
        assert full.score == 100.0


def test_a_table_says_what_was_known(capsys):
    sizes = {"nominal_bytes": 1, "physical_bytes": 2, "peak_bytes": 3}

    def found(name: str, **details):
        return Result("passkey", 50.0, 4, {}, {"name": name}, sizes, details)

    print_table([found("full", query_aware=True), found("tova", query_aware=False), found("h2o")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    said = {words[0]: words[1] for words in lines if words and words[0] in ("full", "tova", "h2o")}
    assert said == {"full": "aware", "tova": "agnostic", "h2o": "-"}
    print_table([found("full")])
    assert "query" not in capsys.readouterr().out


class TestOptions:
    def test_policies(self):
        got = make_policies("full,window:window=7, streaming:sinks=1", {"window": 9, "sinks": 2})
        assert got == (Full(), Window(window=7), StreamingLLM(sinks=1, window=9))

    def test_config_file(self, tmp_path):
        path = tmp_path / "eval.yaml"
        path.write_text("policy: full,window\npolicy.window: 5\ntokens: 9\nprefill-chunk: 3\n")
        task, common, own = parse_options(["ppl", "--config", str(path), "--tokens", "8"])
        assert task.name == "ppl"
        assert common.policies == (Full(), Window(window=5))
        assert (own.tokens, common.prefill_chunk) == (8, 3)

    @pytest.mark.parametrize("arguments", [["--help"], ["ppl", "--help"], ["passkey", "-h"]])
    def test_help(self, capsys, arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert "jaxkv.eval" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "arguments, said",
        [
            ([], "ppl"),
            (["nosuch"], "passkey"),
            (["--json", "ppl"], "comes first"),
            (["ppl", "--policy", "nosuch"], "full"),
            (["ppl", "--policy", "full,,window"], "empty"),
            (["ppl", "--policy", "full:window"], "FIELD=VALUE"),
            (["ppl", "--policy", "full:window=3"], "window"),
            (["ppl", "--policy", "window:window=x"], "int"),
            (["ppl", "--policy", "full", "--policy.window", "3"], "window"),
            (["ppl", "--tokens", "0"], "at least 2"),
            (["ppl", "--tokens", "many"], "many"),
            (["ppl", "--positions", "0"], "at least 1"),
            (["ppl", "--prompt-tokens", "-1"], "at least 0"),
            (["ppl", "--model", "tiny-random", "--policy", "snapkv"], "--prompt-tokens"),
            (["ppl", "--model", "tiny-random", "--prompt-tokens", "9", "--tokens", "8"], "below"),
            (["ppl", "--prefill-chunk", "0"], "at least 1"),
            (["ppl", "--kv-dtype", "int3"], "float32"),
            (["ppl", "--seed", "-1"], "at least 0"),
            (["ppl", "--plot", "x.doc"], ".png"),
            (["ppl", "--out", "/"], "folder"),
            (["ppl", "--out", "/dev/null/x.json"], "not a folder"),
            (["ppl", "--text-file", "no/such/file"], "no/such/file"),
            (["ppl", "--model", "tiny-random", "--policy", "recompute", "--tokens", "9"], "window"),
            (["ppl", "--nosuch", "1"], "nosuch"),
            (["rows"], "--rows"),
            (["rows", "--rows", "no/such/file"], "no/such/file"),
            (["rows", "--batch-size", "0", "--rows", "/dev/null"], "/dev/null"),
            (["passkey", "--lengths", "5,x"], "5,x"),
            (["passkey", "--lengths", "0"], "at least 1"),
            (["passkey", "--depths", "0"], "at least 1"),
            (["passkey", "--digits", "10"], "from 1 to 9"),
            (["passkey", "--classic", "--wording", "safe"], "--classic is a wording, and"),
            (["passkey", "--wording", "ruler,none"], "'none'; each must be one of ruler, classic"),
            (["passkey", "--batch-size", "0"], "at least 1"),
            (["copy", "--lines", "1"], "from 2 to"),
            (["copy", "--cases", "0"], "at least 1"),
            (["passkey", "--model", "tiny-random", "--lengths", "30"], "30"),
            (["passkey", "--model", "tiny-random", "--lengths", "520", "--max-length", "99",
              "--policy", "full", "--depths", "1"], "99"),
        ],
    )  # fmt: skip
    def test_wrong_input_is_one_line(self, capsys, arguments, said):
        assert said in fails(capsys, *arguments)

    @pytest.mark.parametrize(
        "text, said",
        [
            ("", "no text"),
            ("[]", "no rows"),
            ("[1, 2", "not JSON"),
            ('{"context": "a"', "line 1"),
            ("3", "row 1"),
            ('{"context": "a", "question": "b"}', "answer"),
            (json.dumps(ROW) + "\n" + json.dumps({**ROW, "answer": []}), "row 2"),
            (json.dumps({**ROW, "answer": 42}), "answer"),
            (json.dumps({**ROW, "context": None}), "context"),
            (json.dumps({**ROW, "max_new_tokens": 0}), "max_new_tokens"),
            (json.dumps({**ROW, "length": "x"}), "length"),
            (json.dumps({**ROW, "depth": "x"}), "depth"),
            (json.dumps({**ROW, "context": " ", "question": ""}), "empty"),
        ],
    )
    def test_wrong_rows_are_one_line(self, capsys, tmp_path: Path, text: str, said: str):
        path = tmp_path / "rows"
        path.write_text(text)
        assert said in fails(capsys, "rows", "--rows", str(path))

    def test_text_that_is_no_text(self, capsys, tmp_path):
        path = tmp_path / "text"
        path.write_bytes(b"\xff\xfe\xff")
        assert "UTF-8" in fails(capsys, "ppl", "--text-file", str(path))
        path.write_text(" \n")
        assert "no text" in fails(capsys, "ppl", "--text-file", str(path))
