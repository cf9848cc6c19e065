# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One layer's whole prompt, for as long as it takes to choose what to keep of it.

A policy that chooses after the prompt needs all of its keys at once, but of one layer at a time:
the layer's draft is opened, the prompt goes through the layer chunk by chunk, and the draft is
closed into a small cache before the next layer's is opened. So the peak is one layer's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp
from jax import Array, lax

from jaxkv.attention import attend_slots
from jaxkv.cache.slab import Slab
from jaxkv.policies.base import Chunk
from jaxkv.policies.scores import mass_of
from jaxkv.typing import Queries, Rotation


@flax.struct.dataclass
class Draft:
    """Attributes:
    slab: slots [0, T) take this prompt in order; behind them is what was kept before. P = K.
    began: int32 [B], tokens seen before this prompt.
    q: [B, W, N, H], the last W queries, rotated.
    q_pos: int32 [B, W], -1 where there were fewer.
    lse: float32 [B, W, N], of those queries.
    """

    slab: Slab
    began: Array
    q: Queries
    q_pos: Array
    lse: Array

    @property
    def fed(self) -> Array:
        """bool [B], rows that took any token of this prompt."""
        return self.slab.seen > self.began

    def used(self, end: Array, count: int) -> Array:
        """Slots to look at when the prompt's first `end` of `count` tokens are in.

        What was kept lies behind the prompt: a first prompt needs no look at it.
        """
        first = jnp.logical_not(jnp.any(self.began > 0))
        return jnp.where(first, jnp.minimum(end, count), self.slab.slots)


def open_draft(parts: Sequence[Slab], count: int, num_heads: int, window: int) -> Draft:
    """A draft for `count` tokens on top of what was kept.

    Args:
      parts: what was kept; the heads of each follow those of the one before. P = K.
      count: T, the most tokens of this prompt.
      num_heads: N of all parts.
      window: W, the last queries to remember.
    """
    most = max(part.slots for part in parts)

    def behind(x: Array, fill: int) -> Array:
        """Slots, with room for the prompt before them and up to the largest part after."""
        padding = [(0, 0)] * x.ndim
        padding[2] = (count, most - x.shape[2])
        return jnp.pad(x, padding, constant_values=fill)

    def joined(name: str, fill: int) -> Array:
        return jnp.concatenate([behind(getattr(part, name), fill) for part in parts], axis=1)

    k, seen = joined("k", 0), parts[0].seen
    batch, head_dim = k.shape[0], k.shape[-1]
    return Draft(
        slab=Slab(k, joined("v", 0), joined("pos", -1), seen),
        began=seen,
        q=jnp.zeros((batch, window, num_heads, head_dim), k.dtype),
        q_pos=jnp.full((batch, window), -1, jnp.int32),
        lse=jnp.full((batch, window, num_heads), -jnp.inf, jnp.float32),
    )


def feed(draft: Draft, start: Array, count: int, chunk: Chunk) -> tuple[Draft, Queries, Array]:
    """The prompt's tokens [start, start + T) go in, and attend to all before them.

    Args:
      draft: the draft.
      start: int32 scalar, traced; the same in every row.
      count: tokens that the draft was opened for.
      chunk: T tokens.

    Returns:
      The draft, out [B, T, N, H], and lse [B, T, N].
    """
    slab = draft.slab
    at = chunk.positions(slab)
    q, k = chunk.rotated(at)
    heads = slab.k.shape[1]

    def written(old: Array, new: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=2)

    slab = Slab(
        k=written(slab.k, k.swapaxes(1, 2)),
        v=written(slab.v, chunk.v.swapaxes(1, 2)),
        pos=written(slab.pos, jnp.broadcast_to(at[:, None], (at.shape[0], heads, at.shape[1]))),
        seen=slab.seen + jnp.sum(at >= 0, axis=1, dtype=jnp.int32),
    )
    used = draft.used(start + chunk.count, count)
    out, lse = attend_slots(q, slab.k, slab.v, at, slab.pos, chunk.rope, num_slots=used)
    return _remember(dataclasses.replace(draft, slab=slab), q, at, lse), out, lse


def mass(draft: Draft, rope: Rotation | None) -> Array:
    """Attention that each slot received from the last queries: float32 [B, N, S]."""
    slab = draft.slab
    return mass_of(draft.q, draft.lse, slab.k, draft.q_pos, slab.pos, rope)


def gather(slab: Slab, index: Array, valid: Array) -> tuple[Array, Array, Array]:
    """Slots [B, K, C] of each head: k, v [B, K, C, H], and pos [B, K, C], -1 where not valid."""
    k, v = (
        jnp.where(valid[..., None], jnp.take_along_axis(x, index[..., None], axis=2), 0)
        for x in (slab.k, slab.v)
    )
    return k, v, jnp.where(valid, jnp.take_along_axis(slab.pos, index, axis=2), -1)


def newest(slab: Slab, window: int) -> tuple[Array, Array, Array]:
    """The last `window` tokens, which every head holds, in order.

    Returns:
      k, v [B, W, K, H] and their positions int32 [B, W], -1 where there are fewer.
    """
    index = jnp.argsort(slab.pos, axis=-1)[..., -window:].astype(jnp.int32)
    k, v, pos = gather(slab, index, jnp.ones(index.shape, bool))
    return k.swapaxes(1, 2), v.swapaxes(1, 2), pos[:, 0]


def _remember(draft: Draft, q: Queries, at: Array, lse: Array) -> Draft:
    """The last W valid queries of those remembered and these; valid ones come first in `at`."""
    window = draft.q_pos.shape[1]
    index = (
        jnp.sum(at >= 0, axis=1, dtype=jnp.int32)[:, None]
        + jnp.arange(window, dtype=jnp.int32)[None]
    )

    def last(old: Array, new: Array) -> Array:
        both = jnp.concatenate([old, new.astype(old.dtype)], axis=1)
        return jnp.take_along_axis(both, index.reshape(*index.shape, *[1] * (old.ndim - 2)), axis=1)

    return dataclasses.replace(
        draft, q=last(draft.q, q), q_pos=last(draft.q_pos, at), lse=last(draft.lse, lse)
    )
