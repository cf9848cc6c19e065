# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keeps everything: the dense cache that the others are measured against."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxkv.attention import attend_one, attend_slots
from jaxkv.cache.slab import Slab, append, empty
from jaxkv.errors import InputError
from jaxkv.policies.base import Chunk, Constants, Facts, FromFull, Geometry
from jaxkv.policies.draft import Read, last_of, note
from jaxkv.policies.moments import no_moments
from jaxkv.policies.ring import RingLayer, of_window
from jaxkv.typing import Queries, Rotation


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

    def at(self, layer: int, geometry: Geometry) -> FullLayer | RingLayer:
        """The same for every layer, but for those that do not see everything themselves."""
        if window := geometry.windows[layer] if geometry.windows else 0:
            return of_window(min(window, geometry.max_length), geometry)
        return FullLayer(geometry, self.queries, self.moments)


@dataclasses.dataclass(frozen=True)
class FullLayer(FromFull):
    """One layer of `Full`: the token at position p is in slot p.

    Its cache is a `Slab`, or a `Read` where something is kept of the queries.
    """

    geometry: Geometry
    queries: int = 0
    moments: bool = False

    def init(self) -> Slab | Read:
        """An empty slab of `max_length` slots."""
        g = self.geometry
        slab = empty(g.batch_size, g.num_kv_heads, g.max_length, g.head_dim, g.dtype)
        if not (self.queries or self.moments):
            return slab
        last = last_of(g, self.queries) if self.queries else None
        shape = g.batch_size, g.num_heads, g.head_dim
        return Read(slab, last, no_moments(*shape) if self.moments else None)

    def take(self, cache: Slab | Read, chunk: Chunk) -> tuple[Slab | Read, Queries]:
        """Writes the chunk, then attends: of a prompt over the slots in use, else over all."""
        slab = cache.slab if isinstance(cache, Read) else cache
        at = chunk.positions(slab)
        q, k = chunk.rotated(at)
        slab = append(slab, k, chunk.v, at, at, consecutive=True)
        keys = slab.k, slab.v, at, slab.pos, chunk.rope
        if chunk.decoding:
            out, lse = attend_one(q, *keys)
        else:
            out, lse = attend_slots(q, *keys, num_slots=jnp.max(slab.seen))
        out = poison(out, at, slab.slots)
        if not isinstance(cache, Read):
            return slab, out
        return Read(slab, *note(cache.last, cache.moments, q, chunk, at, lse)), out

    def from_full(
        self, empty: Slab | Read, kept: Slab | Read, rope: Rotation | None,
        constants: Constants | None,
    ) -> Slab | Read:  # fmt: skip
        """All of it."""
        del rope, constants
        slab = kept.slab if isinstance(kept, Read) else kept
        if not isinstance(empty, Read):
            return slab
        raise InputError("what is known of queries is kept while a prompt is read, or not at all")

    def facts(self) -> Facts:
        """Everything."""
        return Facts((self.geometry.max_length,) * self.geometry.num_kv_heads, grows=True)


def poison(out, at, slots):
    """A full cache that overflowed must not go on as if nothing had happened."""
    return jnp.where((at >= slots)[:, :, None, None], jnp.nan, out)
