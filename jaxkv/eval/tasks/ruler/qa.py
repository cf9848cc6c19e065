# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""RULER's two question-answering tasks: SQuAD and HotpotQA among more of their own documents."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxkv.cli.arguments import read_text
from jaxkv.core.errors import InputError
from jaxkv.core.reading import parse_json
from jaxkv.eval.questions.answers import Row
from jaxkv.eval.questions.metrics import any_contained
from jaxkv.eval.tasks.ruler.text import first_pieces

# Of a file: a question, its answers, the documents that it needs, and all about the same.
Found = tuple[str, Sequence[str], Sequence[str], Sequence[str]]

MAX_NEW_TOKENS = 32
_TASK = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\n"
)


@dataclasses.dataclass(frozen=True)
class Question:
    """Attributes:
    text: of the question.
    answers: of which any is right.
    needed: numbers of the documents that have the answer.
    near: numbers of documents about the same, the first to be put beside them.
    """

    text: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    near: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Attributes:
    documents: all different.
    questions: at least one.
    """

    documents: tuple[str, ...]
    questions: tuple[Question, ...]


def read_squad(path: str) -> Corpus:
    """SQuAD's JSON file, version 1 or 2; questions that have no answer are left out.

    Raises:
      InputError: it cannot be read, or is another kind of file.
    """
    return _read("--squad", path, "SQuAD", _squad)


def read_hotpotqa(path: str) -> Corpus:
    """HotpotQA's JSON file of the distractor setting.

    Raises:
      InputError: it cannot be read, or is another kind of file.
    """
    return _read("--hotpotqa", path, "HotpotQA", _hotpotqa)


def _read(flag: str, path: str, name: str, parse: Callable[[Any], Iterable[Found]]) -> Corpus:
    value = parse_json(read_text(flag, path), f"{flag} {path}")
    try:
        corpus = _corpus(tuple(parse(value)))
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{flag} {path} is not a JSON file of {name}: {reason}") from None
    if not corpus.questions:
        raise InputError(f"{flag} {path} has no questions with answers; it must have at least one")
    return corpus


def _corpus(found: Sequence[Found]) -> Corpus:
    """Documents by number; of several that are the same, one."""
    documents = {document for _, _, needed, near in found for document in (*needed, *near)}
    numbers = {document: number for number, document in enumerate(sorted(documents))}
    questions = []
    for text, answers, needed, near in found:
        answers = tuple(dict.fromkeys(answer for answer in answers if answer.strip()))
        others = dict.fromkeys(numbers[x] for x in near if x not in needed)
        if answers and needed:
            needed = dict.fromkeys(numbers[x] for x in needed)
            questions.append(Question(text, answers, tuple(needed), tuple(others)))
    return Corpus(tuple(numbers), tuple(questions))


def _squad(content: Any) -> Iterable[Found]:
    for article in content["data"]:
        paragraphs = [part["context"] + "" for part in article["paragraphs"]]
        for part in article["paragraphs"]:
            for asked in part["qas"]:
                if not asked.get("is_impossible", False):
                    answers = [answer["text"] + "" for answer in asked["answers"]]
                    yield asked["question"] + "", answers, [part["context"]], paragraphs


def _hotpotqa(content: Any) -> Iterable[Found]:
    for asked in content:
        # A row that is too short for all ten documents has at least those with the facts.
        titles = {title for title, _ in asked["supporting_facts"]}
        documents = {title: f"{title}\n{''.join(parts)}" for title, parts in asked["context"]}
        needed = [document for title, document in documents.items() if title in titles]
        yield asked["question"] + "", [asked["answer"] + ""], needed, list(documents.values())


def qa(
    draws: np.random.Generator, units: int, filler: str, *, corpus: Corpus, question: Question
) -> Row:
    """A row with the documents that the question needs, and `units` words of others."""
    known = {*question.needed, *question.near}
    near = draws.permutation(np.array(question.near, int))
    others = (i for i in draws.permutation(len(corpus.documents)) if i not in known)
    again = itertools.cycle(range(len(corpus.documents)))
    texts = (corpus.documents[i] for i in itertools.chain(near, others, again))
    found = [*(corpus.documents[i] for i in question.needed), *first_pieces(texts, units)]
    order = enumerate(draws.permutation(len(found)), start=1)
    documents = "\n\n".join(f"Document {number}:\n{found[i]}" for number, i in order)
    return Row(
        context=f"{_TASK}The following are given documents.\n\n{documents}{filler}\n\n",
        question=f"{_TASK}Question: {question.text}",
        answer_prefix=" Answer:",
        answers=question.answers,
        max_new_tokens=MAX_NEW_TOKENS,
        metric=any_contained,
    )
