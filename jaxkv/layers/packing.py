# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""From scores to a small cache: the best slots of each head, however a layer keeps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.cache.slab import Slab, gather_slots, pad_slots
from jaxkv.layers.scores import best_slots

T = TypeVar("T")  # a cache


def keep_best(
    fed: Array,
    scores: Array,
    most: int,
    caps: Array | None,
    pack: Callable[[Array, Array], T],
    before: T,
) -> T:
    """What a layer keeps when it has read a prompt.

    Args:
      fed: bool [B]; rows that took no token of the prompt keep what they had.
      scores: float32 [B, K, S], -inf for slots that may not be taken.
      most: C, slots to choose at most.
      caps: int32 [B, K], or with axes of 1, how many of them each head keeps; None is all.
      pack: makes the cache from slots int32 [B, K, C], best first, and from bool [B, K, C], which
        of them are kept: the first of each head.
      before: what was kept before the prompt.
    """
    index, kept = best_slots(scores, most)
    if caps is not None:
        kept &= jnp.arange(most, dtype=jnp.int32)[None, None] < caps[..., None]
    return keep_rows(fed, pack(index, kept), before)


def gathered(slab: Slab, index: Array, kept: Array, room: int) -> Slab:
    """Slots int32 [B, K, C] where bool [B, K, C] says so, and `room` empty ones behind them."""
    return pad_slots(gather_slots(slab, index, kept), 0, room)


def keep_rows(active: Array, new: T, old: T) -> T:
    """Rows of `new` where bool [B] says so, of `old` elsewhere; of every array of a pytree."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(active.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, new, old)
