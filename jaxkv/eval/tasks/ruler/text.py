# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What RULER's texts are made of: pieces of texts, and streams of words that differ."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from jaxkv.eval.tasks.ruler.lexicon import ADJECTIVES, NOUNS


def first_pieces(texts: Iterable[str], count: int) -> list[str]:
    """As many of the texts as have `count` words, or parts of words with hyphens, together.

    The last of them may be cut.
    """
    taken = []
    for text in texts:
        if count <= 0:
            break
        parts = re.findall(r"[\s-]*[^\s-]+", text)
        taken.append(text if len(parts) <= count else "".join(parts[:count]))
        count -= max(1, len(parts))
    return taken


def different(make: Callable[[], str]) -> Iterator[str]:
    """Without end, what `make` gives and has not given before."""
    seen = set()
    while True:
        text = make()
        if text not in seen:
            seen.add(text)
            yield text


def coded_words(draws: np.random.Generator, letters: int) -> Iterator[str]:
    """Different words of random lower-case letters."""
    return different(lambda: "".join(chr(ord("a") + i) for i in draws.integers(26, size=letters)))


def word_pairs(draws: np.random.Generator) -> Iterator[str]:
    """Different words such as "gentle-harbor"."""
    return different(
        lambda: f"{ADJECTIVES[draws.integers(len(ADJECTIVES))]}-{NOUNS[draws.integers(len(NOUNS))]}"
    )
