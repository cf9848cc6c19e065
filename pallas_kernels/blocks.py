# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Which blocks of slots a block of queries has to visit."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.visibility import visible


class Visits(NamedTuple):
    """Blocks of slots to visit for each block of queries, those seen whole first.

    Attributes:
      order: int32 [B, P, Q, S / wide], blocks in the order of visits; past the last visit, the
        last one again.
      whole: int32 [B, P, Q], how many of the first are seen whole by every query of the block.
      count: int32 [B, P, Q], how many there are to visit.
    """

    order: Array
    whole: Array
    count: Array


def visits(
    q_pos: Array, k_pos: Array, tall: int, wide: int, sinks: int, window: int | None
) -> Visits:
    """What to visit, by the first and the last position of each block of queries.

    No visible block is left out. One in which no query sees a key is visited only where a block
    of queries leaves out positions between its first and its last.

    Args:
      q_pos: int32 [B, T], T a multiple of `tall`; negative for padding, which sees nothing and
        does not keep a block from being seen whole.
      k_pos: int32 [B, P, S], S a multiple of `wide`.
      tall: queries a block.
      wide: slots a block.
      sinks: see `visible`.
      window: see `visible`.
    """
    some, every = seen_blocks(q_pos, k_pos, tall, wide, sinks, window)
    blocks = some.shape[-1]
    part = some & ~every
    whole, count = (jnp.sum(x, axis=-1, dtype=jnp.int32) for x in (every, some))

    def place(x: Array) -> Array:  # of each block among those of its kind
        return jnp.cumsum(x, axis=-1, dtype=jnp.int32) - 1

    rank = jnp.where(part, whole[..., None] + place(part), blocks)
    rank = jnp.where(every, place(every), rank)
    # A comparison of all with all, where a sort of so few would take XLA longer to compile.
    step = jnp.minimum(lax.broadcasted_iota(jnp.int32, some.shape, 3), count[..., None] - 1)
    same = rank[..., None, :] == step[..., None]
    index = lax.broadcasted_iota(jnp.int32, same.shape, 4)
    order = jnp.max(jnp.where(same, index, 0), axis=-1)
    return Visits(order, whole, count)


def seen_blocks(
    q_pos: Array, k_pos: Array, tall: int, wide: int, sinks: int, window: int | None
) -> tuple[Array, Array]:
    """bool [B, P, Q, S / wide]: blocks of which some, and every, slot is seen; see `visits`.

    `some` takes any query between the first and the last position, `every` takes them all.
    """
    b, places, slots = k_pos.shape
    q_pos = q_pos.reshape(b, 1, -1, tall)
    last = jnp.max(q_pos, axis=-1, keepdims=True)
    first = jnp.min(jnp.where(q_pos < 0, last, q_pos), axis=-1, keepdims=True)
    k_pos = k_pos[:, :, None]
    # A key is out of reach of all if it is so for the first query that does not come before it.
    some = (k_pos <= last) & visible(jnp.maximum(first, k_pos), k_pos, sinks, window)
    every = visible(first, k_pos, sinks, window) & visible(last, k_pos, sinks, window)
    shape = b, places, q_pos.shape[2], slots // wide, wide
    return jnp.any(some.reshape(shape), axis=-1), jnp.all(every.reshape(shape), axis=-1)
