# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""RULER's variable tracking: a chain of assignments in noise, after a solved example."""

from __future__ import annotations

import itertools

import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.eval.questions.answers import Row
from jaxkv.eval.tasks.ruler.niah import NOISE_LINE
from jaxkv.eval.tasks.ruler.text import coded_words, first_pieces

MAX_NEW_TOKENS = 30
NAMES = 5  # of variables: the first has the value, and four hops hand it on
LINES = 5  # of noise, at least: every assignment has one to stand before
EXAMPLE_TOKENS = 500  # at most, of the example without its solution


def _task(text: str) -> str:
    return (
        "Memorize and track the chain(s) of variable assignment hidden in the following text."
        f"\n\n{text}\n"
    )


def _question(value: int) -> str:
    return f"Question: Find all variables that are assigned the value {value} in the text above."


def _answer_prefix(value: int) -> str:
    return (
        " Answer: According to the chain(s) of variable assignment in the text above, "
        f"{NAMES} variables are assigned the value {value}, they are: "
    )


def _chain(
    draws: np.random.Generator, letters: int, value: int, words: int
) -> tuple[str, list[str]]:
    """A text with so many words of noise, and its variables in order."""
    names = [name.upper() for name in itertools.islice(coded_words(draws, letters), NAMES)]
    links = [f"VAR {name} = VAR {before} " for before, name in itertools.pairwise(names)]
    lines = first_pieces(itertools.repeat(NOISE_LINE), words)
    places = sorted(draws.choice(len(lines), NAMES, replace=False))
    for shift, link in enumerate([f"VAR {names[0]} = {value}", *links]):
        lines.insert(places[shift] + shift, link)
    return "\n".join(lines), names


def _words(lines: int) -> int:
    return lines * len(NOISE_LINE.split(" "))


def example_lines(model: Model) -> int:
    """Lines of noise in the example: as many as its tokens allow, and not too few."""

    def tokens(lines: int) -> int:
        text, _ = _chain(np.random.default_rng(0), 3, 12345, _words(lines))
        return len(model.tokenizer.encode(_task(text) + _question(12345) + _answer_prefix(12345)))

    return next(n for n in itertools.count(LINES) if tokens(n + 1) > EXAMPLE_TOKENS)


def vt(draws: np.random.Generator, units: int, filler: str, *, lines: int) -> Row:
    """A row with `units` words of noise more than the fewest, and an example with `lines`."""
    solved, value = (10000 + draws.choice(89999, 2, replace=False)).tolist()
    example, shown = _chain(draws, 3, solved, _words(lines))
    solution = f"{_question(solved)}{_answer_prefix(solved)} {' '.join(shown)}"
    text, names = _chain(draws, 5, value, _words(LINES) + units)
    return Row(
        context=f"{_task(example)}{solution}\n\n{_task(text + filler)}",
        question=_question(value),
        answer_prefix=_answer_prefix(value),
        answers=tuple(names),
        max_new_tokens=MAX_NEW_TOKENS,
    )
