# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Into which groups of one capacity the heads of a layer fall."""

from __future__ import annotations

from collections.abc import Sequence

MOST_GROUPS = 4


def round_up(slots: int) -> int:
    """A capacity that suits tiles of memory: a multiple of 8, or of 16, within 3 % where large."""
    unit = 8 if slots < 512 else 16
    return -(-slots // unit) * unit


def split_heads(capacities: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Groups of heads that share one capacity, at least memory: the best split into at most 4.

    Some optimal groups are runs of the heads sorted by capacity, as moving a small head out of a
    group of large ones never costs anything; a dynamic programme over where runs end finds them.
    Fewer groups are taken where they cost no more.

    Args:
      capacities: tokens of each head.

    Returns:
      The heads of each group, largest capacity first; heads in order within a group.
    """
    order = sorted(range(len(capacities)), key=lambda head: (-capacities[head], head))
    sizes = [round_up(capacities[head]) for head in order]
    count = len(order)
    # best[g][end]: memory of the first `end` heads in g groups, and where the last one begins.
    best = [[(0 if end == 0 else float("inf"), 0) for end in range(count + 1)]]
    for groups in range(1, min(MOST_GROUPS, count) + 1):
        before = best[groups - 1]
        best.append(
            [(float("inf"), 0)]
            + [
                min(
                    (before[begin][0] + (end - begin) * sizes[begin], begin) for begin in range(end)
                )
                for end in range(1, count + 1)
            ]
        )
    groups = min(range(1, len(best)), key=lambda g: (best[g][count][0], g))
    runs, end = [], count
    while end:
        begin = best[groups][end][1]
        runs.append(tuple(sorted(order[begin:end])))
        end, groups = begin, groups - 1
    return tuple(reversed(runs))
