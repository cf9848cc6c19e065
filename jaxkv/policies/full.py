# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keeps everything: the dense cache that the others are measured against."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jaxkv.attention import attend_one, attend_slots
from jaxkv.cache.slab import Slab, append, empty, new_positions
from jaxkv.policies.base import Geometry, rotate
from jaxkv.typing import Lengths, NewKeys, Queries, Rotation


@dataclasses.dataclass(frozen=True)
class Full:
    """The whole context in the cache.

    Memory: `max_length` tokens per KV head, allocated at the start. A token past it makes its
    row's output NaN rather than plausible.
    """

    def at(self, layer: int, geometry: Geometry) -> FullLayer:
        """The same for every layer."""
        del layer
        return FullLayer(geometry)


@dataclasses.dataclass(frozen=True)
class FullLayer:
    """One layer of `Full`: the token at position p is in slot p."""

    geometry: Geometry

    def init(self) -> Slab:
        """An empty slab of `max_length` slots."""
        g = self.geometry
        return empty(g.batch_size, g.num_kv_heads, g.max_length, g.head_dim, g.dtype)

    def prefill(
        self,
        cache: Slab,
        q: Queries,
        k: NewKeys,
        v: NewKeys,
        rope: Rotation | None,
        lengths: Lengths | None,
    ) -> tuple[Slab, Queries]:
        """Writes the chunk, then attends over all slots in use."""
        cache, q, at = _write(cache, q, k, v, rope, lengths)
        used = jnp.max(cache.seen)
        out, _ = attend_slots(q, cache.k, cache.v, at, cache.pos, rope, num_slots=used)
        return cache, poison(out, at, cache.slots)

    def step(
        self,
        cache: Slab,
        q: Queries,
        k: NewKeys,
        v: NewKeys,
        rope: Rotation | None,
        lengths: Lengths | None = None,
    ) -> tuple[Slab, Queries]:
        """Writes the token, then attends over all slots."""
        cache, q, at = _write(cache, q, k, v, rope, lengths)
        out, _ = attend_one(q, cache.k, cache.v, at, cache.pos, rope)
        return cache, poison(out, at, cache.slots)

    def kept(self, seen: int) -> tuple[int, ...]:
        """All of them."""
        return (min(seen, self.geometry.max_length),) * self.geometry.num_kv_heads


def _write(cache, q, k, v, rope, lengths):
    at = new_positions(cache, q.shape[1], lengths)
    cache = append(cache, rotate(rope, k, at), v, at, at, consecutive=True)
    return cache, rotate(rope, q, at), at


def poison(out, at, slots):
    """A full cache that overflowed must not go on as if nothing had happened."""
    return jnp.where((at >= slots)[:, :, None, None], jnp.nan, out)
