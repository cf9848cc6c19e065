# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Long-document sets: their files, prompts, cuts in the middle, and their commands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from jaxkv.checkpoints import toy
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.eval.__main__ import main
from jaxkv.eval.questions import documents
from jaxkv.eval.questions.answers import Row, row_ids
from jaxkv.eval.runner.options import parse_options
from jaxkv.eval.tasks import babilong, longbench, loogle

LONG = "The grass is green. The sky is blue. " * 40


@pytest.fixture(scope="module")
def model() -> Model:
    return toy.load()


def bench_record(dataset: str, **changes: object) -> dict:
    """A line of one of LongBench's files."""
    answers = {
        "passage_count": ["7"],
        "passage_retrieval_en": ["Paragraph 3"],
        "passage_retrieval_zh": ["段落3"],
        "trec": ["Date"],
        "lsht": ["Date"],
    }
    return {
        "input": "Who wrote {it}?",
        "context": "A {long} story.",
        "answers": answers.get(dataset, ["Jane Austen", "Austen"]),
        "length": 3,
        "dataset": dataset,
        "language": "en",
        "all_classes": ["Food", "Date"] if dataset in ("trec", "lsht") else None,
        "_id": "0" * 48,
    } | changes


def loogle_record(**changes: object) -> dict:
    """A line of LooGLE's file."""
    pairs = [
        {"Q": 'What\'s "it"?', "A": "A cat.", "type": "computation", "S": ["It is."]},
        {"Q": "When?", "A": "In 1919.", "type": "comprehension_and_reasoning", "S": []},
    ]
    # The file has Python's spelling of the list, within JSON.
    return {"input": LONG, "title": "It", "qa_pairs": repr(pairs), "output": "None"} | changes


def babi_record(target: str = "garden", **changes: object) -> dict:
    """A row of one of BABILong's files."""
    facts = "It rained. Mary went to the garden. "
    return {"input": facts, "question": "Where is Mary? ", "target": target} | changes


