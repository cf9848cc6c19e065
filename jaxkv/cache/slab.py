# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys and values of KV heads that share one capacity: plain arrays, and pure functions on them.

`pos` is the one source of truth: which token is in a slot, or -1 for none. Nothing else says what
is valid, causal or in reach.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool

from jaxkv.typing import Lengths, NewKeys, Positions
from pallas_kernels.order import SUBLANES, in_stored_order

LAST_POSITION = 2**31 - 1
UNROLLED = 4  # rows whose writes are spelled out
Arrays = tuple[Array, ...]


@flax.struct.dataclass
class Slab:
    """KV heads of one layer that share one capacity of S slots.

    Attributes:
      k: [B, K, S, H], rotated at write.
      v: [B, K, S, H].
      pos: int32 [B, P, S], absolute position of the token in each slot, -1 for an empty one; P is
        K, or 1 where all heads keep the same tokens.
      seen: int32 [B], tokens ever appended.
    """

    k: Array
    v: Array
    pos: Array
    seen: Array

    @property
    def slots(self) -> int:
        """S."""
        return self.k.shape[2]


def empty(
    batch: int, heads: int, slots: int, head_dim: int, dtype: str, *, pos_heads: int = 1
) -> Slab:
    """A slab with no tokens. Zeros, never `jnp.empty`: 0 x NaN would leak through a mask."""
    return Slab(
        k=jnp.zeros((batch, heads, slots, head_dim), dtype),
        v=jnp.zeros((batch, heads, slots, head_dim), dtype),
        pos=jnp.full((batch, pos_heads, slots), -1, jnp.int32),
        seen=jnp.zeros((batch,), jnp.int32),
    )


def spent(cache: Any, count: int) -> Bool[Array, "B"]:
    """Rows whose positions would pass the last int32 with so many more tokens, bool [B].

    A position must tell distances to keys that were rotated long ago, so it cannot begin anew.

    Args:
      cache: any pytree that holds a slab.
      count: tokens.
    """
    parts = jax.tree.leaves(cache, is_leaf=lambda x: isinstance(x, Slab))
    seen = next(part.seen for part in parts if isinstance(part, Slab))
    return (seen < 0) | (seen > LAST_POSITION - count)


def new_positions(slab: Slab, count: int, lengths: Lengths | None) -> Positions:
    """Positions of the next `count` tokens, int32 [B, T]; -1 at and past a row's length."""
    offset = jnp.arange(count, dtype=jnp.int32)[None]
    positions = slab.seen[:, None] + offset
    return positions if lengths is None else jnp.where(offset < lengths[:, None], positions, -1)


def append(
    slab: Slab,
    k: NewKeys,
    v: NewKeys,
    positions: Positions,
    slots: Positions,
    *,
    consecutive: bool = False,
) -> Slab:
    """Writes new tokens into the given slots.

    Args:
      slab: the slab; where P is K, every head takes the token in the same slot.
      k: [B, T, K, H], rotated.
      v: [B, T, K, H].
      positions: int32 [B, T], -1 for padding, which is not written.
      slots: int32 [B, T], not negative, distinct within a row; a slot of S or more drops the
        token, which still counts as seen.
      consecutive: whether the valid tokens of a row come first and go into slots that follow one
        another, as a single token always does: a TPU then writes in place.

    Returns:
      The slab after the writes.
    """
    count = jnp.sum(positions >= 0, axis=1, dtype=jnp.int32)
    slots = jnp.where(positions >= 0, slots, slab.slots)
    old = slab.k, slab.v, slab.pos
    new = k.astype(slab.k.dtype), v.astype(slab.v.dtype), positions[:, :, None]
    if consecutive or slots.shape[1] == 1:
        written = lax.platform_dependent(old, new, slots, tpu=_write_runs, default=_scatter)
    else:
        written = _scatter(old, new, slots)
    return Slab(*written, seen=slab.seen + count)


