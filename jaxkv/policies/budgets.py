# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How many tokens each head may keep."""

from __future__ import annotations

import numpy as np

from jaxkv.layers.base import Geometry


def in_tokens(budget: int | float, max_length: int) -> int:
    """A budget in tokens: as it is, or as a share of `max_length` where it is a float."""
    return round(budget * max_length) if isinstance(budget, float) else budget


def pyramid(budget: int, window: int, beta: int, num_layers: int, longest: int) -> list[int]:
    """PyramidKV's budgets of the layers (arXiv 2406.02069, section 4.2), without the window.

    Falls from layer to layer in equal steps, from `2 base - base // beta` to `base // beta`. The
    reference code floors the step, which leaves the mean above the budget, by 4 % at 128 tokens;
    here it is not floored, and the layers sum to the budget.

    Args:
      budget: mean tokens of a head, the window included.
      window: of which are always kept.
      beta: the last layer gets base // beta.
      num_layers: L.
      longest: prompt that the first layer could fill.
    """
    base = budget - window
    if num_layers == 1:
        return [base]
    least = base // beta
    most = 2 * base - least
    if most >= longest - window:
        most = max(base, longest - window)
        least = 2 * base - most
    steps = num_layers - 1
    ends = [round((layer + 1) * most - (most - least) * layer * (layer + 1) / 2 / steps)
            for layer in range(num_layers)]  # fmt: skip
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def headkv(scores: np.ndarray, budget: int, beta: float, window: int) -> np.ndarray:
    """HeadKV's budgets (arXiv 2410.19258, equation 4), without the window; int64 [L, heads].

    A share `1 / beta` of every head's budget goes to a pool that is dealt out by score: the
    smaller beta, the less even. Python's float floor-division, as in the reference code.

    Args:
      scores: [L, heads], summing to 1.
      budget: mean tokens of a head, the window included.
      beta: at least 1.
      window: of which are always kept.
    """
    own = budget - window
    pooled = own // beta
    return np.round(scores * (pooled * scores.size) + (own - pooled)).astype(np.int64)


def by_shares(shares: np.ndarray, mean: int) -> np.ndarray:
    """Deals out `mean` tokens a head by shares, to the last token: int64, the shape of `shares`.

    What rounding down leaves goes to the largest remainders, of equal ones to the first.

    Args:
      shares: of the mean, [L, heads], not negative and 1 on average.
      mean: tokens of a head.
    """
    exact = (shares * mean).reshape(-1)
    caps = np.floor(exact).astype(np.int64)
    left = mean * exact.size - int(caps.sum())
    caps[np.argsort(caps - exact, kind="stable")[:left]] += 1
    return caps.reshape(shares.shape)


def of_ruled(caps: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Tokens [ruled layers, heads] in their places among all layers; none where none is ruled."""
    every = np.zeros((geometry.num_layers, caps.shape[1]), np.int64)
    every[list(geometry.ruled)] = caps
    return every


def redistribute(caps: np.ndarray, longest: int) -> np.ndarray:
    """Gives what is beyond the longest prompt to the heads that can still use it, in proportion.

    Args:
      caps: int [L, heads].
      longest: tokens that a head can fill.

    Returns:
      int64, the shape of `caps`, none above `longest`; the sum is kept unless all are full.
    """
    caps = caps.astype(np.int64)
    total = min(int(caps.sum()), longest * caps.size)
    low, high = 1.0, 1.0
    while np.minimum(np.maximum(caps, 1) * high, longest).sum() < total:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if np.minimum(caps * middle, longest).sum() < total else (low, middle)
        )
    grown = np.minimum(np.floor(caps * low).astype(np.int64), longest)
    grown = np.maximum(grown, np.minimum(caps, longest))
    # What flooring left goes, a token each, to the heads with room, in order.
    left = total - int(grown.sum())
    flat = grown.reshape(-1)
    while left > 0 and (room := np.flatnonzero(flat < longest)).size:
        flat[room[:left]] += 1
        left -= min(left, room.size)
    return flat.reshape(caps.shape)
