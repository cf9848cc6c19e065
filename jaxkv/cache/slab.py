# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys and values of KV heads that share one capacity: plain arrays, and pure functions on them.

`pos` is the one source of truth: which token is in a slot, or -1 for none. Nothing else says what
is valid, causal or in reach.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp
from jax import Array

from jaxkv.typing import Lengths, NewKeys, Positions


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


def new_positions(slab: Slab, count: int, lengths: Lengths | None) -> Positions:
    """Positions of the next `count` tokens, int32 [B, T]; -1 at and past a row's length."""
    offset = jnp.arange(count, dtype=jnp.int32)[None]
    positions = slab.seen[:, None] + offset
    return positions if lengths is None else jnp.where(offset < lengths[:, None], positions, -1)


def append(slab: Slab, k: NewKeys, v: NewKeys, positions: Positions, slots: Positions) -> Slab:
    """Writes new tokens into the given slots.

    Args:
      slab: the slab; where P is K, every head takes the token in the same slot.
      k: [B, T, K, H], rotated.
      v: [B, T, K, H].
      positions: int32 [B, T], -1 for padding, which is not written.
      slots: int32 [B, T], distinct within a row; a slot of S or more drops the token, which still
        counts as seen.

    Returns:
      The slab after the writes.
    """
    count = jnp.sum(positions >= 0, axis=1, dtype=jnp.int32)
    slots = jnp.where(positions >= 0, slots, slab.slots)
    if slots.size == 1:
        # XLA turns a scatter of one update into a dynamic-update-slice, and at batch 1 its CPU
        # compiler then fuses that twice and copies the whole cache. A second update that is
        # always dropped keeps it a scatter in place.
        k, v = jnp.repeat(k, 2, axis=1), jnp.repeat(v, 2, axis=1)
        positions = jnp.repeat(positions, 2, axis=1)
        slots = jnp.concatenate([slots, jnp.full_like(slots, slab.slots)], axis=1)
    row = jnp.arange(k.shape[0])[:, None]
    return dataclasses.replace(
        slab,
        k=slab.k.at[row, :, slots].set(k.astype(slab.k.dtype), mode="drop"),
        v=slab.v.at[row, :, slots].set(v.astype(slab.v.dtype), mode="drop"),
        pos=slab.pos.at[row, :, slots].set(positions[:, :, None], mode="drop"),
        seen=slab.seen + count,
    )


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
    row, head = jnp.arange(k.shape[0])[:, None], jnp.arange(heads)[None]
    return dataclasses.replace(
        slab,
        k=slab.k.at[row, head, slots].set(k[:, 0].astype(slab.k.dtype), mode="drop"),
        v=slab.v.at[row, head, slots].set(v[:, 0].astype(slab.v.dtype), mode="drop"),
        pos=slab.pos.at[row, head, slots].set(jnp.broadcast_to(at, slots.shape), mode="drop"),
        seen=slab.seen + jnp.sum(at >= 0, axis=1, dtype=jnp.int32),
    )
