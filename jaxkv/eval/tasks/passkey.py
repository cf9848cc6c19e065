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
    KINDS_BY_DEPTH,
    QUERY_AWARE,
    Manner,
    Row,
    add_manner,
    check_manner,
    draw,
    evaluate_rows,
)
from jaxkv.eval.questions.haystacks import (
    add_cells,
    add_lengths,
    check_lengths,
    largest_row,
)
from jaxkv.eval.questions.rows import add_save_rows, check_save_rows, save_rows
from jaxkv.eval.questions.wordings import WORDINGS
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common, Task
from jaxkv.text.prose import depth_percents

WORDS = (
    "anchor", "basket", "candle", "desert", "engine", "feather", "garden", "hammer", "island",
    "jacket", "kettle", "ladder", "marble", "needle", "orchard", "pillow", "quarry", "ribbon",
    "saddle", "temple", "umbrella", "velvet", "window", "yarn",
)  # fmt: skip

_DESCRIPTION = f"""Find a number that is hidden in a text, in the manner of RULER's niah_single_1.

  --wording  ruler      RULER's, in sentences that repeat
             classic    the first pass-key test's, in the same: the number is said twice
             safe       in an essay
             invoice, catalogue  in Python's own help texts
             none of them is among those that python -m jaxkv.calibrate finds heads by

Each prompt, with its chat template, question and start of the answer, has as many tokens as fit in
its length and never more. score is the percentage of numbers found; by has it for every length and
every depth, cells for both together. With several wordings by has it for each at every length too.

{QUERY_AWARE}
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    lengths: of the prompts, in tokens.
    depths: how many, evenly from the start (0) to the end (100) of the noise.
    rows_per_cell: rows of each length and depth.
    digits: of a number, or None for the wording's own.
    wordings: names of `WORDINGS`.
    save_rows: where to keep the rows, or None.
    manner: how they are put to the model.
    """

    lengths: tuple[int, ...]
    depths: int
    rows_per_cell: int
    digits: int | None
    wordings: tuple[str, ...]
    save_rows: str | None
    manner: Manner


def make_rows(
    model: Model,
    lengths: Sequence[int],
    depths: int,
    rows_per_cell: int,
    seed: int,
    digits: int | None = None,
    wordings: Sequence[str] = ("ruler",),
) -> tuple[Row, ...]:
    """Rows of every wording, length and depth; each is the same whatever the others are.

    With several wordings a row's task is its wording and length, by which reports have scores.

    Raises:
      InputError: a length does not even hold the question.
    """
    cells = itertools.product(wordings, lengths, depth_percents(depths), range(rows_per_cell))
    rows = []
    for name, length, depth, index in cells:
        wording, task = WORDINGS[name], f"{name}-{length}" if len(wordings) > 1 else None
        size = digits or wording.digits
        draws = np.random.default_rng([seed, length, round(10 * depth), index])
        word = WORDS[draws.integers(len(WORDS))]
        number = int(draws.integers(10 ** (size - 1), 10**size))

        def fitted(sentences: int) -> Row:
            return wording.row(word, number, sentences, depth, length, task)  # noqa: B023

        rows.append(largest_row(model, fitted, length)[0])
    return tuple(rows)


def evaluate(
    model: Model, common: Common, options: Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    rows = make_rows(
        model, options.lengths, options.depths, options.rows_per_cell, common.seed,
        options.digits, options.wordings,
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
        help="of a number (default: of ruler 7, of others 5 or 6)",
    )
    add(
        "--wording",
        type=str | None,
        metavar="NAMES",
        help=f"of {', '.join(WORDINGS)}, separated by commas, or all (default: ruler)",
    )
    add("--classic", action="store_true", help="the same as --wording classic")
    add_save_rows(add)
    add_manner(add)


def check(given: argparse.Namespace) -> Options:
    """The task's options."""
    check_positive(given, "depths", "rows_per_cell")
    if given.digits is not None and not 1 <= given.digits <= 9:
        raise InputError(f"--digits is {given.digits}; it must be from 1 to 9")
    if given.classic and given.wording is not None:
        raise InputError(f"--classic is a wording, and --wording is {given.wording!r}; give one")
    check_save_rows(given)
    return Options(
        check_lengths(given),
        given.depths,
        given.rows_per_cell,
        given.digits,
        _wordings("classic" if given.classic else given.wording or "ruler"),
        given.save_rows,
        check_manner(given),
    )


def _wordings(names: str) -> tuple[str, ...]:
    """Each once."""
    found = tuple(WORDINGS) if names == "all" else tuple(x.strip() for x in names.split(","))
    for name in found:
        if name not in WORDINGS:
            raise InputError(
                f"--wording has {name!r}; each must be one of {', '.join(WORDINGS)}, or all"
            )
    return tuple(dict.fromkeys(found))


TASK = Task(
    name="passkey",
    summary="a number hidden in noise, by length and depth",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=KINDS_BY_DEPTH,
)
