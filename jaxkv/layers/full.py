# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A layer that keeps everything: the token at position p is in slot p."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxkv.attention import attend_one, attend_slots
from jaxkv.cache.slab import Slab, append, empty
from jaxkv.core.shards import MODEL, ONE, Shards, block_of
from jaxkv.core.typing import NewKeys, Positions, Queries, Rotation
from jaxkv.layers.base import Chunk, Constants, Facts, FromFull, Geometry
from jaxkv.layers.draft import Read


@dataclasses.dataclass(frozen=True)
class FullLayer(FromFull):
    """One layer of `Full`: the token at position p is in slot p.

    Over several devices that share out slots, blocks of them lie on each in turn, and `pos` says
    what is where; masks need not know.

    Attributes:
      geometry: the static shapes.
      shards: how its slots are shared out. Who reads the slab by itself leaves it on one device.
    """

    geometry: Geometry
    shards: Shards = ONE

    @property
    def block(self) -> int:
        """Slots of a block that lies on one device; 0 where all slots do."""
        return block_of(self.geometry.max_length, self.shards.model) if self.shards.by_slots else 0

    def init(self) -> Slab:
        """An empty slab of `max_length` slots."""
        g = self.geometry
        slots = g.max_length // (self.shards.model if self.block else 1)
        return empty(g.batch_size, g.num_kv_heads, slots, g.head_dim, g.dtype)

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
        cache, used = self._written(cache, k, chunk.v, at)
        keys = cache.k, cache.v, at, cache.pos, chunk.rope
        if chunk.decoding:
            out, lse = attend_one(q, *keys)
        else:
            out, lse = attend_slots(q, *keys, num_slots=used)
        if self.block:
            out, lse = self.shards.merged(out, lse)
        out, lse = chunk.with_sink(out, lse)
        return cache, poison(out, at, self.geometry.max_length), lse

    def _written(self, cache: Slab, k: NewKeys, v: NewKeys, at: Positions) -> tuple[Slab, Array]:
        """The slab with new tokens, and how many of its first slots may be in use."""
        if not self.block:
            cache = append(cache, k, v, at, at, consecutive=True)
            return cache, jnp.max(cache.seen)
        block, devices, count = self.block, self.shards.model, at.shape[1]
        turn = block * devices
        here = lax.axis_index(MODEL).astype(jnp.int32)
        mine = (at >= 0) & (at // block % devices == here)
        slots = jnp.where(mine, at // turn * block + at % block, cache.slots)
        # This device's tokens are brought to the front: of no more than a block they are one run.
        first = jnp.argmax(mine, axis=1).astype(jnp.int32)
        k, v, at, slots = (jax.vmap(_turned)(x, first) for x in (k, v, at, slots))
        cache = append(cache, k, v, at, slots, consecutive=count <= block)
        most = jnp.max(cache.seen)
        return cache, jnp.minimum((most + turn - 1) // turn * block, cache.slots)

    def from_full(
        self, empty: Slab, kept: Slab | Read, rope: Rotation | None, constants: Constants | None
    ) -> Slab:
        """All of it."""
        del empty, rope, constants
        return kept.slab if isinstance(kept, Read) else kept

    def facts(self) -> Facts:
        """Everything."""
        return Facts((self.geometry.max_length,) * self.geometry.num_kv_heads, grows=True)


def _turned(x: Array, by: Array) -> Array:
    """Entry `by` first, and those before it last."""
    return x if x.shape[0] == 1 else jnp.roll(x, -by, axis=0)


def poison(out, at, slots):
    """A full cache that overflowed must not go on as if nothing had happened."""
    return jnp.where((at >= slots)[:, :, None, None], jnp.nan, out)
