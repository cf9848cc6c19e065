# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions from a file, in kvpress' row format."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import read_text
from jaxkv.core.errors import InputError
from jaxkv.core.files import check_target, whole_file
from jaxkv.core.progress import Progress
from jaxkv.core.reading import parse_json
from jaxkv.eval.questions.answers import (
    KINDS_BY_DEPTH,
    QUERY_AWARE,
    Manner,
    Row,
    add_manner,
    check_manner,
    draw,
    evaluate_rows,
)
from jaxkv.eval.questions.metrics import Metric, any_contained, contained, token_f1
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common, Task

MAX_NEW_TOKENS = 128
METRICS: Mapping[str, Metric] = {f.__name__: f for f in (contained, any_contained, token_f1)}

_DESCRIPTION = f"""Answer the questions of a file; a JSON list of rows, or one JSON row a line.

  context, question   the prompt, one directly after the other, in the model's chat template if any
  answer_prefix       start of the model's answer (default: none)
  answer              a text, or a list of texts
  max_new_tokens      of the answer (default: {MAX_NEW_TOKENS})
  task, length, depth what the report groups by (optional)
  metric              contained (default): percentage of the references that the answer contains,
                      whatever their case; any_contained: whether it contains one; token_f1
  chat                whether the prompt is put into the chat template (default: if there is one)

score is the mean over rows.

{QUERY_AWARE}
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    rows: at least one.
    manner: how they are put to the model.
    """

    rows: tuple[Row, ...]
    manner: Manner


def read_rows(path: str) -> tuple[Row, ...]:
    """The rows of a JSON or JSONL file.

    Raises:
      InputError: the file or a row of it cannot be used.
    """
    text = read_text("--rows", path)
    if text.lstrip().startswith("["):
        values = parse_json(text, f"--rows {path}")
    else:
        # Not splitlines: JSON strings may hold other line separators as they are.
        lines = enumerate(text.split("\n"), start=1)
        values = [parse_json(line, f"--rows {path} line {n}") for n, line in lines if line.strip()]
    if not values:
        raise InputError(f"--rows {path} holds no rows; it must have at least one")
    return tuple(row_of(value, f"--rows {path} row {n}") for n, value in enumerate(values, start=1))


def row_of(value: Any, where: str) -> Row:
    """A row from plain data; `where` begins the messages."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be an object with names and values")
    for name in ("context", "question", "answer"):
        if name not in value:
            raise InputError(f"{where} has no {name!r}; a row has context, question and answer")
    answers = value["answer"]
    answers = [answers] if isinstance(answers, str) else answers
    texts = isinstance(answers, list) and all(isinstance(a, str) and a for a in answers)
    if not (texts and answers):
        raise InputError(f"{where}: answer must be a text or a list of texts, none of them empty")
    row = Row(
        context=value["context"],
        question=value["question"],
        answer_prefix=value.get("answer_prefix") or "",
        answers=tuple(answers),
        max_new_tokens=value.get("max_new_tokens", MAX_NEW_TOKENS),
        task=value.get("task"),
        length=value.get("length"),
        depth=value.get("depth"),
        metric=contained if "metric" not in value else _metric(value["metric"], where),
        chat=value.get("chat"),
    )
    if type(row.chat) not in (bool, type(None)):
        raise InputError(f"{where}: chat is {row.chat!r:.40}; it must be true or false")
    for name in ("context", "question", "answer_prefix", "task"):
        field = getattr(row, name)
        if not isinstance(field, str) and not (name == "task" and field is None):
            raise InputError(f"{where}: {name} is {field!r:.40}; it must be a text")
    if type(row.max_new_tokens) is not int or row.max_new_tokens < 1:
        raise InputError(
            f"{where}: max_new_tokens is {row.max_new_tokens!r:.40}; it must be an integer from 1"
        )
    if type(row.length) not in (int, type(None)):
        raise InputError(f"{where}: length is {row.length!r:.40}; it must be an integer")
    if type(row.depth) not in (int, float, type(None)):
        raise InputError(f"{where}: depth is {row.depth!r:.40}; it must be a number")
    if not (row.context + row.question).strip():
        raise InputError(f"{where}: context and question are empty; they must hold some text")
    return row


def save_rows(path: str, rows: Sequence[Row]) -> None:
    """Writes rows as JSONL, which `read_rows` reads; whole or not at all.

    A metric of a task's own has no name there and is left out.
    """
    names = "context question answer_prefix max_new_tokens task length depth chat".split()
    with whole_file(path) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            values = {name: getattr(row, name) for name in names}
            values = {name: value for name, value in values.items() if value is not None}
            if row.metric in METRICS.values():
                values["metric"] = next(n for n, metric in METRICS.items() if metric is row.metric)
            file.write(json.dumps(values | {"answer": list(row.answers)}) + "\n")


def add_save_rows(add: Callable[..., Any]) -> None:
    """The flag of `save_rows`."""
    add(
        "--save-rows",
        type=str | None,
        metavar="FILE",
        help="keep the rows as JSONL, for the task rows; what has a metric of its own is scored by "
        "`contained` there",
    )


def check_save_rows(given: argparse.Namespace) -> None:
    """That the rows can be written, before the work."""
    if given.save_rows is not None:
        check_target("--save-rows", given.save_rows)


def _metric(name: Any, where: str) -> Metric:
    if not isinstance(name, str) or name not in METRICS:
        raise InputError(f"{where}: metric is {name!r:.40}; it must be one of {', '.join(METRICS)}")
    return METRICS[name]


def evaluate(
    model: Model, common: Common, options: Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    return evaluate_rows(TASK.name, model, common, options.manner, options.rows, progress)


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    add("--rows", type=str | None, metavar="FILE", help="JSON or JSONL (needed)")
    add_manner(add)


def check(given: argparse.Namespace) -> Options:
    """The task's options, with the rows read."""
    if given.rows is None:
        raise InputError("there are no rows; give --rows FILE")
    return Options(read_rows(given.rows), check_manner(given))


TASK = Task(
    name="rows",
    summary="questions from a file of rows in kvpress' format",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=KINDS_BY_DEPTH,
)
