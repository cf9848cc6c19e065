# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How an answer is held against its references: percentages, by the formulas of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Metric = Callable[[str, Sequence[str]], float]


def contained(text: str, answers: Sequence[str]) -> float:
    """Percentage of the references that a text contains, whatever their case.

    RULER's string_match_all.
    """
    return 100.0 * sum(ref.lower() in text.lower() for ref in answers) / len(answers)


def any_contained(text: str, answers: Sequence[str]) -> float:
    """100 if a text contains one of the references, whatever their case, else 0.

    RULER's string_match_part.
    """
    return 100.0 * any(ref.lower() in text.lower() for ref in answers)