def write(path: Path, *records: object, lines: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, records)) + "\n" if lines else json.dumps(records)
    path.write_text(text, encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    main([*arguments, "--model", "tiny-random", "--json", "--policy", "full"])
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--model", "tiny-random"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    return err.splitlines()[-1].removeprefix("jaxkv.eval: error: ")


class TestLongBench:
    MAX_NEW_TOKENS = {
        **dict.fromkeys(["narrativeqa", "qasper", "dureader", "samsum"], 128),
        **dict.fromkeys("multifieldqa_en multifieldqa_zh trec lsht lcc repobench-p".split(), 64),
        **dict.fromkeys(["hotpotqa", "2wikimqa", "musique", "triviaqa", "passage_count"], 32),
        **dict.fromkeys(["passage_retrieval_en", "passage_retrieval_zh"], 32),
        **dict.fromkeys(["gov_report", "qmsum", "multi_news", "vcsum"], 512),
    }

    def test_prompts_are_as_long_as_the_official_ones(self):
        prompts = {name: dataset.prompt for name, dataset in longbench.DATASETS.items()}
        # dataset2prompt.json, as it is indented there, has 4979 characters where narrativeqa
        # spells "as concisely", and it does so twice.
        assert len(json.dumps(prompts, ensure_ascii=False, indent=4)) == 4979 - 2

    @pytest.mark.parametrize("name", longbench.DATASETS)
    def test_rows(self, name, tmp_path):
        path = write(tmp_path / f"{name}.jsonl", bench_record(name), bench_record(name))
        row, again = longbench.read(path, name)
        prompt = longbench.DATASETS[name].prompt
        whole = prompt.replace("{context}", "A {long} story.").replace("{input}", "Who wrote {it}?")
        assert row.context + row.question == whole
        assert row.context.endswith("A {long} story.")
        assert ("Who wrote {it}?" in row.question) == ("{input}" in prompt)
        assert row.max_new_tokens == again.max_new_tokens == self.MAX_NEW_TOKENS[name]
        raw = name in ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")
        assert row.chat is (False if raw else None)
        assert row.task == name

    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            ("hotpotqa", "The Austen\nand more", 100 * 2 / 4),
            ("triviaqa", "\nAusten\nand more", 100),
            ("trec", "Date\nFood", 100),
            ("lsht", "Date or Food", 50),
            ("passage_count", "7 or 8", 50),
            ("passage_retrieval_en", "Paragraph 3", 100),
            ("passage_retrieval_zh", "段落3", 100),
            ("lcc", "# Hm\nAusten\nb", 100),
        ],
    )
    def test_each_has_its_metric(self, name, text, expected, tmp_path):
        (row,) = longbench.read(write(tmp_path / "file", bench_record(name)), name)
        assert row.metric(text, row.answers) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("hotpotqa", {"answers": "Austen"}, "answers is 'Austen'; it must be a list of texts"),
            ("hotpotqa", {"answers": []}, "answers is []; it must be a list of texts"),
            ("hotpotqa", {"context": 3}, "context is 3; it must be a text"),
            ("trec", {"all_classes": None}, "all_classes is None; it must be a list of texts"),
            ("passage_retrieval_en", {"answers": ["3"]}, "for passage_retrieval_en it must be"),
        ],
    )
    def test_a_bad_line_is_named(self, name, changes, message, tmp_path):
        good = bench_record(name)
        path = write(tmp_path / f"{name}.jsonl", good, good | changes)
        with pytest.raises(InputError, match=f"--data .*{name}.jsonl line 2: ") as error:
            list(longbench.read(path, name))
        assert message in str(error.value)

    def test_default_is_what_is_there(self, tmp_path):
        for name in ("trec", "hotpotqa", "hotpotqa_e"):
            write(tmp_path / f"{name}.jsonl", bench_record(name))
        *_, options = parse_options(["longbench", "--data", str(tmp_path)])
        assert [row.task for row in options.rows] == ["hotpotqa", "trec"]
        *_, options = parse_options(["longbench", "--data", str(tmp_path), "--datasets", "trec"])
        assert [row.task for row in options.rows] == ["trec"]

    def test_a_missing_package_is_named(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        write(tmp_path / "vcsum.jsonl", bench_record("vcsum"))
        line = fails(capsys, "longbench", "--data", str(tmp_path))
        assert "vcsum is scored with jieba and rouge; pip install jieba rouge" in line

    def test_command(self, capsys, tmp_path):
        write(tmp_path / "hotpotqa.jsonl", *[bench_record("hotpotqa", context=LONG)] * 3)
        write(tmp_path / "lcc.jsonl", bench_record("lcc", context="a = 1\n"))
        kept = tmp_path / "rows.jsonl"
        got = run(
            capsys, "longbench", "--data", str(tmp_path), "--rows", "2",
            "--max-prompt-tokens", "60", "--save-rows", str(kept), "--max-length", "256",
        )  # fmt: skip
        assert (got["task"], got["n"], got["query_aware"]) == ("longbench", 3, False)
        assert set(got["by"]) == {"hotpotqa", "lcc"}
        assert got["score"] == pytest.approx(sum(got["by"].values()) / 2)
        assert got["cut_prompts"] == 2
        saved = [json.loads(line) for line in kept.read_text().splitlines()]
        assert [row["task"] for row in saved] == ["hotpotqa", "hotpotqa", "lcc"]
        assert len(saved[0]["context"]) < len(LONG)


class TestLooGLE:
    def test_rows(self, tmp_path):
        first, second = loogle.read(write(tmp_path / "longdep_qa.jsonl", loogle_record()))
        assert first.context + first.question == (
            f"Please answer the question based on the long texts below. \n{LONG}\n"
            'Question: What\'s "it"?\nAnswer:'
        )
        assert first.question == '\nQuestion: What\'s "it"?\nAnswer:'
        assert (first.task, first.max_new_tokens) == ("computation", 32)
        assert (second.task, second.max_new_tokens) == ("comprehension_and_reasoning", 64)
        assert first.chat is False
        assert first.metric("the cat", first.answers) == 100

    def test_other_spellings_are_the_same_rows(self, tmp_path):
        record = loogle_record()
        *rows, other = loogle.read(
            write(
                tmp_path / "file",
                loogle_record(qa_pairs=[{"Q": "When?", "A": "In 1919.", "type": "computation"}]),
                {"context": LONG, "question": "When?", "answer": "In 1919.", "type": "computation"},
            )
        )
        assert rows == [other]
        assert other.context == next(loogle.read(write(tmp_path / "f", record))).context

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"qa_pairs": "[{'Q': "}, "line 2: qa_pairs must be a list"),
            ({"qa_pairs": "none"}, "line 2: qa_pairs must be a list"),
            ({"qa_pairs": [{"Q": "When?"}]}, "line 2 question 1 has no 'A'; it has Q"),
            ({"qa_pairs": [{"Q": "?", "A": "!", "type": "cloze"}]}, "type is 'cloze'; it must be"),
            ({"input": None}, "line 2: input is None; it must be a text"),
        ],
    )
    def test_a_bad_line_is_named(self, changes, message, tmp_path):
        path = write(tmp_path / "file", loogle_record(), loogle_record(**changes))
        with pytest.raises(InputError) as error:
            list(loogle.read(path))
        assert message in str(error.value)

    def test_command(self, capsys, tmp_path):
        path = write(tmp_path / "longdep_qa.jsonl", loogle_record(), loogle_record())
        common = ["--max-prompt-tokens", "60", "--max-length", "256", "--query-aware"]
        got = run(capsys, "loogle", "--data", str(tmp_path), *common, "--rows", "1")
        assert (got["n"], got["cut_prompts"], got["query_aware"]) == (2, 2, True)
        assert set(got["by"]) == {"computation", "comprehension_and_reasoning"}
        *_, options = parse_options(["loogle", "--data", str(path)])
        assert len(options.rows) == 4

    def test_no_questions(self, capsys, tmp_path):
        path = write(tmp_path / "file", loogle_record(qa_pairs="[]"))
        assert fails(capsys, "loogle", "--data", str(path)) == f"--data {path} holds no questions"


