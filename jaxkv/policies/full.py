# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keeps everything: the dense cache that the others are measured against."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxkv.attention import attend_one, attend_slots
from jaxkv.cache.slab import Slab, append, empty
from jaxkv.policies.base import Chunk, Facts, Geometry
from jaxkv.policies.ring import RingLayer, of_window
from jaxkv.typing import Queries


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Full:
    """The whole context in the cache.

    Memory: `max_length` tokens per KV head, allocated at the start. A token past it makes its
    row's output NaN rather than plausible.
    """

    def at(self, layer: int, geometry: Geometry) -> FullLayer | RingLayer:
        """The same for every layer, but for those that do not see everything themselves."""
        if window := geometry.windows[layer] if geometry.windows else 0:
            return of_window(min(window, geometry.max_length), geometry)
        return FullLayer(geometry)


@dataclasses.dataclass(frozen=True)
class FullLayer:
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
        cache = append(cache, k, chunk.v, at, at, consecutive=True)
        keys = cache.k, cache.v, at, cache.pos, chunk.rope
        if chunk.decoding:
            out, _ = attend_one(q, *keys)
        else:
            out, _ = attend_slots(q, *keys, num_slots=jnp.max(cache.seen))
        return cache, poison(out, at, cache.slots)

    def facts(self) -> Facts:
        """Everything."""
        return Facts((self.geometry.max_length,) * self.geometry.num_kv_heads, grows=True)


def poison(out, at, slots):
    """A full cache that overflowed must not go on as if nothing had happened."""
    return jnp.where((at >= slots)[:, :, None, None], jnp.nan, out)
