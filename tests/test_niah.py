# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Needles in haystacks, and chains of keys."""

from __future__ import annotations

import json

import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv.checkpoints import toy
from jaxkv.checkpoints.model import Model
from jaxkv.eval.__main__ import main
from jaxkv.eval.questions import answers
from jaxkv.eval.runner.options import parse_options
from jaxkv.eval.tasks import chain, niah


@pytest.fixture(scope="module")
def model() -> Model:
    return toy.load()


def quiet(what, done, total) -> None:
    pass


def options_of(*arguments: str):
    return parse_options(list(arguments))[2]


def run(capsys: pytest.CaptureFixture[str], *arguments: str):
    main([*arguments, "--model", "tiny-random", "--json"])
    return json.loads(capsys.readouterr().out)


class TestMetrics:
    def test_overlap_is_of_the_expected_words_that_differ(self):
        answer = (niah.ANSWER,)
        assert (
            niah.overlap(" Eat a sandwich and sit in Dolores Park on a sunny day.", answer) == 100
        )
        assert niah.overlap("", answer) == 0
        # "a" is twice in the answer and once in the set; "day" without its period is another word.
        assert niah.overlap("a a SUNNY day", answer) == pytest.approx(100 * 2 / 11)
        assert niah.overlap("x y", ("x z", "y")) == 100

    @pytest.mark.parametrize(
        "reference, text, score",
        [
            # What the package rouge_score 0.1.2 gives without stemming.
            (niah.NEEDLE, f" {niah.ANSWER}", 0.7058823529411764),
            ("the cat sat on the mat", "The the the cat, cat!", 0.5454545454545454),
            ("it's 3.5 well-known", "its 3 5 well known", 0.7272727272727272),
            ("a b", "", 0.0),
            ("a b", "c d", 0.0),
            ("Running dogs", "run the dog", 0.0),
        ],
    )
    def test_rouge1_is_that_of_the_package(self, reference, text, score):
        assert niah.rouge1(text, (reference,)) == pytest.approx(100 * score)
        assert niah.rouge1(text, ("none of it", reference)) == pytest.approx(100 * score)