class TestBABILong:
    def test_prompt(self, tmp_path):
        (row,) = babilong.read(write(tmp_path / "4k.json", babi_record(), lines=False), "qa1", "4k")
        assert row.context + row.question == (
            "I will give you context with the facts about positions of different persons hidden "
            "in some random text and a question. You need to answer the question based only on "
            "the information from the facts. If a person was in different locations, use the "
            "latest location to answer the question.\n\n"
            "<example>\nCharlie went to the hallway. Judith come back to the kitchen. Charlie "
            "travelled to balcony. Where is Charlie?\n"
            "Answer: The most recent location of Charlie is balcony.\n</example>\n\n"
            "<example>\nAlan moved to the garage. Charlie went to the beach. Alan went to the "
            "shop. Rouse travelled to balcony. Where is Alan?\n"
            "Answer: The most recent location of Alan is shop.\n</example>\n\n"
            "Always return your answer in the following format: The most recent location of "
            "’person’ is ’location’. Do not write anything else after that.\n\n"
            "<context>\nIt rained. Mary went to the garden.\n</context>\n\n"
            "Question: Where is Mary?"
        )
        assert row.question == "\n</context>\n\nQuestion: Where is Mary?"
        assert (row.task, row.length, row.max_new_tokens, row.chat) == ("qa1", 4000, 15, None)
        assert row.metric("Mary is in the garden.", row.answers) == 100
        assert row.metric("garden or office", row.answers) == 0

    @pytest.mark.parametrize("name", babilong.PROMPTS)
    def test_every_task_has_its_prompt(self, name, tmp_path):
        target = "milk" if name == "qa5" else "garden"
        path = write(tmp_path / "0k.jsonl", babi_record(target), babi_record(target))
        row, _ = babilong.read(path, name, "0k")
        assert row.length == 0
        assert row.context.count("<example>\n") == row.context.count("\nAnswer: ")
        assert row.context.count("<example>") == (3 if name == "qa5" else 2)
        assert row.metric(f"It is {target}", row.answers) == 100

    def test_files_by_either_folder(self, tmp_path):
        expected = {
            ("qa1", "4k"): write(tmp_path / "data" / "qa1" / "4k.json", babi_record(), lines=False),
            ("qa1", "1M"): write(tmp_path / "qa1" / "1M.jsonl", babi_record()),
            ("qa2", "0k"): write(tmp_path / "0k" / "qa2.json", babi_record()),
        }
        write(tmp_path / "qa11" / "4k.json", babi_record())
        write(tmp_path / "notes" / "qa1.json", babi_record())
        assert babilong.files(tmp_path) == expected
        assert [babilong.tokens_of(x) for x in ("0k", "16k", "1M")] == [0, 16_000, 1_000_000]

    def test_command(self, capsys, tmp_path):
        for task in ("qa1", "qa4"):
            for length in ("0k", "1k", "2k"):
                write(tmp_path / task / f"{length}.json", *[babi_record()] * 2, lines=False)
        got = run(
            capsys, "babilong", "--data", str(tmp_path), "--lengths", "0k,2k", "--rows", "1",
            "--max-prompt-tokens", "60", "--max-length", "256",
        )  # fmt: skip
        assert got["n"] == 4
        assert set(got["by"]) == {"qa1", "qa4", "0", "2000"}
        assert got["cut_prompts"] == 4

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--tasks", "qa6"], "--tasks has 'qa6'; it may have qa1, qa2, qa3, qa4, qa5"),
            (["--tasks", "qa3"], "--tasks has 'qa3'; --data has qa1, qa2"),
            (["--lengths", "4k"], "--lengths has '4k'; it may have 0k, 1k"),
            ([], "has no qa2 at 1k; choose --tasks, --lengths"),
        ],
    )
    def test_what_is_not_there_is_named(self, flags, message, capsys, tmp_path):
        for name in ("qa1/0k.json", "qa1/1k.json", "qa2/0k.json"):
            write(tmp_path / name, babi_record())
        assert message in fails(capsys, "babilong", "--data", str(tmp_path), *flags)

    def test_a_bad_row_is_named(self, tmp_path):
        rows = [babi_record(), babi_record("balcony")]
        path = write(tmp_path / "4k.json", *rows, lines=False)
        with pytest.raises(InputError, match="row 2: target is 'balcony'; for qa1 it must be bath"):
            list(babilong.read(path, "qa1", "4k"))


