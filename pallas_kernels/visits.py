# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Which blocks of slots and of queries see each other, as lists that a kernel follows."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.visibility import visible

MANY = 1024  # blocks, from which on each is written to its place: all with all are a million


class Visits(NamedTuple):
    """Which of S blocks to visit, and in what order, those seen whole first.

    Attributes:
      order: int32 [.., S]; past the last visit, the last one again.
      whole: int32 [..], how many of the first are seen whole.
      count: int32 [..], how many there are to visit.
    """

    order: Array
    whole: Array
    count: Array


def visits(some: Array, every: Array) -> Visits:
    """What to visit of the last axis.

    Args:
      some: bool [.., S], blocks to visit.
      every: bool [.., S], those of them that are seen whole.
    """
    blocks, last = some.shape[-1], some.ndim - 1
    part = some & ~every
    whole, count = (jnp.sum(x, axis=-1, dtype=jnp.int32) for x in (every, some))

    def place(x: Array) -> Array:  # of each block among those of its kind
        return jnp.cumsum(x, axis=-1, dtype=jnp.int32) - 1

    rank = jnp.where(part, whole[..., None] + place(part), blocks)
    rank = jnp.where(every, place(every), rank)
    step = jnp.minimum(lax.broadcasted_iota(jnp.int32, some.shape, last), count[..., None] - 1)
    if blocks > MANY:
        index = lax.broadcasted_iota(jnp.int32, some.shape, last)
        placed = jnp.put_along_axis(
            jnp.zeros_like(rank), rank, index, axis=-1, inplace=False, mode="drop"
        )
        return Visits(jnp.take_along_axis(placed, jnp.maximum(step, 0), axis=-1), whole, count)
    # A comparison of all with all, where a sort of so few would take XLA longer to compile.
    same = rank[..., None, :] == step[..., None]
    index = lax.broadcasted_iota(jnp.int32, same.shape, last + 1)
    return Visits(jnp.max(jnp.where(same, index, 0), axis=-1), whole, count)


def longest(visits: Visits) -> Array:
    """The most visits, and 1 where there are none: what sees nothing gets zeros even so."""
    return jnp.maximum(jnp.max(visits.count), 1)


def seen_blocks(
    q_pos: Array, k_pos: Array, tall: int, wide: int, sinks: int, window: int | None
) -> tuple[Array, Array]:
    """Blocks of which some slot is seen, and those of which every query sees every slot.

    It goes by the first and the last position of each block of queries. No visible block is left
    out; one in which no query sees a key is taken only where the block of queries leaves out
    positions between its first and its last.

    Args:
      q_pos: int32 [B, T], T a multiple of `tall`; negative for padding, which sees nothing and
        does not keep a block from being seen whole.
      k_pos: int32 [B, P, S], S a multiple of `wide`.
      tall: queries a block.
      wide: slots a block.
      sinks: see `visible`.
      window: see `visible`.

    Returns:
      bool [B, P, T / tall, S / wide], twice.
    """
    b, places, slots = k_pos.shape
    first, last = (x[:, None, :, None] for x in ends(q_pos, tall))
    k_pos = k_pos[:, :, None]
    some = reached(first, last, k_pos, sinks, window)
    every = visible(first, k_pos, sinks, window) & visible(last, k_pos, sinks, window)
    shape = b, places, first.shape[2], slots // wide, wide
    return jnp.any(some.reshape(shape), axis=-1), jnp.all(every.reshape(shape), axis=-1)


def ends(q_pos: Array, tall: int) -> tuple[Array, Array]:
    """The first and the last position of each block of `tall` queries, [B, T / tall] each.

    Negative only where all of a block is padding.
    """
    q_pos = q_pos.reshape(len(q_pos), -1, tall)
    last = jnp.max(q_pos, axis=-1)
    return jnp.min(jnp.where(q_pos < 0, last[..., None], q_pos), axis=-1), last


def reached(first: Array, last: Array, k_pos: Array, sinks: int, window: int | None) -> Array:
    """Whether some query of a block sees a key; see `seen_blocks`."""
    # A key is out of reach of all if it is so for the first query that does not come before it.
    return (k_pos <= last) & visible(jnp.maximum(first, k_pos), k_pos, sinks, window)
