# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A number hidden in noise: what is still in the cache, by length and by depth."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.eval.questions.answers import (
    QUERY_AWARE,
    Manner,
    Row,
    add_manner,
    check_manner,
    draw,
    evaluate_rows,
)
from jaxkv.eval.questions.haystacks import (
    NOISE,
    add_cells,
    add_lengths,
    check_lengths,
    cycled,
    largest_row,
)
from jaxkv.eval.questions.rows import add_save_rows, check_save_rows, save_rows
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common, Task
from jaxkv.text.prose import depth_percents

MAX_NEW_TOKENS = 16  # seven digits, for tokenizers that have one token a digit, and some room

WORDS = (
    "anchor", "basket", "candle", "desert", "engine", "feather", "garden", "hammer", "island",
    "jacket", "kettle", "ladder", "marble", "needle", "orchard", "pillow", "quarry", "ribbon",
    "saddle", "temple", "umbrella", "velvet", "window", "yarn",
)  # fmt: skip

_DESCRIPTION = f"""Find a number that is hidden in repeated sentences, in the manner of RULER's niah_single_1.

Each prompt, with its chat template, question and start of the answer, has as many tokens as fit in
its length and never more. score is the percentage of numbers found; by has it for every length and
every depth, cells for both together.

{QUERY_AWARE}
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    lengths: of the prompts, in tokens.
    depths: how many, evenly from the start (0) to the end (100) of the noise.
    rows_per_cell: rows of each length and depth.
    digits: of a number.
    classic: whether the sentences are those of the first pass-key test and not RULER's.
    save_rows: where to keep the rows, or None.
    manner: how they are put to the model.
    """

    lengths: tuple[int, ...]
    depths: int
    rows_per_cell: int
    digits: int
    classic: bool
    save_rows: str | None
    manner: Manner


def make_row(
    word: str, number: int, sentences: int, depth: float, length: int | None = None
) -> Row:
    """A row with the needle after `depth` percent of the sentences."""
    noise = cycled(NOISE, sentences)
    at = round(sentences * depth / 100)
    noise.insert(at, f"One of the special magic numbers for {word} is: {number}.")
    return Row(
        context="A special magic number is hidden within the following text. Make sure to memorize "
        f"it. I will quiz you about the number afterwards.\n{' '.join(noise)}\n",
        question=f"What is the special magic number for {word} mentioned in the provided text?",
        answer_prefix=f"The special magic number for {word} mentioned in the provided text is",
        answers=(str(number),),
        max_new_tokens=MAX_NEW_TOKENS,
        length=length,
        depth=depth,
    )


def make_classic_row(
    word: str, number: int, sentences: int, depth: float, length: int | None = None
) -> Row:
    """As `make_row`, with the sentences of the first pass-key test (arXiv 2305.16300)."""
    del word
    noise = cycled(NOISE, sentences)
    key = f"The pass key is {number}. Remember it. {number} is the pass key."
    noise.insert(round(sentences * depth / 100), key)
    return Row(
        context="There is an important info hidden inside a lot of irrelevant text. Find it and "
        f"memorize it. I will quiz you about it.\n{' '.join(noise)}\n",
        question="What is the pass key?",
        answer_prefix="The pass key is",
        answers=(str(number),),
        max_new_tokens=MAX_NEW_TOKENS,
        length=length,
        depth=depth,
    )


def make_rows(
    model: Model,
    lengths: Sequence[int],
    depths: int,
    rows_per_cell: int,
    seed: int,
    digits: int = 7,
    classic: bool = False,
) -> tuple[Row, ...]:
    """Rows of every length and depth; each is the same whatever the others are.

    Raises:
      InputError: a length does not even hold the question.
    """
    cells = itertools.product(lengths, depth_percents(depths), range(rows_per_cell))
    rows = []
    for length, depth, index in cells:
        draws = np.random.default_rng([seed, length, round(10 * depth), index])
        word = WORDS[draws.integers(len(WORDS))]
        number = int(draws.integers(10 ** (digits - 1), 10**digits))

        def fitted(sentences: int) -> Row:
            make = make_classic_row if classic else make_row
            return make(word, number, sentences, depth, length)  # noqa: B023

        rows.append(largest_row(model, fitted, length)[0])
    return tuple(rows)


def evaluate(
    model: Model, common: Common, options: Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    rows = make_rows(
        model, options.lengths, options.depths, options.rows_per_cell, common.seed,
        options.digits, options.classic,
    )  # fmt: skip
    if options.save_rows is not None:
        save_rows(options.save_rows, rows)
    return evaluate_rows(TASK.name, model, common, options.manner, rows, progress)


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    add_lengths(add, "512,1024")
    add_cells(add, 5)
    add(
        "--digits",
        type=int | None,
        metavar="N",
        help="of a number (default: 7 as in RULER, 5 with --classic)",
    )
    add(
        "--classic",
        action="store_true",
        help="the sentences of the first pass-key test: the number is said twice",
    )
    add_save_rows(add)
    add_manner(add)


def check(given: argparse.Namespace) -> Options:
    """The task's options."""
    check_positive(given, "depths", "rows_per_cell")
    digits = (5 if given.classic else 7) if given.digits is None else given.digits
    if not 1 <= digits <= 9:
        raise InputError(f"--digits is {given.digits}; it must be from 1 to 9")
    check_save_rows(given)
    return Options(
        check_lengths(given),
        given.depths,
        given.rows_per_cell,
        digits,
        given.classic,
        given.save_rows,
        check_manner(given),
    )


TASK = Task(
    name="passkey",
    summary="a number hidden in noise, by length and depth",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
)
