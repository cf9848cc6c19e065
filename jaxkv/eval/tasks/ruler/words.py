# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""RULER's two counting tasks: common words of a list, and frequent words of a coded text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from jaxkv.eval.questions.answers import Row
from jaxkv.eval.tasks.ruler.lexicon import ADJECTIVES, NOUNS, VERBS
from jaxkv.eval.tasks.ruler.text import coded_words, word_pairs

CWE_TOKENS = 120
FWE_TOKENS = 50
COMMON = 10
LONG = 4096  # tokens; below it RULER's lists repeat their words less
_FEWEST = 80  # words of a coded text, about: with less the third and fourth may be as frequent
_CODED_LETTERS = 6


def _dots(filler: str) -> str:
    """Dots instead of a filler: they are no word of a list, and the coded text has them anyway."""
    return (" ..." * len(filler))[: len(filler)]


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


def _shuffled(
    draws: np.random.Generator, common: list[str], often: int, rest: list[str]
) -> list[str]:
    words = [*common * often, *rest]
    return [words[i] for i in draws.permutation(len(words))]


def different_words(draws: np.random.Generator, count: int, whole: int) -> list[str]:
    """Words of which none is another.

    Where the lexicon is too small for it, pairs follow; none has one of the first `whole` words.
    """
    lexicon = [*ADJECTIVES, *NOUNS, *VERBS]
    words = [lexicon[i] for i in draws.permutation(len(lexicon))][:count]
    first = set(words[:whole])
    pairs = (pair for pair in word_pairs(draws.spawn(1)[0]) if first.isdisjoint(pair.split("-")))
    return words + list(itertools.islice(pairs, count - len(words)))


def _list_task(words: Sequence[str], filler: str = "") -> str:
    return (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        f"Memorize the ones that appear most often.\n{_numbered(words)}{filler}\n"
    )


def cwe(draws: np.random.Generator, units: int, filler: str, *, length: int) -> Row:
    """A list with `units` uncommon words, counted with their repetitions, after a solved example.

    Args:
      draws: of the words.
      units: of haystack.
      filler: as many characters of dots follow the list.
      length: of the row, which decides how often words are repeated.
    """
    often, rarely = (30, 3) if length >= LONG else (6, 1)
    size, shown_often, shown_rarely = (40, 10, 3) if length >= LONG else (20, 3, 1)
    words = different_words(draws, size + COMMON + -(-units // rarely), size + COMMON)
    example, common, rest = words[:size], words[size:][:COMMON], words[size + COMMON :]
    solved = _shuffled(draws, example[:COMMON], shown_often, example[COMMON:] * shown_rarely)
    text = _shuffled(draws, common, often, (rest * rarely)[:units])
    question = "Question: What are the 10 most common words in the above list?"
    prefix = " Answer: The top 10 words that appear most often in the list are:"
    solution = f"{question}{prefix} {_numbered(example[:COMMON])}"
    return Row(
        context=f"{_list_task(solved)}{solution}\n{_list_task(text, _dots(filler))}",
        question=question,
        answer_prefix=prefix,
        answers=tuple(common),
        max_new_tokens=CWE_TOKENS,
    )


def fwe(draws: np.random.Generator, units: int, filler: str, *, length: int) -> Row:
    """A text of coded words, as frequent as a zeta distribution with exponent 2 has them.

    Args:
      draws: of the words.
      units: by which the text is longer than the shortest, in words, about.
      filler: as many characters of dots follow the text.
      length: of the row, which decides how many different words there are.
    """
    # The most frequent is dots, which the question says to ignore.
    count = max(5, (length - FWE_TOKENS) // 50)
    words = ["...", *itertools.islice(coded_words(draws, _CODED_LETTERS), count - 1)]
    shares = np.arange(1, len(words) + 1) ** -2.0 / (math.pi**2 / 6)
    counts = ((_FEWEST + units) * shares).astype(int)
    coded = np.repeat(words, counts)
    text = " ".join(coded[draws.permutation(len(coded))])
    return Row(
        context="Read the following coded text and track the frequency of each coded word. Find "
        f"the three most frequently appeared coded words. {text}{_dots(filler)}\n",
        question="Question: Do not provide any explanation. Please ignore the dots '....'. What "
        "are the three most frequently appeared words in the above coded text?",
        answer_prefix=" Answer: According to the coded text above, the three most frequently "
        "appeared words are:",
        answers=tuple(words[1:4]),
        max_new_tokens=FWE_TOKENS,
    )