class TestNeedle:
    def test_lengths_are_exact_and_needles_are_at_their_depth(self, model):
        options = options_of("niah", "--lengths", "900,1201", "--depths", "3")
        made = niah.make_rows(model, options, seed=0)
        assert [(row.length, row.depth) for row in made] == [
            (n, d) for n in (900, 1201) for d in (0.0, 50.0, 100.0)
        ]
        for row in made:
            assert len(answers.row_ids(model, row)) == row.length
            book = row.context.partition("<book> ")[2].partition(" </book>")[0]
            before, needle, after = book.partition(f"\n\n{niah.NEEDLE}\n\n")
            assert needle and row.answers == (niah.ANSWER,)
            if row.depth == 50:
                assert 0.25 < len(before) / len(before + after) < 0.6
            else:
                assert (after if row.depth else before) == ""
            assert row.max_new_tokens == 50

    def test_a_needle_stands_after_a_sentence_if_one_is_near(self):
        words = ["a"] * 9 + ["b."] + ["c"] * 90
        assert niah.place(words, 10) == niah.place(words, 49) == 10
        assert niah.place(words, 9) == 9
        assert niah.place(words, 60) == 60
        assert (niah.place(words, 0), niah.place(words, 100)) == (0, 100)
        assert niah.place(words[:30], 100) == 30
        assert niah.place([], 50) == 0

    def test_rows_do_not_depend_on_the_others(self, model):
        both = options_of("niah", "--lengths", "900,950", "--depths", "2", "--rows-per-cell", "2")
        one = options_of("niah", "--lengths", "950", "--depths", "2", "--rows-per-cell", "2")
        rows = niah.make_rows(model, both, seed=3)
        assert niah.make_rows(model, one, seed=3) == rows[4:]
        assert niah.make_rows(model, one, seed=4) != rows[4:]
        assert rows[4] != rows[5]

    def test_raw_is_the_script_of_duo_attention(self, model):
        options = options_of("niah", "--raw", "--haystack", "noise", "--lengths", "700")
        row = niah.make_row(options, 700, 50.0, 0, 8, "", raw=True)
        prompt = model.tokenizer.decode(answers.row_ids(model, row))
        assert prompt == (
            "<|im_start|> This is a very long story book: <book> The grass is green.\n\n"
            "Remember, the best thing to do in San Francisco is eat a sandwich and sit in Dolores "
            "Park on a sunny day.\n\nThe sky is blue. </book>.\n\nQuestion: Based on the content "
            "of the book, what is the best thing to do in San Francisco?\n\nAnswer: The best thing "
            "to do in San Francisco is"
        )

    def test_own_needle_and_metrics(self, model, tmp_path):
        path = tmp_path / "hay"
        path.write_text("One sentence. Another sentence! A third?")
        options = options_of(
            "niah", "--haystack", str(path), "--needle", "The code is 7.", "--question",
            "Which code?", "--answer", "7", "--answer-prefix", "It is", "--metric", "rouge1",
            "--lengths", "300", "--depths", "1",
        )  # fmt: skip
        (row,) = niah.make_rows(model, options, seed=0)
        assert row.answers == ("The code is 7.",) and row.metric is niah.rouge1
        assert "The code is 7." in row.context and "Another sentence!" in row.context
        assert (row.question, row.answer_prefix) == (
            "Question: Based on the content of the book, Which code?", "It is",
        )  # fmt: skip
        assert (
            options_of("niah", "--metric", "contained").measure.metric("Eat it", ("eat it",)) == 100
        )

    def test_report_and_heat_map(self, capsys, tmp_path):
        plot = tmp_path / "map.png"
        got = run(
            capsys, "niah", "--lengths", "600", "--depths", "2", "--policy", "window:window=20",
            "--prefill-chunk", "64", "--plot", str(plot),
        )  # fmt: skip
        assert (got["task"], got["n"]) == ("niah", 2)
        assert list(got["cells"]["600"]) == ["0", "100"]
        assert plot.read_bytes().startswith(b"\x89PNG")

    @pytest.mark.real_model
    @pytest.mark.slow
    def test_the_model_finds_it(self, smollm2):
        _, common, options = parse_options(
            ["niah", "--policy", "full", "--lengths", "300", "--depths", "2", *toys.REAL]
        )
        (got,) = niah.evaluate(smollm2, common, options, quiet)
        assert got.score == 100.0