def _scatter(old: Arrays, new: Arrays, slots: Positions) -> Arrays:
    """New [B, T, K, ..] into old [B, K, S, ..], each token into its slot."""
    if slots.size == 1:
        # XLA turns a scatter of one update into a dynamic-update-slice, and at batch 1 its CPU
        # compiler then fuses that twice and copies the whole cache. A second update that is
        # always dropped keeps it a scatter in place.
        new = tuple(jnp.repeat(x, 2, axis=1) for x in new)
        slots = jnp.concatenate([slots, jnp.full_like(slots, old[0].shape[2])], axis=1)
    row = jnp.arange(slots.shape[0], dtype=jnp.int32)[:, None]
    return tuple(x.at[row, :, slots].set(y, mode="drop") for x, y in zip(old, new, strict=True))


def _write_runs(old: Arrays, new: Arrays, slots: Positions) -> Arrays:
    """As `_scatter`, where the valid tokens of each row come first and their slots in a row.

    XLA brings an array to another order in memory, and back, for a scatter on a TPU, and also for
    an update of a single slot: a slab would be copied twice at every step. A tile of slots, read,
    changed and written back, stays where it is.
    """
    count = jnp.sum(slots < old[0].shape[2], axis=1, dtype=jnp.int32)
    return tuple(_write_run(x, y, slots[:, 0], count) for x, y in zip(old, new, strict=True))


def _write_run(old: Array, new: Array, first: Array, count: Array) -> Array:
    size, slots = new.shape[1], old.shape[2]
    width = min(max(size, SUBLANES), slots)
    fresh = jnp.moveaxis(new, 1, 2)
    around = [(0, 0), (0, 0), (width, width)] + [(0, 0)] * (old.ndim - 3)
    fresh = jnp.pad(fresh, around)
    hold = in_stored_order if old.ndim == 4 else lambda x: x

    def write(row: int | Array, old: Array) -> Array:
        begin = first[row] if size > 1 else lax.div(first[row], jnp.int32(SUBLANES)) * SUBLANES
        begin = jnp.minimum(begin, slots - width)
        here = begin + jnp.arange(width, dtype=jnp.int32)
        taken = (here >= first[row]) & (here < first[row] + count[row])
        taken = taken.reshape(1, 1, width, *[1] * (old.ndim - 3))
        offset = width + begin - first[row]
        mine = lax.dynamic_slice_in_dim(fresh, row, 1, 0)
        moved = lax.dynamic_slice_in_dim(mine, offset, width, 2)
        at = tuple(jnp.int32(x) for x in (row, 0, begin, *[0] * (old.ndim - 3)))
        there = lax.dynamic_slice(old, at, (1, old.shape[1], width, *old.shape[3:]))
        return hold(lax.dynamic_update_slice(old, jnp.where(taken, moved, there), at))

    old = hold(old)
    if old.shape[0] > UNROLLED:
        return lax.fori_loop(jnp.int32(0), jnp.int32(old.shape[0]), write, old)
    for row in range(old.shape[0]):
        old = write(row, old)
    return old


def append_per_head(slab: Slab, k: NewKeys, v: NewKeys, at: Positions, slots: Array) -> Slab:
    """Writes one new token, in each head into a slot of its own.

    Args:
      slab: the slab, P = K.
      k: [B, 1, K, H], rotated.
      v: [B, 1, K, H].
      at: int32 [B, 1], -1 for a row that takes no token.
      slots: int32 [B, K].
    """
    heads = slab.k.shape[1]
    slots = jnp.where(at >= 0, slots, slab.slots)
    row, head = (
        jnp.arange(k.shape[0], dtype=jnp.int32)[:, None],
        jnp.arange(heads, dtype=jnp.int32)[None],
    )
    return dataclasses.replace(
        slab,
        k=slab.k.at[row, head, slots].set(k[:, 0].astype(slab.k.dtype), mode="drop"),
        v=slab.v.at[row, head, slots].set(v[:, 0].astype(slab.v.dtype), mode="drop"),
        pos=slab.pos.at[row, head, slots].set(jnp.broadcast_to(at, slots.shape), mode="drop"),
        seen=slab.seen + jnp.sum(at >= 0, axis=1, dtype=jnp.int32),
    )
