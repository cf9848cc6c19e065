# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A list to be copied out whole: what an answer needs that was not needed at its start."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.eval.questions.answers import KINDS, Manner, Row, draw, evaluate_rows
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common, Task
from jaxkv.eval.tasks.passkey import WORDS

_DESCRIPTION = """Copy a list of names and numbers from the prompt.

Every line of the list is needed once, and in its turn: what a policy evicted after the prompt, or
while it copied, is missing from the answer. Policies that look again at everything can copy it.

score is the percentage of lines that the answer has, name and number (the mean over cases). The
question is read with the list, before anything is evicted.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    lines: of each list.
    cases: lists.
    batch_size: of them at once.
    """

    lines: int
    cases: int
    batch_size: int


def make_row(model: Model, lines: int, seed: int, index: int) -> Row:
    """Case `index` of a seed: a list with as many lines, and each of them as a reference."""
    draws = np.random.default_rng([seed, lines, index])
    names = [str(name) for name in draws.choice(WORDS, lines, replace=False)]
    listed = [f"{name}: {draws.integers(1000, 10000)}" for name in names]
    text = "\n".join(listed)
    return Row(
        context=f"Here is a list of names and numbers.\n\n{text}\n\n",
        question="Copy the whole list, line by line, exactly as it is above.",
        # The first line is given, so that there is no doubt about the form.
        answer_prefix=f"Here is the list of names and numbers.\n\n{listed[0]}",
        answers=tuple(listed[1:]),
        max_new_tokens=len(model.tokenizer.encode(text)) + 8,
    )


def evaluate(
    model: Model, common: Common, options: Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    rows = [make_row(model, options.lines, common.seed, i) for i in range(options.cases)]
    manner = Manner(query_aware=True, batch_size=options.batch_size)
    return evaluate_rows(TASK.name, model, common, manner, rows, progress)


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    add("--lines", type=int, default=16, metavar="N", help="lines of a list (default: 16)")
    add("--cases", type=int, default=20, metavar="N", help="lists (default: 20)")
    add("--batch-size", type=int, default=1, metavar="N", help="lists at once (default: 1)")


def check(given: argparse.Namespace) -> Options:
    """The task's options."""
    if not 2 <= given.lines <= len(WORDS):
        raise InputError(f"--lines is {given.lines}; it must be from 2 to {len(WORDS)}")
    check_positive(given, "cases", "batch_size")
    return Options(given.lines, given.cases, given.batch_size)


TASK = Task(
    name="copy",
    summary="a list that is to be copied out whole",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=KINDS,
)
