# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""LooGLE's questions that need several places of a long document, as HeadKV's paper asks them."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.eval.questions import documents
from jaxkv.eval.questions.answers import KINDS, QUERY_AWARE, Row, draw
from jaxkv.eval.questions.metrics import token_f1
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common, Task

MAX_NEW_TOKENS = {
    "comprehension_and_reasoning": 64,
    "multiple_information_retrieval": 64,
    "timeline_reorder": 32,
    "computation": 32,
}

_FILE = "longdep_qa.jsonl"

_DESCRIPTION = f"""Ask LooGLE's long-dependency questions ({_FILE}) by HeadKV's protocol.

The prompt is raw, without a chat template; answers have 64 tokens (comprehension_and_reasoning,
multiple_information_retrieval) or 32 (timeline_reorder, computation). The score of an answer is
the F1 of its words, of a task the mean over its questions (by), and score the mean of the tasks.
LooGLE's own leaderboard has other metrics. HeadKV asks 100 questions of each task: --rows 100.

{documents.CUT}

{QUERY_AWARE}
"""  # noqa: E501


def read(path: Path) -> Iterator[Row]:
    """The questions of LooGLE's file, in its order.

    Lines are documents with all their questions, or single questions with their document.

    Raises:
      InputError: a line is not in LooGLE's format.
    """
    for where, record in documents.read_records(path):
        if "qa_pairs" in record:
            context = documents.text_of(record, "input", where)
            for place, pair in _pairs(record, where):
                yield _row(context, pair, place)
        else:
            names = {"Q": "question", "A": "answer", "type": "type"}
            context, *texts = (
                documents.text_of(record, name, where) for name in ("context", *names.values())
            )
            yield _row(context, dict(zip(names, texts, strict=True)), where)


def _pairs(record: Mapping[str, Any], where: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The questions about one document; the file has them as Python's spelling of a list."""
    pairs = record["qa_pairs"]
    if isinstance(pairs, str):
        try:
            pairs = ast.literal_eval(pairs)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pairs = None
    if not isinstance(pairs, list) or not all(isinstance(pair, Mapping) for pair in pairs):
        raise InputError(f"{where}: qa_pairs must be a list of questions, or Python's text of one")
    return [(f"{where} question {n}", pair) for n, pair in enumerate(pairs, start=1)]


def _row(context: str, pair: Mapping[str, Any], where: str) -> Row:
    question, answer, task = (documents.text_of(pair, name, where) for name in ("Q", "A", "type"))
    if task not in MAX_NEW_TOKENS:
        raise InputError(f"{where}: type is {task!r:.40}; it must be {', '.join(MAX_NEW_TOKENS)}")
    return Row(
        context=f"Please answer the question based on the long texts below. \n{context}",
        question=f"\nQuestion: {question}\nAnswer:",
        answer_prefix="",
        answers=(answer,),
        max_new_tokens=MAX_NEW_TOKENS[task],
        task=task,
        metric=token_f1,
        chat=False,
    )


def evaluate(
    model: Model, common: Common, options: documents.Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    return documents.evaluate(TASK.name, model, common, options, progress)


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    documents.add_arguments(add, f"LooGLE's {_FILE}, or a folder that has it")


def check(given: argparse.Namespace) -> documents.Options:
    """The task's options, with the file read."""
    path = documents.data_path(given)
    if path.is_dir():
        path /= _FILE
    return documents.check(given, read(path))


TASK = Task(
    name="loogle",
    summary="long-dependency questions of LooGLE's file",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=KINDS,
)
