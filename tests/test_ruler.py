# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""RULER's rows: their lengths, and that the answers are what the texts say."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import re
from collections import Counter
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxkv.checkpoints import toy
from jaxkv.core.errors import InputError
from jaxkv.core.progress import no_progress
from jaxkv.eval.__main__ import main
from jaxkv.eval.questions.answers import Row
from jaxkv.eval.questions.haystacks import builtin_text
from jaxkv.eval.questions.metrics import any_contained, contained
from jaxkv.eval.questions.rows import read_rows
from jaxkv.eval.runner.options import parse_options
from jaxkv.eval.tasks.ruler import task as ruler
from jaxkv.eval.tasks.ruler.lexicon import ADJECTIVES, NOUNS, VERBS
from jaxkv.eval.tasks.ruler.text import first_pieces
from jaxkv.eval.tasks.ruler.words import cwe

NIAH = [name for name in ruler.NAMES if name.startswith("niah")]
NO_FILE = [*NIAH, "vt", "cwe", "fwe"]

# The prompts as RULER has them, the start of the answer included.
NIAH_TEMPLATE = (
    "Some special magic {type} are hidden within the following text. Make sure to memorize it. I "
    "will quiz you about the {type} afterwards.\n{context}\nWhat are all the special magic {type} "
    "for {query} mentioned in the provided text? The special magic {type} for {query} mentioned "
    "in the provided text are"
)
VT_TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {query} in the text "
    "above. Answer: According to the chain(s) of variable assignment in the text above, 5 "
    "variables are assigned the value {query}, they are: "
)
CWE_TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\nQuestion: What are the 10 most common "
    "words in the above list? Answer: The top 10 words that appear most often in the list are:"
)
FWE_TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. Find the three "
    "most frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. "
    "Please ignore the dots '....'. What are the three most frequently appeared words in the "
    "above coded text? Answer: According to the coded text above, the three most frequently "
    "appeared words are:"
)
QA_TEMPLATE = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question "
    "based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query} Answer:"
)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def article(subject: str) -> dict[str, Any]:
    """Of SQuAD version 2: three paragraphs, with an answerable question each."""
    places = ("Rome", "Oslo", "Cairo")
    return {
        "title": subject,
        "paragraphs": [
            {
                "context": f"The {subject} of {place} was found in {year} by workers. " * 3,
                "qas": [
                    {
                        "question": f"When was the {subject} of {place} found?",
                        "answers": [{"text": f"{year}"}, {"text": f"in {year}"}, {"text": year}],
                        "is_impossible": False,
                    },
                    {"question": "Who lost it?", "answers": [], "is_impossible": True},
                ],
            }
            for place, year in zip(places, (f"1{len(subject)}{i}" for i in "123"), strict=True)
        ],
    }


