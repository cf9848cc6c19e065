# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keeps everything: the dense cache that the others are measured against."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.attention import attend_one, attend_slots
from jaxkv.cache.slab import Slab, append, empty
from jaxkv.errors import InputError
from jaxkv.policies.base import Chunk, Constants, Facts, FromFull, Geometry
from jaxkv.policies.draft import Read, last_of, note
from jaxkv.policies.moments import no_moments
from jaxkv.policies.ring import RingLayer, of_window
from jaxkv.typing import NewKeys, Positions, Queries, Rotation


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Full:
    """The whole context in the cache.

    Attributes:
      queries: last queries that are kept too, which `jaxkv.compress` to most methods looks at.
      moments: whether mean and covariance of all queries are kept too, for others.

    Memory: `max_length` tokens per KV head, allocated at the start. A token past it makes its
    row's output NaN rather than plausible.
    """

    queries: int = 0
    moments: bool = False

    def __post_init__(self) -> None:
        if self.queries < 0:
            raise InputError(f"queries is {self.queries}; it must be at least 0")

    def at(self, layer: int, geometry: Geometry) -> FullLayer | ReadLayer | RingLayer:
        """The same for every layer, but for those that do not see everything themselves."""
        if window := geometry.windows[layer] if geometry.windows else 0:
            return of_window(min(window, geometry.max_length), geometry)
        full = FullLayer(geometry)
        noted = self.queries or self.moments
        return ReadLayer(full, self.queries, self.moments) if noted else full


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


@dataclasses.dataclass(frozen=True)
class ReadLayer:
    """A `FullLayer` that also knows its queries; for the attributes see `Full`."""

    full: FullLayer
    queries: int
    moments: bool

    def init(self) -> Read:
        """Empty."""
        g = self.full.geometry
        last = last_of(g, self.queries) if self.queries else None
        none = no_moments(g.batch_size, g.num_heads, g.head_dim) if self.moments else None
        return Read(self.full.init(), last, none)

    def take(self, cache: Read, chunk: Chunk) -> tuple[Read, Queries]:
        """As `FullLayer`, and notes the queries."""
        at = chunk.positions(cache.slab)
        q, k = chunk.rotated(at)
        slab, out, lse = self.full.attend(cache.slab, chunk, at, q, k)
        return Read(slab, *note(cache.last, cache.moments, q, chunk, at, lse)), out

    def facts(self) -> Facts:
        """Everything."""
        return self.full.facts()


def poison(out, at, slots):
    """A full cache that overflowed must not go on as if nothing had happened."""
    return jnp.where((at >= slots)[:, :, None, None], jnp.nan, out)
