# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Pass-keys hidden in a long text, and questions for them: what gates are trained on.

After DuoAttention's training data (arXiv 2410.10819, section 3.2, and its code), in several
wordings and haystacks. An example is

    This is a very long story book: <book> ... Remember this, it's the first passkey to the vault:
    kilo alpha ... </book>.

    Based on the content of the book, what is the first passkey to the vault?
    Passkey: kilo alpha ...

with as many tokens as were asked for, all in all: the haystack is cut to fit.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxkv.calibrate.haystacks import Haystack, hay_ids
from jaxkv.calibrate.wordings import Wording, draw_key
from jaxkv.core.errors import InputError
from jaxkv.text.tokenizer import Tokenizer

_SIZES = 50  # lengths that examples are drawn from, as in the paper
_OPEN, _CLOSE = "This is a very long story book: <book> ", " </book>.\n\n"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What examples are made of.

    Attributes:
      min_length, max_length: tokens of a whole example, drawn from 50 lengths in between.
      passkeys: how many in one example.
      words: of each, from a 26-word alphabet.
      number_share: share of pass-keys that are numbers instead.
      wordings: each example has one of them, in turn.
      haystacks: each example has one of them, drawn, from a sentence on that is drawn too.
    """

    min_length: int
    max_length: int
    passkeys: int
    words: int
    number_share: float
    wordings: tuple[Wording, ...]
    haystacks: tuple[Haystack, ...] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Example:
    """Attributes:
    tokens: int32 [T].
    labels: bool [T], the tokens after which a token of an answer comes: those whose hidden states
      say it. The reference code labels the questions too, at which nothing has to be found.
    """

    tokens: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Parts:
    """An example without its haystack, in tokens."""

    length: int  # of the whole example
    needles: list[list[int]]
    opening: list[int]
    closing: list[int]
    tail: list[int]
    labels: list[bool]  # of the tail
    draws: np.random.Generator  # what is left to draw

    @property
    def room(self) -> int:
        """Tokens for the haystack."""
        taken = [self.opening, *self.needles, self.closing, self.tail]
        return self.length - sum(map(len, taken))


def make_example(recipe: Recipe, tokenizer: Tokenizer, seed: int, step: int) -> Example:
    """The example of a step: the same whatever was drawn before it."""
    parts = _parts(recipe, tokenizer, seed, step)
    sentences = recipe.haystacks[parts.draws.integers(len(recipe.haystacks))]
    start = int(parts.draws.integers(len(sentences)))
    hay = hay_ids(tokenizer, sentences, start, parts.room)
    ratios = parts.draws.choice(np.linspace(0.05, 0.95, 1000), len(parts.needles), replace=False)
    ids, begin = list(parts.opening), 0
    for needle, ratio in zip(parts.needles, np.sort(ratios), strict=True):
        end = int(ratio * len(hay))
        ids += hay[begin:end] + needle
        begin = end
    ids += hay[begin:] + parts.closing + parts.tail
    labels = [False] * (len(ids) - len(parts.tail)) + parts.labels
    return Example(np.asarray(ids, np.int32), np.asarray(labels))


def check_room(recipe: Recipe, tokenizer: Tokenizer, seed: int, steps: int) -> None:
    """Before the work: that every step's pass-keys fit.

    Raises:
      InputError: those of some step do not.
    """
    parts = [_parts(recipe, tokenizer, seed, step) for step in range(steps)]
    least = max(part.length - part.room for part in parts)
    if least > recipe.min_length:
        raise InputError(
            f"--min-length is {recipe.min_length}; {recipe.passkeys} pass-keys of {recipe.words} "
            f"words and the questions for them take up to {least} tokens, so it must be at least "
            "that, or --passkeys or --words less"
        )


def _parts(recipe: Recipe, tokenizer: Tokenizer, seed: int, step: int) -> _Parts:
    draws = np.random.default_rng([seed, step])
    sizes = np.linspace(recipe.min_length, recipe.max_length, _SIZES).astype(int)
    length = int(draws.choice(sizes))
    wording = recipe.wordings[step % len(recipe.wordings)]
    needles, tail, labels = [], [], []
    for who in wording.owners[: recipe.passkeys]:
        key = draw_key(draws, recipe.words, recipe.number_share)
        needles.append(tokenizer.encode(wording.sentence(who, key)))
        question, opening = wording.asked(who)
        asked, said = tokenizer.encode(f"{question}\n{opening}"), tokenizer.encode(f" {key}")
        tail += [*asked, *said, *tokenizer.encode("\n\n")]
        # The last token before the key says its first.
        labels += [False] * (len(asked) - 1) + [True] * len(said)
        labels += [False] * (len(tail) - len(labels))
    opening = [*tokenizer.bos_ids, *tokenizer.encode(_OPEN)]
    return _Parts(length, needles, opening, tokenizer.encode(_CLOSE), tail, labels, draws)
