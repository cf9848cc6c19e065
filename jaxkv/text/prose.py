# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Sentences, words and places in a text: what evaluations and calibration share."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence


def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text, each on one line, in order."""
    return tuple(part for part in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if part)


def depth_percents(count: int) -> tuple[float, ...]:
    """Evenly from 0 to 100; one alone is in the middle."""
    if count == 1:
        return (50.0,)
    return tuple(round(100 * i / (count - 1), 1) for i in range(count))


def bare_words(text: str) -> list[str]:
    """The words, less case, ASCII punctuation and articles: SQuAD's normalisation."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def f1(words: Sequence[str], wanted: Sequence[str]) -> float:
    """Twice what both have over all of both, each word as often as it stands there."""
    same = (Counter(words) & Counter(wanted)).total()
    return 2 * same / (len(words) + len(wanted)) if same else 0.0
