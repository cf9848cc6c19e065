# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys and values of KV heads that share one capacity: two stores, and pure functions on them.

`pos` is the one source of truth: which token is in a slot, or -1 for none. Nothing else says what
is valid, causal or in reach.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.cache import store as stores
from jaxkv.cache.exported import exportable
from jaxkv.cache.packed import zeros
from jaxkv.cache.store import Store
from jaxkv.core.typing import Lengths, NewKeys, Positions

LAST_POSITION = 2**31 - 1


@exportable
@flax.struct.dataclass
class Slab:
    """KV heads of one layer that share one capacity of S slots.

    Attributes:
      k: a store of [B, K, S, H], rotated at write.
      v: a store of [B, K, S, H].
      pos: int32 [B, P, S], absolute position of the token in each slot, -1 for an empty one; P is
        K, or 1 where all heads keep the same tokens.
      seen: int32 [B], tokens ever appended.
    """

    k: Store
    v: Store
    pos: Array
    seen: Array

    @property
    def slots(self) -> int:
        """S."""
        return self.pos.shape[2]

    @property
    def heads(self) -> int:
        """K."""
        return stores.num_heads(self.k)


def empty(
    batch: int, heads: int, slots: int, head_dim: int, dtype: str, *, pos_heads: int = 1
) -> Slab:
    """A slab with no tokens. Zeros, never `jnp.empty`: 0 x NaN would leak through a mask."""
    return Slab(
        k=zeros((batch, heads, slots, head_dim), dtype),
        v=zeros((batch, heads, slots, head_dim), dtype),
        pos=jnp.full((batch, pos_heads, slots), -1, jnp.int32),
        seen=jnp.zeros((batch,), jnp.int32),
    )


def past_the_end(before: Any, count: int) -> Array | None:
    """Rows [B] that `count` new tokens, padding too, take past the last int32 position.

    A position must tell distances to keys that were rotated long ago, so it cannot begin anew, and
    a program has no other way to say that nothing is right any more than NaN.

    Args:
      before: the cache before the tokens; of one that holds no slab, and so no positions, None.
      count: how many they are.
    """
    parts = jax.tree.leaves(before, is_leaf=lambda x: isinstance(x, Slab))
    seen = next((part.seen for part in parts if isinstance(part, Slab)), None)
    return None if seen is None else (seen < 0) | (seen > LAST_POSITION - count)


def nan_past_the_end(before: Any, count: int, x: Array) -> Array:
    """What came out of `count` new tokens, [B, ..]; NaN in rows that are `past_the_end`."""
    over = past_the_end(before, count)
    if over is None:
        return x
    return jnp.where(over.reshape(-1, *[1] * (x.ndim - 1)), jnp.asarray(jnp.nan, x.dtype), x)


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
    return _put(slab, stores.pack(slab.k, k), stores.pack(slab.v, v), positions, slots, consecutive)


def _put(slab: Slab, k: Any, v: Any, positions: Positions, slots: Positions, consecutive: bool):
    """As `append`, of tokens [B, T, K, ..] that are packed."""
    count = jnp.sum(positions >= 0, axis=1, dtype=jnp.int32)
    slots = jnp.where(positions >= 0, slots, slab.slots)
    old, new = (slab.k, slab.v, slab.pos), (k, v, positions[:, :, None])
    return Slab(*stores.write(old, new, slots, consecutive), seen=slab.seen + count)


def append_slots(slab: Slab, new: Slab, slots: Positions) -> Slab:
    """Copies the tokens of another slab, which are the same in all of its heads, bit for bit.

    Args:
      slab: the slab.
      new: of T slots in the same form; it has seen what the result has seen.
      slots: int32 [B, T], where its slots go; see `append`.
    """
    k, v = stores.as_tokens((new.k, new.v))
    after = _put(slab, k, v, new.pos[:, 0], slots, False)
    return dataclasses.replace(after, seen=new.seen)


def append_run(slab: Slab, k: NewKeys, v: NewKeys, positions: Positions, start: Array) -> Slab:
    """Writes new tokens into slots [start, start + T), the same in all rows, padding too.

    Args:
      slab: the slab, P = K.
      k: [B, T, K, H], rotated.
      v: [B, T, K, H].
      positions: int32 [B, T], -1 for padding.
      start: int32 scalar, traced.
    """
    pos = jnp.broadcast_to(positions[:, :, None], (*positions.shape, slab.heads))
    new = stores.pack(slab.k, k), stores.pack(slab.v, v), pos
    written = stores.write_run((slab.k, slab.v, slab.pos), new, start)
    return Slab(*written, seen=slab.seen + jnp.sum(positions >= 0, axis=1, dtype=jnp.int32))


def append_per_head(slab: Slab, k: NewKeys, v: NewKeys, at: Positions, slots: Array) -> Slab:
    """Writes one new token, in each head into a slot of its own.

    Args:
      slab: the slab, P = K.
      k: [B, 1, K, H], rotated.
      v: [B, 1, K, H].
      at: int32 [B, 1], -1 for a row that takes no token.
      slots: int32 [B, K].
    """
    slots = jnp.where(at >= 0, slots, slab.slots)
    pos = jnp.broadcast_to(at, slots.shape)
    new = stores.pack(slab.k, k[:, 0]), stores.pack(slab.v, v[:, 0]), pos
    written = stores.write_per_head((slab.k, slab.v, slab.pos), new, slots)
    return Slab(*written, seen=slab.seen + jnp.sum(at >= 0, axis=1, dtype=jnp.int32))


def slice_slots(slab: Slab, begin: int, end: int) -> Slab:
    """Slots [begin, end)."""
    parts = stores.slice((slab.k, slab.v, slab.pos), begin, end)
    return Slab(*parts, seen=slab.seen)


def slice_heads(slab: Slab, begin: int, end: int) -> Slab:
    """KV heads [begin, end) of a slab whose P is K."""
    parts = stores.slice((slab.k, slab.v, slab.pos), begin, end, stores.HEADS)
    return Slab(*parts, seen=slab.seen)


def pad_slots(slab: Slab, before: int, after: int) -> Slab:
    """With so many empty slots more."""
    k, v = stores.pad((slab.k, slab.v), before, after)
    return Slab(k, v, stores.pad(slab.pos, before, after, fill=-1), slab.seen)


def concat_slots(slabs: Sequence[Slab]) -> Slab:
    """The slots of slabs with the same heads and the same P, one after the other."""
    return _concat(slabs, stores.SLOTS)


def concat_heads(slabs: Sequence[Slab]) -> Slab:
    """The heads of slabs of one size, whose P is K, one after the other."""
    return _concat(slabs, stores.HEADS)


def _concat(slabs: Sequence[Slab], axis: int) -> Slab:
    parts = stores.concat([(slab.k, slab.v, slab.pos) for slab in slabs], axis)
    return Slab(*parts, seen=slabs[0].seen)


def gather_slots(slab: Slab, index: Array, valid: Array) -> Slab:
    """Slots int32 [B, K, C] of each head, empty where bool [B, K, C] says that there is none."""
    k, v = stores.gather((slab.k, slab.v), index, valid)
    pos = jnp.where(valid, stores.gather(slab.pos, index), -1)
    return Slab(k, v, pos, slab.seen)
