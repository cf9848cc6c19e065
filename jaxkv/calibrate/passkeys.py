# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Pass-keys hidden in a long text, and questions for them: what retrieval heads are found by.

After DuoAttention's training data (arXiv 2410.10819, section 3.2, and its code). An example is

    This is a very long story book: <book> ... Remember this sequence of words, it's the first
    passkey to the vault: kilo alpha ... </book>.

    Based on the content of the book, what is the first passkey to the vault?
    Passkey: kilo alpha ...

with as many tokens as were asked for, all in all: the haystack is cut to fit.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxkv.core.errors import InputError
from jaxkv.text.tokenizer import Tokenizer

ALPHABET = (
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett",
    "kilo", "lima", "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango",
    "uniform", "victor", "whiskey", "xray", "yankee", "zulu",
)  # fmt: skip
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth",
    "eighteenth", "nineteenth", "twentieth",
)  # fmt: skip
DIGITS = 7
_SIZES = 50  # lengths that examples are drawn from, as in the paper
_NOISE = 5  # sentences that are repeated around numbers
_OPEN, _CLOSE = "This is a very long story book: <book> ", " </book>.\n\n"

# A sentence of the built-in haystack takes one of each.
_SENTENCES = (
    ("In the morning", "Years later", "Before the rain", "At the old harbour", "Without a word",
     "As everybody knew", "On the way home", "In the north", "After supper", "That winter",
     "Under a pale sky", "For the third time", "Behind the church", "To his surprise"),
    ("the miller", "a tall stranger", "my aunt", "the captain", "an honest clerk", "the widow",
     "their teacher", "a young painter", "the gardener", "nobody", "the youngest brother",
     "a doctor from the city", "the whole village", "an old soldier"),
    ("remembered", "was looking for", "sold", "described", "could not find", "carried away",
     "had forgotten", "laughed at", "repaired", "wrote about", "asked for", "kept", "counted",
     "praised"),
    ("the broken clock", "two letters", "a map of the river", "the red umbrella", "some bread",
     "the key to the cellar", "a song", "seven horses", "the price of salt", "a small lamp",
     "every room of the house", "the road to the mill", "a box of nails", "the last train"),
    ("and went on", "as if it mattered", "with great care", "until the snow melted", "in silence",
     "for no good reason", "while the others slept", "and then the bell rang", "near the bridge",
     "though it was late", "because of the war", "and smiled", "day after day", "by candlelight"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What examples are made of.

    Attributes:
      min_length, max_length: tokens of a whole example, drawn from 50 lengths in between.
      passkeys: how many in one example.
      words: of each, from a 26-word alphabet.
      number_share: share of examples whose pass-keys are numbers instead, in a few sentences that
        repeat: what a head must find does not always look the same.
      haystack: text to hide them in, from a place that is drawn; None makes up sentences.
    """

    min_length: int
    max_length: int
    passkeys: int
    words: int
    number_share: float
    haystack: str | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class Example:
    """Attributes:
    tokens: int32 [T].
    labels: bool [T], the tail of questions and answers.
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
    numbers: bool
    draws: np.random.Generator  # what is left to draw

    @property
    def room(self) -> int:
        """Tokens for the haystack."""
        taken = [self.opening, *self.needles, self.closing, self.tail]
        return self.length - sum(map(len, taken))


def make_example(recipe: Recipe, tokenizer: Tokenizer, seed: int, step: int) -> Example:
    """The example of a step: the same whatever was drawn before it."""
    parts = _parts(recipe, tokenizer, seed, step)
    hay = _haystack(recipe, tokenizer, parts)
    ratios = parts.draws.choice(np.linspace(0.05, 0.95, 1000), len(parts.needles), replace=False)
    ids, begin = list(parts.opening), 0
    for needle, ratio in zip(parts.needles, np.sort(ratios), strict=True):
        end = int(ratio * len(hay))
        ids += hay[begin:end] + needle
        begin = end
    ids += hay[begin:] + parts.closing + parts.tail
    labels = np.arange(len(ids)) >= len(ids) - len(parts.tail)
    return Example(np.asarray(ids, np.int32), labels)


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
    numbers = bool(draws.random() < recipe.number_share)
    what = "number" if numbers else "sequence of words"
    needles, tail = [], ""
    for ordinal in ORDINALS[: recipe.passkeys]:
        if numbers:
            key = str(draws.integers(10 ** (DIGITS - 1), 10**DIGITS))
        else:
            key = " ".join(draws.choice(ALPHABET, recipe.words))
        needle = f"\n\nRemember this {what}, it's the {ordinal} passkey to the vault: {key}\n\n"
        needles.append(tokenizer.encode(needle))
        tail += (
            f"Based on the content of the book, what is the {ordinal} passkey to the vault?\n"
            f"Passkey: {key}\n\n"
        )
    opening = [*tokenizer.bos_ids, *tokenizer.encode(_OPEN)]
    closing, asked = tokenizer.encode(_CLOSE), tokenizer.encode(tail)
    return _Parts(length, needles, opening, closing, asked, numbers, draws)


def _haystack(recipe: Recipe, tokenizer: Tokenizer, parts: _Parts) -> list[int]:
    """Exactly as many tokens as there is room for."""
    if parts.numbers:
        return _cycled(tokenizer, _made_up(parts.draws, _NOISE), 0, parts.room)
    if recipe.haystack is None:
        # A sentence has more than four tokens.
        return _cycled(tokenizer, _made_up(parts.draws, parts.room // 4 + 1), 0, parts.room)
    start = int(parts.draws.integers(len(recipe.haystack)))
    start = recipe.haystack.find(" ", start) + 1  # a word's start; the text's, if there is none
    return _cycled(tokenizer, recipe.haystack, start, parts.room)


def _cycled(tokenizer: Tokenizer, text: str, start: int, count: int) -> list[int]:
    """The first `count` tokens of a text from a place on, as if it went on for ever."""
    ids: list[int] = []
    while len(ids) < count:
        piece = text[start : start + 8 * count + 64]  # no more of a long text than is needed
        ids += tokenizer.encode(piece)
        start = (start + len(piece)) % len(text)
    return ids[:count]


def _made_up(draws: np.random.Generator, count: int) -> str:
    """So many sentences, each ending in a space."""
    choices = [draws.choice(parts, count) for parts in _SENTENCES]
    return "".join(f"{a} {b} {c} {d} {e}. " for a, b, c, d, e in zip(*choices, strict=True))