class TestCut:
    ROW = Row(f"Read: {LONG}", "\nQuestion: Why?", "", ("so",), 8, chat=False)

    @pytest.mark.parametrize("limit", [40, 41, 100])
    @pytest.mark.parametrize("bos", [(), (1,)])
    def test_first_and_last_half_of_the_tokens_stay(self, model, limit, bos):
        tokenizer = dataclasses.replace(model.tokenizer, bos_ids=bos)
        model = dataclasses.replace(model, tokenizer=tokenizer)
        cut = documents.cut_middle(model, self.ROW, limit)
        assert cut.question == self.ROW.question
        ids = tokenizer.encode(self.ROW.context + self.ROW.question)
        head = ids[: limit // 2 - len(bos)]  # of which the token that begins a text is one
        tail = ids[len(ids) - limit // 2 :]
        assert cut.context + cut.question == tokenizer.decode(head) + tokenizer.decode(tail)
        assert self.ROW.context.startswith(tokenizer.decode(head))

    def test_what_fits_is_left_alone(self, model):
        count = len(model.tokenizer.encode(self.ROW.context + self.ROW.question))
        assert documents.cut_middle(model, self.ROW, count) is self.ROW
        assert documents.cut_middle(model, self.ROW, count - 1) is not self.ROW

    def test_of_a_short_half_the_question_is_what_is_left(self, model):
        cut = documents.cut_middle(model, self.ROW, 8)
        assert self.ROW.context.startswith(cut.context)
        assert self.ROW.question.endswith(cut.question)
        assert 0 < len(cut.question) < len(self.ROW.question)

    def test_a_cut_within_the_question_leaves_the_context(self, model):
        row = dataclasses.replace(self.ROW, context="Read: this.", question=f" {LONG}")
        cut = documents.cut_middle(model, row, 60)
        assert cut.context == row.context
        assert len(cut.question) < len(row.question)

    def test_default_leaves_room_for_template_and_answer(self, model):
        config = dataclasses.replace(model.config, max_positions=200)
        small = dataclasses.replace(model, config=config)
        for chat in (False, True):
            row = dataclasses.replace(self.ROW, chat=chat)
            cut = documents.cut_middle(small, row, documents.prompt_limit(small, row))
            assert 195 <= len(row_ids(small, cut)) + row.max_new_tokens <= 200

    def test_an_answer_may_take_all_the_room(self, model):
        small = dataclasses.replace(
            model, config=dataclasses.replace(model.config, max_positions=9)
        )
        row = dataclasses.replace(self.ROW, task="qasper", chat=False)
        with pytest.raises(InputError, match="qasper takes 8 tokens .* trained for 9 in all"):
            documents.prompt_limit(small, row)


class TestDrawn:
    ROWS = [
        Row(f"{task} {length} {i}", "?", "", ("!",), 8, task=task, length=length)
        for task in ("qa1", "qa2")
        for length in (0, 4000)
        for i in range(10)
    ]

    def test_so_many_of_each_in_their_order(self):
        got = documents.drawn(self.ROWS, 4, seed=0)
        groups = [(row.task, row.length) for row in got]
        assert groups == [(t, n) for t in ("qa1", "qa2") for n in (0, 4000) for _ in range(4)]
        places = [[int(row.context.split()[2]) for row in got[i : i + 4]] for i in (0, 4, 8, 12)]
        assert places[0] == sorted(places[0])
        assert places == [places[0]] * 4  # the same questions at every length
        assert documents.drawn(self.ROWS, 4, seed=1) != got

    def test_no_more_than_there_are(self):
        assert documents.drawn(self.ROWS, 99, seed=0) == tuple(self.ROWS)
        assert documents.drawn(self.ROWS, None, seed=0) == tuple(self.ROWS)


class TestMessages:
    @pytest.mark.parametrize("task", ["longbench", "loogle", "babilong"])
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ([], "there is no data; give --data PATH"),
            (["--data", "nowhere"], "--data nowhere does not exist"),
        ],
    )
    def test_no_data(self, task, flags, message, capsys):
        assert fails(capsys, task, *flags) == message

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"input": ""}\n\n{"input": \n', "line 3 is not JSON: "),
            ('{"input": ""}\n7\n', "line 2 must be an object with names and values"),
            ("[7]", "row 1 must be an object"),
            ("[7", "f.jsonl is not JSON: "),
            ("[]", "f.jsonl holds no rows; it must have at least one"),
            ("\n", "f.jsonl holds no text"),
            ("[" * 100_000, "f.jsonl is not JSON: "),
        ],
    )
    def test_a_file_that_is_no_json(self, text, message, tmp_path):
        path = tmp_path / "f.jsonl"
        path.write_text(text)
        with pytest.raises(InputError, match=f"--data {path}") as error:
            documents.read_records(path)
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_other_line_separators_are_text(self, tmp_path):
        path = tmp_path / "f.jsonl"
        path.write_text('{"a": "one\u2028two"}\r\n{"a": "three"}', encoding="utf-8")
        assert [record["a"] for _, record in documents.read_records(path)] == [
            "one\u2028two",
            "three",
        ]

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--rows", "0"], "--rows is 0; it must be at least 1"),
            (["--max-prompt-tokens", "1"], "--max-prompt-tokens is 1; it must be at least 2"),
            (["--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
            (["--datasets", "mmlu"], "--datasets has 'mmlu'; it may have narrativeqa, "),
            (["--datasets", "qasper"], "--datasets has 'qasper'; --data has hotpotqa"),
        ],
    )
    def test_flags(self, flags, message, capsys, tmp_path):
        # Flags are looked at before files.
        (tmp_path / "hotpotqa.jsonl").write_text("no JSON")
        assert fails(capsys, "longbench", "--data", str(tmp_path), *flags).startswith(message)

    def test_a_folder_with_other_files(self, capsys, tmp_path):
        for task, message in (
            ("longbench", "has no files of LongBench, such as hotpotqa.jsonl"),
            ("loogle", "longdep_qa.jsonl cannot be read"),
            ("babilong", "has no files of BABILong, such as qa1/4k.json"),
        ):
            assert message in fails(capsys, task, "--data", str(tmp_path))
