# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keeps everything: the dense cache that the others are measured against."""

from __future__ import annotations

import dataclasses

import jax

from jaxkv.core.errors import InputError
from jaxkv.core.typing import Queries
from jaxkv.layers.base import Chunk, Facts, Geometry
from jaxkv.layers.draft import Read, last_of, note
from jaxkv.layers.full import FullLayer
from jaxkv.layers.moments import no_moments
from jaxkv.layers.ring import RingLayer, of_window


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
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
        full = FullLayer(geometry, geometry.shards)
        noted = self.queries or self.moments
        return ReadLayer(full, self.queries, self.moments) if noted else full


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