class TestChain:
    @settings(deadline=None, max_examples=40)
    @given(st.integers(2, 4000), st.integers(0, 2**31))
    def test_every_key_has_exactly_one_successor(self, count, seed):
        keys = chain.make_keys(count, [seed])
        firsts, lasts = zip(*(key.split("-") for key in keys), strict=True)
        assert len(keys) == len(set(firsts)) == count
        assert set(firsts) == set(lasts)
        # One chain through all of them, and no shorter ones beside it.
        follows = dict(zip(firsts, lasts, strict=True))
        word, seen = firsts[0], 0
        while word is not None:
            seen, word = seen + 1, follows.pop(word, None)
        assert seen == count + 1
        assert chain.make_keys(count, [seed]) == keys
        assert not {word for key in chain.EXAMPLE for word in key.split("-")} & set(firsts)

    def test_scores_of_the_paper(self):
        """Its table 12, with the keys that it shows as being in the context."""
        whole = (
            "impossible-crawdad, crawdad-vehicle, vehicle-uncertainty, uncertainty-welfare, "
            "welfare-outrigger, outrigger-historical, historical-gator, gator-hugger, "
            "hugger-debris, debris-precious"
        )
        keys = {*whole.split(", "), "annoying-pentagon", "pentagon-fit"}

        def score(text: str, last: str | None = None) -> float:
            return chain.valid_chain(text, (), keys=keys, hops=10, last=last)

        assert score(whole) == 100
        assert (
            score("annoying-pentagon, pentagon-fit, fit-waggish, waggish-fishery, fishery-mosquito")
            == 20
        )
        assert (
            score(
                "impossible-crawdad, crawdad-vehicle, vehicle-uncertainty, welfare-outrigger, "
                "outrigger-historical, historical-gator, gator-hugger, hugger-debris, "
                "debris-precious, uncertainty-welfare"
            )
            == 30
        )
        assert score(whole + ", more-keys, that-do, not-count") == 100
        assert score("1. Impossible-Crawdad\n2. crawdad-vehicle.") == 20
        assert score("crawdad-vehicle-uncertainty, vehicle-uncertainty") == 10
        assert score(whole, last="impossible") == 100
        assert score(whole, last="other") == 0
        assert score("nothing") == score("") == 0

    @pytest.mark.parametrize("start", [False, True])
    def test_lengths_are_exact_and_the_reference_is_right(self, model, start):
        flags = ["--start"] if start else []
        options = options_of("chain", "--lengths", "900,1333", "--rows", "2", "--hops", "4", *flags)
        made = chain.make_rows(model, options, seed=1)
        assert [row.length for row in made] == [900, 900, 1333, 1333]
        assert made[0] != made[1]
        for row in made:
            assert len(answers.row_ids(model, row)) == row.length
            text = ", ".join(row.answers)
            assert row.metric(text, row.answers) == 100.0
            assert row.metric(row.answers[1] + ", " + text, row.answers) == (0 if start else 25)
            assert len(model.tokenizer.encode(text)) < row.max_new_tokens
            listed = [x[13:] for x in row.context.replace(":N", ":\nN").split("\n") if ": " in x][
                1:
            ]
            assert set(row.answers) <= set(listed)
            assert listed != sorted(listed) and len(set(listed)) == len(listed) > 4
            follow = row.answers[0].partition("-")[0]
            if start:
                assert row.answer_prefix.rstrip(",") in listed
                assert row.answer_prefix.endswith(f"-{follow},")
            else:
                assert row.answer_prefix == ""

    def test_the_prompt_is_that_of_the_paper(self):
        row = chain.make_row(11, "", 0, 10, False, (0,))
        assert row.context.startswith(
            "You are given many keys composed of a few words. Your task is to generate a chain of "
            "10 keys such that the first word of the current key is the last word of the previous "
            "key. Separate the keys with comma. Example: waggish-fishery, fishery-mosquito, "
        )
        assert (
            "bathhouse-woman. You must generate keys that are in the context. DO NOT REPEAT THE "
            in (row.context)
        )
        assert row.context.count("Name of key: ") == 11
        assert row.question.endswith("keys that are in the context. Chain of ten keys:")

    def test_report(self, capsys):
        got = run(
            capsys, "chain", "--lengths", "800", "--rows", "1", "--hops", "2", "--policy",
            "window:window=20", "--prefill-chunk", "64",
        )  # fmt: skip
        assert (got["task"], got["n"], got["score"], got["by"]) == ("chain", 1, 0.0, {"800": 0.0})


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["niah", "--metric", "bleu"], "overlap, rouge1, contained"),
        (["niah", "--depths", "0"], "--depths is 0"),
        (["niah", "--rows-per-cell", "0"], "--rows-per-cell"),
        (["niah", "--needle", " "], "--needle is empty"),
        (["niah", "--answer", ""], "--answer is empty"),
        (["niah", "--question", ""], "--question is empty"),
        (["niah", "--haystack", "no/such/file"], "no/such/file"),
        (["niah", "--lengths", "x"], "--lengths"),
        (["niah", "--model", "tiny-random", "--lengths", "50"], "50 tokens is too small"),
        (["chain", "--hops", "0"], "--hops is 0"),
        (["chain", "--rows", "0"], "--rows is 0"),
        (["chain", "--lengths", "0"], "at least 1"),
        (["chain", "--model", "tiny-random", "--lengths", "50"], "50 tokens is too small"),
        (["chain", "--model", "tiny-random", "--lengths", "620"], "chains of 10 keys"),
    ],
)
def test_wrong_input_is_one_line(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert said in err.splitlines()[-1] and "Traceback" not in err


def test_shuffles_differ(model):
    """The order in the context is not that of the chain."""
    keys = chain.make_keys(30, (0,))
    row = chain.make_row(30, "", 0, 10, False, (0,))
    listed = row.context.split("Name of key: ")[1:]
    order = np.array([keys.index(key.strip()) for key in listed])
    assert sorted(order) == list(range(30)) and (np.diff(order) != 1).sum() > 20
