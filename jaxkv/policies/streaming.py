# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention sinks and a window, in a ring that never grows."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jaxkv.attention import attend_chunk, attend_one, attend_slots
from jaxkv.cache.slab import Slab, append, empty, slice_slots
from jaxkv.errors import InputError
from jaxkv.policies.base import Chunk, Geometry, rotate
from jaxkv.softmax import merge
from jaxkv.typing import NewKeys, Positions, Queries, Rotation


@dataclasses.dataclass(frozen=True)
class StreamingLLM:
    """Efficient Streaming Language Models with Attention Sinks (arXiv 2309.17453).

    Keeps the first `sinks` tokens and the last `window`. Positions are those inside the cache
    (section 3.2 of the paper): once the stream is longer than the cache, sink i stays at distance
    `sinks + window - i` from every query. Prefill is token-exact: a prompt in chunks of any size
    gives what feeding it token by token gives.

    Attributes:
      sinks: first tokens that are always kept.
      window: past tokens that are kept; a query also sees itself.

    Memory: `sinks + window` tokens per KV head, and one slot for the newest token.
    """

    sinks: int = 4
    window: int = 1020

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise InputError(f"sinks is {self.sinks}; it must be at least 0")
        if self.window < 1:
            raise InputError(f"window is {self.window}; it must be at least 1")

    def at(self, layer: int, geometry: Geometry) -> RingLayer:
        """The same for every layer."""
        del layer
        return RingLayer(geometry, self.sinks, self.window, in_cache=True)


@dataclasses.dataclass(frozen=True)
class RingLayer:
    """Sinks in slots [0, sinks), then a ring of window + 1 slots that is written before attending.

    With `window` slots the oldest token would be gone one step early: its slot is the new one's.

        sinks 2, window 3:   [s0 s1 | 2 3 4 5]  the query at 5 sees all six
                        ->   [s0 s1 | 6 3 4 5]  the query at 6 takes the slot of 2

    Keys are rotated once, at write, at their absolute position, and never again. Inside the
    window absolute distances are already those inside the cache; only the sinks' differ. So the
    query is rotated twice, at its own position for the window, and at min(position, sinks +
    window) for the sinks.

    Attributes:
      geometry: the static shapes.
      sinks: first tokens kept.
      window: past tokens kept.
      in_cache: sinks at their distance inside the cache; False leaves it absolute.
      dense_chunks: queries of a chunk see all of it, and of the rest what was kept at its start.
    """

    geometry: Geometry
    sinks: int
    window: int
    in_cache: bool
    dense_chunks: bool = False

    def init(self) -> Slab:
        """An empty slab of sinks + window + 1 slots."""
        g = self.geometry
        slots = self.sinks + self.window + 1
        return empty(g.batch_size, g.num_kv_heads, slots, g.head_dim, g.dtype)

    def take(self, cache: Slab, chunk: Chunk) -> tuple[Slab, Queries]:
        """Writes a decoded token over the one that leaves the window, then attends."""
        if not chunk.decoding:
            return self._prefill(cache, chunk)
        at = chunk.positions(cache)
        cache = self.write(cache, rotate(chunk.rope, chunk.k, at), chunk.v, at)
        return cache, self.read(cache, chunk.q, chunk.rope, at)

    def _prefill(self, cache: Slab, chunk: Chunk) -> tuple[Slab, Queries]:
        """Attends over the ring as it was, the chunk, and the sinks; then the chunk goes in.

        Writing first would overwrite what the chunk's early queries still see. A sink is never
        overwritten, so those of this chunk are written before, and read in their slots.
        """
        at, rope, v = chunk.positions(cache), chunk.rope, chunk.v
        k = rotate(rope, chunk.k, at)
        window_q, sink_q = self._rotate_query(rope, chunk.q, at)
        after = self.write(cache, k, v, at)
        ring = slice_slots(cache, self.sinks, cache.slots)
        held, reach = ring.pos, self.window
        if self.dense_chunks:
            # The slot for the newest token is no part of what is kept.
            held, reach = jnp.where(held >= cache.seen[:, None, None] - reach, held, -1), None
        parts = [
            attend_slots(window_q, ring.k, ring.v, at, held, rope, window=reach),
            attend_chunk(
                window_q, k, v, at, jnp.where(at < self.sinks, -1, at), rope, window=reach
            ),
        ]
        if self.sinks:
            first, sink_at = slice_slots(after, 0, self.sinks), self._at_sinks(at)
            parts.append(attend_slots(sink_q, first.k, first.v, sink_at, first.pos, rope))
        out, _ = merge(*parts)
        return after, out

    def write(self, cache: Slab, k: NewKeys, v: NewKeys, at: Positions) -> Slab:
        """Puts rotated keys and their values where they go; of a long chunk only its end."""
        ring = self.window + 1
        slots = jnp.where(at < self.sinks, at, self.sinks + (at - self.sinks) % ring)
        if at.shape[1] > 1:
            end = jnp.max(at, axis=1, keepdims=True)
            stays = (at < self.sinks) | (at > end - ring)
            slots = jnp.where(stays, slots, self.sinks + ring)
        return append(cache, k, v, at, slots)

    def read(self, cache: Slab, q: Queries, rope: Rotation | None, at: Positions) -> Queries:
        """What the query of the token that was just written sees: [B, 1, N, H]."""
        window_q, sink_q = self._rotate_query(rope, q, at)
        out, _ = attend_one(
            window_q, cache.k, cache.v, at, cache.pos, rope,
            window=self.window, sinks=self.sinks, q_sink=sink_q if self.in_cache else None,
        )  # fmt: skip
        return out

    def kept(self, seen: int) -> tuple[int, ...]:
        """The sinks and the window, once there are as many tokens."""
        return (min(seen, self.sinks + self.window),) * self.geometry.num_kv_heads

    def _rotate_query(self, rope: Rotation | None, q: Queries, at: Positions):
        """The query for the window, and for the sinks."""
        window_q = rotate(rope, q, at)
        if not (self.in_cache and self.sinks):
            return window_q, window_q
        return window_q, rotate(rope, q, self._at_sinks(at))

    def _at_sinks(self, at: Positions) -> Positions:
        """Where a query stands, as the sinks see it."""
        return jnp.minimum(at, self.sinks + self.window) if self.in_cache else at