SQUAD = {"version": "v2.0", "data": [article(name) for name in ("gate", "mirror", "old bridge")]}
HOTPOTQA = [
    {
        "question": f"Where was the teacher of person {i} born?",
        "answer": f"Town {i}",
        "supporting_facts": [[f"Person {i}", 0], [f"Teacher {i}", 1]],
        "context": [
            *([f"Other {i}{j}", [f"Other {i}{j} is a lake.", " It is deep."]] for j in "abcdefgh"),
            [f"Person {i}", [f"Person {i} was a pupil of Teacher {i}."]],
            [f"Teacher {i}", ["A teacher.", f" Teacher {i} was born in Town {i}."]],
        ],
    }
    for i in range(10, 14)
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Flags and files of the two tasks that have one."""
    folder = tmp_path_factory.mktemp("qa")
    for name, content in (("squad", SQUAD), ("hotpotqa", HOTPOTQA)):
        (folder / name).write_text(json.dumps(content))
    return {name: str(folder / name) for name in ("squad", "hotpotqa")}


def options(**given: Any) -> ruler.Options:
    defaults = {
        "tasks": None, "lengths": "2048", "rows": 1, "haystack": "help", "squad": None,
        "hotpotqa": None, "save_rows": None, "query_aware": False, "batch_size": 1,
        "each_reads": False,
    }  # fmt: skip
    return ruler.check(argparse.Namespace(**(defaults | given)))


cached = functools.cache(options)
toy_model = functools.cache(toy.load)


def make(
    tasks: str | None = None, length: int = 2048, seed: int = 0, rows: int = 1, **given: Any
) -> tuple[Row, ...]:
    """Rows with the toy's tokenizer."""
    own = cached(**given)
    names = own.tasks if tasks is None else tuple(tasks.split(","))
    own = dataclasses.replace(own, tasks=names, lengths=(length,), rows=rows)
    return ruler.make_rows(toy_model(), own, seed, no_progress)


def text_of(row: Row) -> str:
    return row.context + row.question + row.answer_prefix


def between(template: str, row: Row, **values: str) -> str:
    """The context that makes a row's whole text of a template."""
    before, after = template.split("{context}")
    before, after = (part.format(**values) for part in (before, after))
    text = text_of(row)
    assert text.startswith(before)
    assert text.endswith(after)
    return text[len(before) : len(text) - len(after)]


@settings(max_examples=26, deadline=None)
@given(
    task=st.sampled_from(ruler.NAMES),
    length=st.integers(1450, 2300),
    seed=st.integers(0, 2**40),
)
def test_a_row_with_its_answer_has_exactly_its_length(files, task, length, seed):
    (row,) = make(task, length, seed, **files)
    wrapped = (
        f"<|im_start|>user\n{row.context}{row.question}<|im_end|>\n"
        f"<|im_start|>assistant\n{row.answer_prefix}"
    )
    assert len(toy_model().tokenizer.encode(wrapped, special=True)) + row.max_new_tokens == length
    new = {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
    assert row.max_new_tokens == new.get(task, 128)
    assert (row.task, row.length) == (task, length)
    assert row.metric is (any_contained if task.startswith("qa") else contained)


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("length", [1024, 4096])
def test_lengths_are_exact_with_a_real_tokenizer(smollm2, files, length):
    own = options(lengths=str(length), **files)
    for row in ruler.make_rows(smollm2, own, 5, no_progress):
        wrapped = smollm2.tokenizer.render(
            [{"role": "user", "content": row.context + row.question}],
            continue_text=row.answer_prefix,
        )
        found = len(smollm2.tokenizer.encode(wrapped, special=True))
        assert found + row.max_new_tokens == length, row.task


@settings(max_examples=24, deadline=None)
@given(task=st.sampled_from(NIAH), length=st.integers(700, 2300), seed=st.integers(0, 2**40))
def test_needles_say_the_answers_and_nothing_else_does(task, length, seed):
    (row,) = make(task, length, seed)
    kind = "uuid" if task in ("niah_single_3", "niah_multikey_3") else "number"
    needles = re.findall(rf"One of the special magic {kind}s for (\S+) is: (\S+)\.", row.context)
    keys = re.findall(r"for (.*) mentioned", row.question)[0].replace(", and", ",").split(", ")
    many = task in ("niah_multivalue", "niah_multiquery")

    template, what = NIAH_TEMPLATE, f"{kind}s"
    if not many:  # as RULER makes one of many
        template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
        what = kind
    query = ", ".join(keys[:-1]) + f", and {keys[-1]}" if len(keys) > 1 else keys[0]
    hay = between(template, row, type=what, query=query)

    said = [value for key in keys for name, value in needles if name == key]
    assert sorted(row.answers) == sorted(said)
    assert len(row.answers) == (4 if many else 1)
    assert len(keys) == (4 if task == "niah_multiquery" else 1)
    for value in row.answers:
        assert row.context.count(value) == 1
        form = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}" if kind == "uuid" else r"\d{7}"
        assert re.fullmatch(form, value)

    if task in ("niah_multikey_2", "niah_multikey_3"):
        assert len({key for key, _ in needles}) == len(needles)
        lines = hay.count("\n") + 1
        assert lines - 1 <= len(needles) <= lines  # the last may be cut
        return
    names = {"niah_multikey_1": 4, "niah_multiquery": 4}
    assert len({key for key, _ in needles}) == names.get(task, 1)
    sentences = [f"One of the special magic {kind}s for {k} is: {v}." for k, v in needles]
    if task == "niah_single_1":
        lines = [line for line in hay.split("\n") if line not in sentences]
        assert all(line == NOISE for line in lines[:-1])
        return
    for sentence in sentences:  # without them it is the beginning of the essay, and a filler
        assert sentence in hay
        hay = hay.replace(sentence, "")
    essay = " ".join(builtin_text().split())
    bare = " ".join(hay.split())
    assert bare[:-60] == essay[: len(bare) - 60]


@pytest.mark.slow
def test_needles_are_at_all_depths():
    rows = make("niah_single_1,niah_single_2", 1000, rows=24, haystack="noise")
    for task in ("niah_single_1", "niah_single_2"):
        texts = [row.context for row in rows if row.task == task]
        depths = [text.index("One of the special") / len(text) for text in texts]
        assert min(depths) < 0.3 and max(depths) > 0.7


@settings(max_examples=10, deadline=None)
@given(length=st.integers(1450, 2300), seed=st.integers(0, 2**40))
def test_variables_have_the_value_by_their_assignments(length, seed):
    (row,) = make("vt", length, seed)
    starts = [m.start() for m in re.finditer("Memorize and track", row.context)]
    assert len(starts) == 2
    example, text = row.context[: starts[1]], row.context[starts[1] :]

    def assigned(text: str, letters: int) -> tuple[dict[str, str], str]:
        values: dict[str, str] = {}
        for name, source in re.findall(r"^VAR (\w+) = (VAR \w+|\d+) ?$", text, re.MULTILINE):
            assert re.fullmatch(rf"[A-Z]{{{letters}}}", name)
            assert name not in values
            values[name] = values[source[4:]] if source.startswith("VAR") else source
        asked = re.findall(r"assigned the value (\d{5}) in the text", text)[0]
        return {name: value for name, value in values.items() if value == asked}, asked

    found, value = assigned(text + row.question, 5)
    assert tuple(found) == row.answers and len(found) == 5
    hay = between(VT_TEMPLATE, dataclasses.replace(row, context=text), query=value)
    lines = [line for line in hay.split("\n") if not line.startswith("VAR")]
    assert all(line == NOISE for line in lines[:-1])

    shown, other = assigned(example, 3)
    assert other != value
    solved = f"they are:  {' '.join(shown)}\n\n"
    assert len(shown) == 5 and example.endswith(solved)
    assert example.startswith(VT_TEMPLATE.split("{context}")[0])
    # As much noise as 500 tokens allow without the solution, or its least: five lines.
    assert example.count(NOISE) == 5


def numbered(text: str) -> Counter[str]:
    """The words of the numbered list that a text ends with."""
    items = re.findall(r"(\d+)\. (\S+)", text)
    assert [int(number) for number, _ in items] == list(range(1, len(items) + 1))
    return Counter(word for _, word in items)


@settings(max_examples=10, deadline=None)
@given(length=st.integers(1600, 2300), seed=st.integers(0, 2**40))
def test_common_words_are_those_that_a_count_finds(length, seed):
    (row,) = make("cwe", length, seed)
    example, text = re.split(r"(?<=\w)\n(?=Below)", row.context)
    counts = numbered(between(CWE_TEMPLATE, dataclasses.replace(row, context=text)))
    assert {word for word, _ in counts.most_common(10)} == set(row.answers)
    assert Counter(counts.values()) == {6: 10, 1: len(counts) - 10}
    before, _, solution = example.partition("Question:")
    shown = numbered(before.split("often.\n")[1])
    assert Counter(shown.values()) == {3: 10, 1: 10}
    ten = numbered(solution.partition("list are: ")[2])
    assert set(ten) == {word for word, _ in shown.most_common(10)} and len(ten) == 10
    assert not counts.keys() & shown.keys()


def test_long_lists_repeat_their_words_more_and_never_run_out():
    for units in (0, 100, 6000):
        row = cwe(np.random.default_rng(3), units, "", length=4096)
        example, text = re.split(r"(?<=\w)\n(?=Below)", row.context)
        counts = numbered(text.partition("often.\n")[2])
        assert counts.total() == 300 + units
        assert {word for word, count in counts.items() if count == 30} == set(row.answers)
        rare = [count for count in counts.values() if count != 30]
        assert all(count == 3 for count in rare[:-2]) or set(rare) <= {2, 3}
        # No word has a common one as a part: an answer that names it would count as that one.
        assert not any(a in word for a in row.answers for word in counts if word not in row.answers)
        shown = numbered(example.partition("often.\n")[2].partition("\nQuestion")[0])
        assert Counter(shown.values()) == {10: 10, 3: 30}


@settings(max_examples=10, deadline=None)
@given(length=st.integers(700, 2300), seed=st.integers(0, 2**40))
def test_frequent_words_are_those_that_a_count_finds(length, seed):
    (row,) = make("fwe", length, seed)
    words = between(FWE_TEMPLATE, row).split()
    counts = Counter(word for word in words if set(word) != {"."})
    assert all(re.fullmatch("[a-z]{6}", word) for word in counts)
    ranked = counts.most_common()
    assert tuple(word for word, _ in ranked[:3]) == row.answers
    assert ranked[2][1] > ranked[3][1]
    # Rank k has floor(n / k^2 / zeta(2)) words, for some n; dots are rank 1, and the filler.
    vocabulary = (length - 50) // 50
    zeta = math.pi**2 / 6

    def expected(n: int) -> list[int]:
        found = [int(n * k**-2.0 / zeta) for k in range(2, vocabulary + 1)]
        return [count for count in found if count]

    fits = [n for n in range(80, length) if expected(n) == [count for _, count in ranked]]
    assert fits
    dots = len(words) - counts.total()
    assert int(fits[0] / zeta) <= dots <= int(fits[-1] / zeta) + 20


@settings(max_examples=10, deadline=None)
@given(
    task=st.sampled_from(["qa_1", "qa_2"]),
    length=st.integers(500, 2300),
    seed=st.integers(0, 2**40),
)
def test_documents_have_the_answers(files, task, length, seed):
    for row in make(task, length, seed, rows=2, **files):
        asked = row.question.partition("Question: ")[2]
        hay = between(QA_TEMPLATE, row, query=asked)
        parts = re.split(r"(?:^|\n\n)Document (\d+):\n", hay)
        assert parts[0] == ""
        assert [int(number) for number in parts[1::2]] == list(range(1, len(parts) // 2 + 1))
        documents = parts[2::2]
        assert any(answer in text for answer in row.answers for text in documents)
        if task == "qa_1":
            (qa,) = [
                (paragraph, asked_here, article)
                for article in SQUAD["data"]
                for paragraph in article["paragraphs"]
                for asked_here in paragraph["qas"]
                if asked_here["question"] == asked
            ]
            needed, same = [qa[0]["context"]], [p["context"] for p in qa[2]["paragraphs"]]
            assert row.answers == tuple(a["text"] for a in qa[1]["answers"][:2])
        else:
            (one,) = [one for one in HOTPOTQA if one["question"] == asked]
            texts = {title: f"{title}\n{''.join(told)}" for title, told in one["context"]}
            needed = [texts[title] for title, _ in one["supporting_facts"]]
            same = list(texts.values())
            assert row.answers == (one["answer"],)
        for text in needed:
            assert sum(document.startswith(text.strip()) for document in documents) >= 1
        # What is about the same comes first: others are there only if all of it is.
        whole = [text for text in same if any(d.startswith(text.strip()) for d in documents)]
        ours = sum(any(text.startswith(d[:40]) for text in same) for d in documents)
        assert len(whole) == len(same) or ours >= len(documents) - 1


@pytest.mark.slow
def test_seeds_reproduce_and_differ(files):
    first, again, other = (make(None, 1500, seed, **files) for seed in (1, 1, 2))
    assert first == again
    assert [row.task for row in first] == list(ruler.NAMES)
    for one, two in zip(first, other, strict=True):
        assert one.context != two.context
        assert one.answers != two.answers or one.task in ruler.FLAGS  # their files are small


def test_rows_of_a_task_differ(files):
    for task in ("niah_multikey_3", "vt", "cwe", "fwe", "qa_1", "qa_2"):
        rows = make(task, 1500, rows=3, **files)
        assert len({row.context for row in rows}) == len({row.answers for row in rows}) == 3


@pytest.mark.slow
def test_rows_do_not_depend_on_what_else_is_asked_for(files):
    own = dataclasses.replace(cached(**files), lengths=(1450, 1500))
    every = ruler.make_rows(toy_model(), own, 3, no_progress)
    for task in ruler.NAMES:
        (row,) = make(task, 1500, 3, **files)
        assert row in every


def test_the_essay_is_a_file_that_goes_on_again(tmp_path):
    path = tmp_path / "essay.txt"
    path.write_text("Owls fly at night.\nThey are silent!")
    (row,) = make("niah_single_2", 900, haystack=str(path))
    bare = re.sub(r"One of the special.*?\. ", "", row.context.split("afterwards.\n")[1])
    assert bare.count("Owls fly at night. They are silent! Owls fly at") > 3


def test_no_word_is_a_part_of_another():
    words = [*ADJECTIVES, *NOUNS, *VERBS]
    assert len(words) > 1600
    assert all(re.fullmatch("[a-z]{4,}", word) for word in words)
    joined = "|".join(words)
    assert all(joined.count(word) == 1 for word in words)


@given(
    texts=st.lists(st.text("ab- \n", min_size=1).filter(lambda t: t.strip(" -\n")), max_size=5),
    count=st.integers(0, 20),
)
def test_first_pieces_are_as_many_as_asked_for(texts, count):
    got = first_pieces(texts, count)
    sizes = [len(re.findall("[ab]+", text)) for text in got]
    assert sum(sizes) == min(count, sum(len(re.findall("[ab]+", text)) for text in texts))
    assert got[:-1] == texts[: max(0, len(got) - 1)]
    assert all(text.startswith(piece) for text, piece in zip(texts, got, strict=False))


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error."""
    with pytest.raises(SystemExit) as ended:
        main(["ruler", "--model", "tiny-random", *arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and "Traceback" not in err
    return err.splitlines()[-1].removeprefix("jaxkv.eval: error: ")


def test_bad_flags_give_one_line(capsys, files, tmp_path):
    squad = ("--squad", files["squad"])
    assert fails(capsys, "--tasks", "niah") == (
        f"--tasks has 'niah'; it may have {', '.join(ruler.NAMES)}"
    )
    assert fails(capsys, "--tasks", "vt,qa_2", *squad) == (
        "--tasks has qa_2; give its file with --hotpotqa FILE"
    )
    assert fails(capsys, "--rows", "0") == "--rows is 0; it must be at least 1"
    assert fails(capsys, "--rows", "10", *squad) == (
        "--rows is 10; --squad has 9 questions, so it must be at most 9"
    )
    assert fails(capsys, "--lengths", "9,x").startswith("--lengths is '9,x'; it must be")
    assert fails(capsys, "--batch-size", "0") == "--batch-size is 0; it must be at least 1"
    assert fails(capsys, "--haystack", "none.txt").startswith("--haystack none.txt cannot be read")
    assert fails(capsys, "--save-rows", str(tmp_path)).endswith("is a folder; it must be a file")
    assert re.fullmatch(
        r"--lengths has 600; a row of vt takes at least 1\d\d\d tokens, of which 30 are for the "
        "answer",
        fails(capsys, "--tasks", "vt", "--lengths", "600"),
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON: "),
        ("[]", "is not a JSON file of SQuAD: TypeError"),
        ('{"data": [{"paragraphs": [{"context": 1}]}]}', "is not a JSON file of SQuAD: TypeError"),
        ('{"data": [{"paragraphs": [{}]}]}', "is not a JSON file of SQuAD: KeyError: 'context'"),
        ('{"data": []}', "has no questions with answers; it must have at least one"),
        (
            json.dumps({"data": [{"paragraphs": [{"context": "a", "qas": [
                {"question": "b", "answers": [{"text": 4}]}]}]}]}),
            "is not a JSON file of SQuAD: TypeError",
        ),
    ],
)  # fmt: skip
def test_files_that_are_not_squad(tmp_path, content, told):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        options(tasks="qa_1", squad=str(path))
    assert str(error.value).startswith(f"--squad {path} {told}")
    assert "\n" not in str(error.value)


def test_files_that_are_not_hotpotqa(tmp_path):
    path = tmp_path / "file.json"
    for content in ('{"data": []}', '[{"question": "a"}]', "[3]", json.dumps(SQUAD)):
        path.write_text(content)
        with pytest.raises(InputError, match="is not a JSON file of HotpotQA"):
            options(tasks="qa_2", hotpotqa=str(path))
    with pytest.raises(InputError, match="cannot be read"):
        options(tasks="qa_2", hotpotqa=str(tmp_path / "none.json"))


def test_the_first_version_of_squad_has_no_impossible_questions(tmp_path, files):
    path = tmp_path / "v1.json"
    old = json.loads(json.dumps(SQUAD))
    for part in (p for a in old["data"] for p in a["paragraphs"]):
        part["qas"] = [{k: v for k, v in part["qas"][0].items() if k != "is_impossible"}]
    path.write_text(json.dumps(old))
    assert options(tasks="qa_1", squad=str(path)) == options(tasks="qa_1", squad=files["squad"])


@pytest.mark.slow
def test_the_command_runs_to_a_report(capsys, files, tmp_path):
    saved = tmp_path / "rows.jsonl"
    main(
        ["ruler", "--model", "tiny-random", "--tasks", "qa_1,fwe", "--lengths", "640", "--rows",
         "2", "--policy", "window:window=60", "--squad", files["squad"], "--save-rows",
         str(saved), "--batch-size", "2", "--json"]
    )  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    assert report["task"] == "ruler" and report["n"] == 4
    assert set(report["by"]) == {"qa_1", "fwe", "640"}
    assert report["score"] == pytest.approx((report["by"]["qa_1"] + report["by"]["fwe"]) / 2)
    rows = read_rows(str(saved))
    assert [row.task for row in rows] == ["qa_1", "qa_1", "fwe", "fwe"]
    made = make("qa_1,fwe", 640, rows=2, squad=files["squad"])
    assert [text_of(row) for row in rows] == [text_of(row) for row in made]


def test_every_task_counts_as_much(monkeypatch, files):
    """Whatever the answers: three rows of one task, and one of another."""
    told = {}

    def evaluate_rows(*args: Any, overall: Any) -> list[Any]:
        told.update(rows=args[4], overall=overall)
        return []

    monkeypatch.setattr(ruler, "evaluate_rows", evaluate_rows)
    own = options(tasks="fwe,vt", lengths="1500", **files)
    common = dataclasses.replace(parse_options(["ruler", "--policy", "full"])[1], seed=0)
    ruler.evaluate(toy_model(), common, own, no_progress)
    rows = [told["rows"][i] for i in (0, 0, 0, 1)]
    assert told["overall"](rows, [0.0, 30.0, 60.0, 100.0]) == 65.0


def test_default_tasks_are_those_that_have_what_they_need(files):
    assert options().tasks == tuple(NO_FILE)
    assert options(**files).tasks == ruler.NAMES
    assert options(tasks="vt, cwe,vt").tasks == ("vt", "cwe")
    assert len(ruler.NAMES) == 13
