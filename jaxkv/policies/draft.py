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
from jax import Array

from jaxkv.attention import attend_slots
from jaxkv.cache.slab import Slab, append_run, concat_heads, gather_slots, pad_slots
from jaxkv.policies.base import Chunk, Geometry
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


def open_draft(parts: Sequence[Slab], count: int, geometry: Geometry, window: int) -> Draft:
    """A draft for `count` tokens on top of what was kept.

    Args:
      parts: what was kept; the heads of each follow those of the one before. P = K.
      count: T, the most tokens of this prompt.
      geometry: of all parts.
      window: W, the last queries to remember.
    """
    most = max(part.slots for part in parts)
    # With room for the prompt before what was kept, and up to the largest part after it.
    slab = concat_heads([pad_slots(part, count, most - part.slots) for part in parts])
    last = (slab.seen.shape[0], window, geometry.num_heads)
    return Draft(
        slab=slab,
        began=slab.seen,
        q=jnp.zeros((*last, geometry.head_dim), geometry.dtype),
        q_pos=jnp.full(last[:2], -1, jnp.int32),
        lse=jnp.full(last, -jnp.inf, jnp.float32),
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
    slab = append_run(slab, k, chunk.v, at, start)
    used = draft.used(start + chunk.count, count)
    out, lse = attend_slots(q, slab.k, slab.v, at, slab.pos, chunk.rope, num_slots=used)
    return _remember(dataclasses.replace(draft, slab=slab), q, at, lse), out, lse


def mass(draft: Draft, rope: Rotation | None) -> Array:
    """Attention that each slot received from the last queries: float32 [B, N, S]."""
    slab = draft.slab
    return mass_of(draft.q, draft.lse, slab.k, draft.q_pos, slab.pos, rope)


def newest(slab: Slab, window: int) -> Slab:
    """The last `window` tokens, which every head holds, in order, after empty slots if any."""
    index = jnp.argsort(slab.pos, axis=-1)[..., -window:].astype(jnp.int32)
    return gather_slots(slab, index, jnp.ones(index.shape, bool))


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
