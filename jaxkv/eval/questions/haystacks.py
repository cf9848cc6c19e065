# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Text that needles are hidden in, and prompts of an exact number of tokens."""

from __future__ import annotations

import argparse
import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import read_text
from jaxkv.core.errors import InputError
from jaxkv.eval.questions.answers import Row, row_ids
from jaxkv.text.prose import sentences

NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
_FILLER = " One more line of the same text goes here, and then some more of it, and so on and on."
_FEWER = 7  # sentences less than fit, before giving up


def builtin_text() -> str:
    """English that is on every machine: the help texts that come with Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def haystack(name: str) -> tuple[str, ...]:
    """Sentences by the name that users type: "noise", "help", or a file of text.

    Raises:
      InputError: the file cannot be read or holds no text.
    """
    if name == "noise":
        return NOISE
    if name == "help":
        return sentences(builtin_text())
    return sentences(read_text("--haystack", name))


def cycled(hay: Sequence[str], count: int, start: int = 0) -> list[str]:
    """`count` sentences from one on, as if they went on for ever."""
    start %= len(hay)
    return list(itertools.islice(itertools.cycle(hay), start, start + count))


def largest_row(model: Model, make: Callable[[int], Row], length: int) -> tuple[Row, int]:
    """The row with the most units of haystack whose prompt has at most `length` tokens.

    Args:
      model: whose tokens.
      make: a row with so many units of haystack; each unit is at least a token.
      length: tokens of the whole prompt.

    Returns:
      The row, and its units.

    Raises:
      InputError: even a row with none is longer.
    """
    bare = len(row_ids(model, make(0)))
    if bare > length:
        raise InputError(
            f"a length of {length} tokens is too small; the question alone takes {bare} tokens, "
            "so it must be at least that"
        )
    fit = bisect.bisect_right(
        range(length), length, key=lambda count: len(row_ids(model, make(count)))
    )
    return make(fit - 1), fit - 1


def exact_row(model: Model, make: Callable[[int, str], Row], length: int) -> Row:
    """As `largest_row`, filled up to exactly `length` tokens.

    Args:
      model: whose tokens.
      make: a row with so many units of haystack and, after the last of them, some further text.
      length: tokens of the whole prompt.

    Raises:
      InputError: even a row with no haystack is longer, or no filler gives the exact length.
    """
    row, units = largest_row(model, lambda count: make(count, ""), length)
    if len(row_ids(model, row)) == length:
        return row
    # A character more is mostly no token more or one, so some beginning of the filler is right;
    # where one takes two, behind a smaller haystack.
    for fewer in range(min(units, _FEWER) + 1):
        missing = length - len(row_ids(model, make(units - fewer, "")))
        text = _FILLER * (1 + missing // 8)
        for end in range(missing, min(len(text), 8 * missing + 64)):
            row = make(units - fewer, text[:end])
            made = len(row_ids(model, row))
            if made == length:
                return row
            if made > length + 2:  # a longer text may have a token less, hardly three
                break
    raise InputError(f"no prompt of exactly {length} tokens could be made with this tokenizer")


def add_lengths(add: Callable[..., Any], default: str) -> None:
    """The flag of prompt lengths."""
    add(
        "--lengths",
        type=str,
        default=default,
        metavar="N,N",
        help=f"tokens of the whole prompt, separated by commas (default: {default})",
    )


def check_lengths(given: argparse.Namespace) -> tuple[int, ...]:
    """The lengths, each once."""
    try:
        lengths = tuple(int(part) for part in given.lengths.split(","))
    except ValueError:
        raise InputError(
            f"--lengths is {given.lengths!r}; it must be integers separated by commas"
        ) from None
    if min(lengths) < 1:
        raise InputError(f"--lengths has {min(lengths)}; each must be at least 1")
    return tuple(dict.fromkeys(lengths))


def add_cells(add: Callable[..., Any], depths: int) -> None:
    """The flags of rows by length and depth; `check_positive` checks them."""
    add(
        "--depths",
        type=int,
        default=depths,
        metavar="N",
        help=f"how many depths, evenly from start to end (default: {depths})",
    )
    add(
        "--rows-per-cell",
        type=int,
        default=1,
        metavar="N",
        help="rows of each length and depth (default: 1)",
    )
