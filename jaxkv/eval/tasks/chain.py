# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A chain of keys: each step needs a place of the context that only the step before makes known."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.eval.questions.answers import (
    KINDS,
    QUERY_AWARE,
    Manner,
    Row,
    add_manner,
    check_manner,
    draw,
    evaluate_rows,
)
from jaxkv.eval.questions.haystacks import add_lengths, check_lengths, exact_row
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common, Task
from jaxkv.eval.tasks.ruler.lexicon import ADJECTIVES, NOUNS, VERBS

EXAMPLE = (
    "waggish-fishery", "fishery-mosquito", "mosquito-perfume", "perfume-panda", "panda-juice",
    "juice-willow", "willow-bronco", "bronco-creditor", "creditor-bathhouse", "bathhouse-woman",
)  # fmt: skip

_DESCRIPTION = f"""Chain of keys (RefreshKV, arXiv 2411.05787v2), in the words of the paper.

The prompt is a shuffled list of keys of two words, such as toga-roommate. The model is to say --hops of
them, each beginning with the word that the last one ends with. All keys are one closed chain, so that
every key has exactly one that follows it. Each prompt, with its chat template, has exactly as many
tokens as its length (22,000 in the paper).

score is how many keys are right from the first on, in percent of --hops. A key is right if it is in the
list and begins as the last one ended; the first may be any of the list. With --start the answer begins
with a given key, and the ones after it count.

{QUERY_AWARE}
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    lengths: of the prompts, in tokens.
    hops: keys of a chain.
    rows: of each length.
    start: whether the first key is given.
    manner: how they are put to the model.
    """

    lengths: tuple[int, ...]
    hops: int
    rows: int
    start: bool
    manner: Manner


def valid_chain(
    text: str, answers: Sequence[str], *, keys: Collection[str], hops: int, last: str | None
) -> float:
    """Percentage of `hops` that the chain at the start of a text reaches.

    Keys are what a hyphen joins, whatever is between them.

    Args:
      text: the answer.
      answers: a right chain; another is as good.
      keys: of the list.
      hops: how many keys a whole chain has.
      last: the word that the first key must begin with, or None.
    """
    del answers
    right = 0
    for key in re.findall(r"(?<![\w-])[a-z]+-[a-z]+(?![\w-])", text.lower())[:hops]:
        first, _, end = key.partition("-")
        if key not in keys or last not in (None, first):
            break
        right, last = right + 1, end
    return 100.0 * right / hops


def make_keys(count: int, seed: Sequence[int]) -> list[str]:
    """Keys in the order of their chain, which the last one closes.

    Fewer of a seed have the same words as more of it. Where the words run out, two make another.
    """
    example = {word for key in EXAMPLE for word in key.split("-")}
    known = [word for word in (*ADJECTIVES, *NOUNS, *VERBS) if word not in example]
    shuffled = [known[i] for i in np.random.default_rng(seed).permutation(len(known))]
    chosen = dict.fromkeys(shuffled[:count])
    for apart, (i, word) in itertools.product(range(1, len(known)), enumerate(shuffled)):
        if len(chosen) >= count:
            break
        chosen[word + shuffled[i - apart]] = None
    words = list(chosen)
    return [f"{a}-{b}" for a, b in zip(words, words[1:] + words[:1], strict=True)]


def make_row(
    count: int, more: str, length: int, hops: int, start: bool, seed: Sequence[int]
) -> Row:
    """A row with `count` keys, and `more` text before them."""
    keys = make_keys(count, seed)
    shuffled = [keys[i] for i in np.random.default_rng([*seed, count]).permutation(count)]
    listed = "".join(f"Name of key: {key}\n" for key in shuffled)
    task = (
        "You are given many keys composed of a few words. Your task is to generate a chain of "
        f"{hops} keys such that the first word of the current key is the last word of the previous "
        "key. Separate the keys with comma."
    )
    example = ", ".join(EXAMPLE[:hops])
    number = "ten" if hops == 10 else str(hops)
    begin = keys[:1] if start else []
    return Row(
        context=f"{task} Example: {example}. You must generate keys that are in the context. "
        f"DO NOT REPEAT THE EXAMPLE.{more}\nContext:{listed}",
        question=f"{task}You must generate keys that are in the context. Chain of {number} keys:"
        + " " * len(begin),
        answer_prefix="".join(f"{key}," for key in begin),
        answers=tuple(keys[1 : 1 + hops]),
        max_new_tokens=1,
        length=length,
        metric=functools.partial(
            valid_chain,
            keys=frozenset(keys),
            hops=hops,
            last=begin[0].partition("-")[2] if begin else None,
        ),
    )


def make_rows(model: Model, options: Options, seed: int) -> list[Row]:
    """Rows of every length; each is the same whatever the others are.

    Raises:
      InputError: a length does not hold a whole chain.
    """
    rows = []
    for length, index in itertools.product(options.lengths, range(options.rows)):
        draws = (seed, length, index)

        def make(count: int, more: str) -> Row:
            return make_row(count, more, length, options.hops, options.start, draws)  # noqa: B023

        row = exact_row(model, make, length)
        if len(row.answers) < options.hops:
            raise InputError(
                f"a length of {length} tokens is too small for chains of {options.hops} keys"
            )
        said = len(model.tokenizer.encode(", ".join(row.answers)))
        rows.append(dataclasses.replace(row, max_new_tokens=said + said // 4 + 8))
    return rows


def evaluate(
    model: Model, common: Common, options: Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    rows = make_rows(model, options, common.seed)
    return evaluate_rows(TASK.name, model, common, options.manner, rows, progress)


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    add_lengths(add, "1024")
    add("--hops", type=int, default=10, metavar="N", help="keys of a chain (default: 10)")
    add("--rows", type=int, default=10, metavar="N", help="of each length (default: 10)")
    add("--start", action="store_true", help="the answer begins with a given key")
    add_manner(add)


def check(given: argparse.Namespace) -> Options:
    """The task's options."""
    check_positive(given, "hops", "rows")
    return Options(check_lengths(given), given.hops, given.rows, given.start, check_manner(given))


TASK = Task(
    name="chain",
    summary="a chain of keys: each is found by the one before it",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=KINDS,
)
