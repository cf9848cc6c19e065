# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""StreamEval and streams of multiple-choice questions."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv.cache.bytes import nbytes, tokens_seen
from jaxkv.checkpoints import toy
from jaxkv.checkpoints.model import Model
from jaxkv.eval.__main__ import main
from jaxkv.eval.runner.options import parse_options
from jaxkv.eval.tasks.streams import stream as streams
from jaxkv.eval.tasks.streams import streameval, streamqa
from jaxkv.eval.tasks.streams.stream import Asked
from jaxkv.policies.full import Full
from jaxkv.policies.recompute import SlidingRecompute
from jaxkv.policies.window import Window

HUB = {
    "question": "Which is a planet?",
    "choices": {"text": ["the Moon", "Mars", "the Sun"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
OFFICIAL = {
    "id": "x",
    "question": {
        "stem": "Which is cold?",
        "choices": [{"text": "fire", "label": "1"}, {"text": "ice", "label": "2"}],
    },
    "answerKey": "2",
}


@pytest.fixture(scope="module")
def model() -> Model:
    return toy.load()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "arc.jsonl"
    path.write_text("\n".join(json.dumps(q) for q in (HUB, OFFICIAL, HUB, HUB)) + "\n\n")
    return str(path)


# All tests use the same few programs: compiling is most of their time.
WINDOW = Window(window=30)
SHAPES = ("--prefill-chunk", "64", "--max-length", "512")


def run(capsys: pytest.CaptureFixture[str], *arguments: str):
    main([*arguments, "--model", "tiny-random", "--json", *SHAPES])
    return json.loads(capsys.readouterr().out)


def quiet(what, done, total) -> None:
    pass


def began(model: Model, policy, rows: int = 1):
    _, common, _ = parse_options(["streameval", *SHAPES])
    return streams.begin(model, common, policy, rows, 64, 512, 3, streameval.STOP)


class TestRecord:
    @settings(deadline=None)
    @given(
        lines=st.integers(1, 150),
        back=st.integers(1, 60),
        every=st.integers(1, 30),
        seed=st.integers(0, 2**31),
        named=st.booleans(),
    )
    def test_answers_are_exactly_so_many_lines_back(self, lines, back, every, seed, named):
        turns = streameval.make_turns(lines, back, every, seed, 0, named)
        assert [turn.line for turn in turns] == [
            n for n in range(lines) if n % every == 0 and n >= back
        ]
        record: list[tuple[str, str]] = []
        for turn in turns:
            *new, query = turn.text.split("\n")
            found = [re.fullmatch(r"The REGISTER_CONTENT in line (\S+) is <(\d+)>", x) for x in new]
            record += [(x[1], x[2]) for x in found if x]
            # The paper's header is all else that the stream has.
            assert len(new) - sum(map(bool, found)) == (turn is turns[0])
            asked = re.fullmatch(r"Query: The REGISTER_CONTENT in line (\S+) is", query)
            assert asked and len(record) == turn.line + 1
            assert record[-1 - back] == (asked[1], turn.answer)
            assert 1 <= int(turn.answer) <= 50000
        assert len({name for name, _ in record}) == len(record)
        assert turns == streameval.make_turns(lines, back, every, seed, 0, named)

    def test_lines_depend_on_the_seed_and_the_stream_only(self):
        def lines(*arguments) -> list[str]:
            text = "\n".join(turn.text for turn in streameval.make_turns(*arguments))
            return re.findall(r"<\d+>", text)

        one = lines(91, 20, 10, 3, 0)
        assert len(one) == 91
        assert lines(91, 50, 3, 3, 0) == one
        assert lines(91, 20, 10, 4, 0) != one
        assert lines(91, 20, 10, 3, 1) != one

    def test_a_stream_of_tokens_holds_what_fits(self, model):
        turns = streameval.make_turns(200, 20, 10, 0, 0)
        sizes = [len(model.tokenizer.encode(f"{turn.text} <{turn.answer}>\n")) for turn in turns]
        assert streameval.within(model, turns, sum(sizes[:4])) == 4
        assert streameval.within(model, turns, sum(sizes[:4]) - 1) == 3
        assert streameval.within(model, turns, 1) == 0

    @pytest.mark.parametrize(
        "text, number",
        [
            (" <45603>", "45603"),
            ("45603 and 12", "45603"),
            (" line 3: <45603>", "3"),
            ("<045>", "045"),
            (" none", None),
            ("", None),
        ],
    )
    def test_first_number(self, text, number):
        assert streameval.first_number(text) == number


class TestStream:
    def test_nothing_is_ever_reset_and_everything_is_taken_in(self, model, monkeypatch):
        rows = [streameval.make_turns(9, 2, 2, 0, i) for i in range(2)]
        session = began(model, WINDOW, 2)
        before = nbytes(session.state.cache)
        fed, made = np.zeros(2, int), np.zeros(2, int)
        feed, dispatch = session.feed, session.run

        def counted_feed(prompts):
            fed[:] += [len(prompt) for prompt in prompts]
            np.testing.assert_array_equal(
                tokens_seen(session.state.cache.layers) + [len(p) for p in prompts], fed + made
            )
            feed(prompts)

        def counted_run(most):
            for ids in dispatch(most):
                made[:] += (ids >= 0).sum(axis=1)
                yield ids

        monkeypatch.setattr(session, "feed", counted_feed)
        monkeypatch.setattr(session, "run", counted_run)
        asked = streameval.ask(session, rows)
        assert [one.place for one in asked] == [2, 2, 4, 4, 6, 6, 8, 8]
        np.testing.assert_array_equal(tokens_seen(session.state.cache.layers), fed + made)
        assert nbytes(session.state.cache) == before
        # At the last question all but its answer was in the stream.
        assert {one.tokens for one in asked[-2:]} <= {
            *(fed + made - 1),
            *(fed + made - 2),
            *(fed + made - 3),
        }

    def test_a_stream_is_the_same_alone_and_beside_others(self, model):
        rows = [streameval.make_turns(7, 2, 2, 0, i) for i in range(2)]
        both = streameval.ask(began(model, WINDOW, 2), rows)
        for i, turns in enumerate(rows):
            alone = streameval.ask(began(model, WINDOW), [turns])
            assert both[i::2] == alone

    def test_right_answers_score_100(self, model, monkeypatch):
        turns = streameval.make_turns(41, 20, 10, 0, 0)
        answers = iter([f" <{turns[0].answer}>", " <1x>", f" {turns[2].answer}, I think"])

        def told(session, prompt_tokens):
            class Said:
                texts = [next(answers)]
                token_ids = [session.model.tokenizer.encode(texts[0] + "\n")]

            return Said

        monkeypatch.setattr(streameval, "answer", told)
        asked = streameval.ask(began(model, WINDOW), [turns])
        assert [one.score for one in asked] == [100.0, 0.0, 100.0]
        assert all(one.formed for one in asked)

    def test_a_full_cache_ends_the_questions(self, capsys):
        full, window = run(
            capsys, "streameval", "--lines", "13", "--every", "4", "--back", "2", "--policy",
            "full,window:window=30", "--max-new-tokens", "2",
        )  # fmt: skip
        assert window["n"] == window["questions"] == 3
        assert full["n"] == 2
        assert full["tokens"] + 2 <= 512 < window["tokens"]
        assert full["by"]["lines 12"] is None and window["by"]["lines 12"] == 0.0

    @pytest.mark.slow
    def test_recompute_is_its_window_again_and_again(self, model):
        """With a window that holds everything it says what a full cache says."""
        turns = streameval.make_turns(3, 1, 1, 0, 0)
        wide, full = began(model, SlidingRecompute(window=300)), began(model, Full())
        asked = streameval.ask(wide, [turns])
        assert asked == streameval.ask(full, [turns])
        assert asked[-1].tokens < 300
        np.testing.assert_allclose(wide.state.logits, full.state.logits, rtol=1e-4, atol=1e-3)

    def test_distances_streams_and_plot(self, capsys, tmp_path):
        plot, out = tmp_path / "stream.svg", tmp_path / "report.json"
        got = run(
            capsys, "streameval", "--lines", "16", "--every", "5", "--distances", "5,15", "--named",
            "--streams", "2", "--policy", "window:window=30", "--max-new-tokens", "2",
            "--plot", str(plot), "--out", str(out),
        )  # fmt: skip
        assert got["n"] == got["questions"] == 2 * (3 + 1)
        assert list(got["by"]) == ["5 back", "15 back", "lines 5", "lines 10", "lines 15"]
        assert got["score"] == 0.0
        assert "15 back" not in plot.read_text() and "distance of the answer" in plot.read_text()

    def test_a_finished_stream_is_not_run_again(self, tmp_path, model):
        from jaxkv.eval.runner.journal import Journal

        _, common, options = parse_options(
            ["streameval", "--lines", "11", "--distances", "5,10", "--every", "5",
             "--max-new-tokens", "2", "--policy", "window:window=30", *SHAPES]
        )  # fmt: skip
        common = dataclasses.replace(common, journal=Journal(tmp_path / "work"))
        (first,) = streameval.evaluate(model, common, options, quiet)
        common = dataclasses.replace(common, journal=Journal(tmp_path / "work"))
        told = []
        (again,) = streameval.evaluate(model, common, options, lambda *said: told.append(said))
        assert again == first and not told

    @pytest.mark.real_model
    @pytest.mark.slow
    def test_sinks_keep_the_answers_coming(self, smollm2):
        _, common, options = parse_options(
            ["streameval", "--named", "--lines", "51", "--policy",
             "streaming:sinks=4:window=600"]
        )  # fmt: skip
        (sinks,) = streameval.evaluate(smollm2, common, options, quiet)
        assert sinks.score >= 75  # a window of 604 without sinks has 25


class TestReport:
    def test_parts_and_groups(self):
        asked = [
            Asked(place, 10 * place, 100.0 * (place <= 20), True, f"{place % 2} back")
            for place in range(1, 31)
        ]
        by = streams.by_part(asked, range(1, 41), "lines")
        assert list(by) == [f"lines {n}-{n + 3}" for n in range(1, 41, 4)]
        assert list(by.values()) == [100.0] * 5 + [0.0, 0.0, 0.0, None, None]
        assert streams.by_group(asked) == {
            "1 back": pytest.approx(200 / 3), "0 back": pytest.approx(200 / 3),
        }  # fmt: skip

    def test_curve_is_a_mean_over_neighbours(self):
        asked = [Asked(0, 2 * n, float(n), True) for n in range(200)]
        got = streams.curve(asked[::-1])
        assert got["score"] == [10 * n + 4.5 for n in range(20)]
        assert got["tokens"] == [20 * n + 9 for n in range(20)]
        assert streams.curve(asked[:9])["score"] == [2.0, 6.5]
        assert streams.curve(asked[:3]) == {"tokens": [2], "score": [1.0]}
        assert streams.curve([]) == {"tokens": [], "score": []}


class TestQuestions:
    def test_both_forms(self, file):
        hub, official, *_ = streamqa.read_questions(file)
        assert hub.text == "Question: Which is a planet?\nA. the Moon\nB. Mars\nC. the Sun\nAnswer:"
        assert (hub.labels, hub.right) == (("A", "B", "C"), 1)
        assert official.text == "Question: Which is cold?\n1. fire\n2. ice\nAnswer:"
        assert (official.labels, official.right) == (("1", "2"), 1)

    def test_pieces_are_the_whole_text(self, model, file):
        for question in streamqa.read_questions(file):
            first, labels = streamqa.pieces(model, question)
            assert len({ids[0] for ids in labels}) == len(question.labels)
            for label, ids in zip(question.labels, labels, strict=True):
                assert first + ids == model.tokenizer.encode(f"{question.text} {label}")

    def test_a_label_that_begins_another(self, model):
        first, labels = streamqa.pieces(model, streamqa.Question("Answer:", ("A", "AB"), 0))
        assert all(labels) and first

    @pytest.mark.parametrize("own_answers", [False, True])
    def test_the_stream_has_the_right_answers_or_the_own_ones(self, model, file, own_answers):
        """Against one prompt with all that comes before each answer."""
        questions = streamqa.read_questions(file)
        session = began(model, Full())
        asked = streamqa.ask_stream(model, session, questions, own_answers, lambda a, b: None)
        assert tokens_seen(session.state.cache.layers)[0] == asked[-1].tokens
        stream = model.tokenizer.encode(
            "Answer each question with the label of the right choice.\n\n"
        )
        for one, question in zip(asked, questions, strict=True):
            text, labels = streamqa.pieces(model, question)
            stream += text
            assert one.tokens == len(stream)
            alone = began(model, Full())
            alone.feed([stream])
            (token,) = streamqa.guesses(alone)
            assert one.score == 100.0 * (token == labels[1][0])
            assert one.formed == (token in [ids[0] for ids in labels])
            stream += [token] if own_answers else labels[1]
            stream += model.tokenizer.encode("\n\n")

    def test_right_answers_score_100(self, model, file, monkeypatch):
        questions = streamqa.read_questions(file)
        right = iter([streamqa.pieces(model, q)[1][q.right][0] for q in questions])
        monkeypatch.setattr(streamqa, "guesses", lambda session: [next(right)])
        session = began(model, WINDOW)
        asked = streamqa.ask_stream(model, session, questions, False, lambda a, b: None)
        assert [(one.place, one.score, one.formed) for one in asked] == [
            (n, 100.0, True) for n in (1, 2, 3, 4)
        ]

    def test_one_shot_is_each_alone(self, capsys, file, tmp_path):
        single, double = (
            run(capsys, "streamqa", "--questions", file, "--one-shot", "--batch-size", size,
                "--policy", "window:window=30", "--limit", "3")
            for size in ("1", "2")
        )  # fmt: skip
        assert single["by"] == double["by"] and single["formed"] == double["formed"]
        assert single["n"] == 3 and single["one_shot"] is True
        assert single["chance"] == pytest.approx((100 / 3 + 50 + 100 / 3) / 3)

    def test_report_and_plot(self, capsys, file, tmp_path):
        path, plot = tmp_path / "many.jsonl", tmp_path / "qa.png"
        path.write_text((json.dumps(HUB) + "\n") * 10)
        full, window = run(
            capsys, "streamqa", "--questions", str(path), "--policy", "full,window:window=30",
            "--plot", str(plot),
        )  # fmt: skip
        assert (window["n"], window["questions"]) == (10, 10)
        assert full["n"] < 10 and full["tokens"] < 512 < window["tokens"]
        assert list(window["by"]) == [f"questions {n}" for n in range(1, 11)]
        assert plot.read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        "line, said",
        [
            ("{", "not JSON"),
            ("3", "no ARC question"),
            (json.dumps({**HUB, "answerKey": "D"}), "one of A, B, C"),
            (json.dumps({**HUB, "answerKey": None}), "must be texts"),
            (json.dumps({"question": "x"}), "no ARC question"),
            (json.dumps({**HUB, "choices": {"text": ["x"], "label": []}}), "no ARC question"),
            (json.dumps({**HUB, "choices": {"text": ["x"], "label": ["B"]}}), "two or more"),
            (
                json.dumps({**HUB, "choices": {"text": ["x", "y"], "label": ["B", "B"]}}),
                "different",
            ),
            ("\n", "holds no text"),
        ],
    )
    def test_wrong_questions_are_one_line(self, capsys, tmp_path, line, said):
        path = tmp_path / "arc.jsonl"
        path.write_text(line)
        assert said in fails(capsys, "streamqa", "--questions", str(path))


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["streameval", "--lines", "0"], "--lines is 0"),
        (["streameval", "--tokens", "0"], "--tokens is 0"),
        (["streameval", "--lines", "9", "--tokens", "9"], "--lines and --tokens"),
        (["streameval", "--back", "9", "--distances", "9"], "--back and --distances"),
        (["streameval", "--lines", "20"], "at most 10"),
        (["streameval", "--lines", "30", "--distances", "5,30"], "--distances has 30"),
        (["streameval", "--distances", "5,x"], "5,x"),
        (["streameval", "--distances", "0"], "such as 20,40"),
        (["streameval", "--every", "0"], "--every"),
        (["streameval", "--streams", "0"], "--streams"),
        (["streameval", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["streameval", "--model", "tiny-random", "--policy", "snapkv"], "streaming or window"),
        (["streameval", "--model", "tiny-random", "--tokens", "90"], "20 lines back"),
        (["streameval", "--model", "tiny-random", "--policy", "full", "--max-length", "90"], "90"),
        (["streamqa"], "--questions"),
        (["streamqa", "--questions", "no/such/file"], "no/such/file"),
        (["streamqa", "--questions", "x", "--limit", "0"], "--limit"),
        (["streamqa", "--questions", "x", "--batch-size", "2"], "--one-shot"),
        (["streamqa", "--questions", "x", "--one-shot", "--own-answers"], "--own-answers"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(capsys, arguments, said):
    assert said in fails(capsys, *arguments)
