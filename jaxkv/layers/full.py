# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A layer that keeps everything: the token at position p is in slot p."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array

from jaxkv.attention import attend_one, attend_slots
from jaxkv.cache.slab import Slab, append, empty
from jaxkv.core.typing import NewKeys, Positions, Queries, Rotation
from jaxkv.layers.base import Chunk, Constants, Facts, FromFull, Geometry
from jaxkv.layers.draft import Read


@dataclasses.dataclass(frozen=True)
class FullLayer(FromFull):
    """One layer of `Full`: the token at position p is in slot p."""

    geometry: Geometry

    def init(self) -> Slab:
        """An empty slab of `max_length` slots."""
        g = self.geometry
        return empty(g.batch_size, g.num_kv_heads, g.max_length, g.head_dim, g.dtype)

    def take(self, cache: Slab, chunk: Chunk) -> tuple[Slab, Queries]:
        """Writes the chunk, then attends: of a prompt over the slots in use, else over all."""
        at = chunk.positions(cache)
        q, k = chunk.rotated(at)
        cache, out, _ = self.attend(cache, chunk, at, q, k)
        return cache, out

    def attend(
        self, cache: Slab, chunk: Chunk, at: Positions, q: Queries, k: NewKeys
    ) -> tuple[Slab, Queries, Array]:
        """As `take`, of a chunk that is rotated to `at`; with lse [B, T, N]."""
        cache = append(cache, k, chunk.v, at, at, consecutive=True)
        keys = cache.k, cache.v, at, cache.pos, chunk.rope
        if chunk.decoding:
            out, lse = attend_one(q, *keys)
        else:
            out, lse = attend_slots(q, *keys, num_slots=jnp.max(cache.seen))
        return cache, poison(out, at, cache.slots), lse

    def from_full(
        self, empty: Slab, kept: Slab | Read, rope: Rotation | None, constants: Constants | None
    ) -> Slab:
        """All of it."""
        del empty, rope, constants
        return kept.slab if isinstance(kept, Read) else kept

    def facts(self) -> Facts:
        """Everything."""
        return Facts((self.geometry.max_length,) * self.geometry.num_kv_heads, grows=True)


def poison(out, at, slots):
    """A full cache that overflowed must not go on as if nothing had happened."""
    return jnp.where((at >= slots)[:, :, None, None], jnp.nan, out)
