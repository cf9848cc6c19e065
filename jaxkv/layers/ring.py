# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Sinks and a ring of the newest tokens, which never grow; also layers with their own window."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxkv.attention import attend_chunk, attend_one, attend_slots
from jaxkv.cache.slab import Slab, append, append_slots, empty, slice_slots
from jaxkv.core.typing import NewKeys, Positions, Queries, Rotation
from jaxkv.layers.base import Chunk, Constants, Facts, FromFull, Geometry, rotate
from jaxkv.layers.draft import Read
from pallas_kernels.softmax import merge


@dataclasses.dataclass(frozen=True)
class RingLayer(FromFull):
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

    @property
    def ring(self) -> int:
        """Slots that are written in turn: the window's and one for the newest."""
        return self.window + 1

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
        return cache, self.read(cache, chunk, at)

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
        out, _ = chunk.with_sink(*merge(*parts))
        return after, out

    def write(self, cache: Slab, k: NewKeys, v: NewKeys, at: Positions) -> Slab:
        """Puts rotated keys and their values where they go; of a long chunk only its end."""
        slots = self._slots(at)
        if at.shape[1] > 1:
            end = jnp.max(at, axis=1, keepdims=True)
            stays = (at < self.sinks) | (at > end - self.ring)
            slots = jnp.where(stays, slots, self.sinks + self.ring)
        return append(cache, k, v, at, slots)

    def read(self, cache: Slab, chunk: Chunk, at: Positions) -> Queries:
        """What the query of the token that was just written sees: [B, 1, N, H]."""
        window_q, sink_q = self._rotate_query(chunk.rope, chunk.q, at)
        seen = attend_one(
            window_q, cache.k, cache.v, at, cache.pos, chunk.rope,
            window=self.window, sinks=self.sinks, q_sink=sink_q if self.in_cache else None,
        )  # fmt: skip
        return chunk.with_sink(*seen)[0]

    def from_full(
        self, empty: Slab, kept: Slab | Read, rope: Rotation | None, constants: Constants | None
    ) -> Slab:
        """The sinks, and the end, each where it would have been written."""
        del rope, constants
        slab = kept.slab if isinstance(kept, Read) else kept
        at = slab.pos[:, 0]
        stays = (at < self.sinks) | (at >= slab.seen[:, None] - self.ring)
        slots = jnp.where(stays & (at >= 0), self._slots(at), empty.slots)
        return append_slots(empty, slab, slots)

    def facts(self) -> Facts:
        """The sinks and the window. Sinks at their absolute distance may be any distance away."""
        keeps = (self.sinks + self.window,) * self.geometry.num_kv_heads
        return Facts(keeps, far=bool(self.sinks) and not self.in_cache)

    def _slots(self, at: Positions) -> Positions:
        """Where the token at a position is held."""
        return jnp.where(at < self.sinks, at, self.sinks + (at - self.sinks) % self.ring)

    def _rotate_query(self, rope: Rotation | None, q: Queries, at: Positions):
        """The query for the window, and for the sinks."""
        window_q = rotate(rope, q, at)
        if not (self.in_cache and self.sinks):
            return window_q, window_q
        return window_q, rotate(rope, q, self._at_sinks(at))

    def _at_sinks(self, at: Positions) -> Positions:
        """Where a query stands, as the sinks see it."""
        return jnp.minimum(at, self.sinks + self.window) if self.in_cache else at


def of_window(window: int, geometry: Geometry) -> RingLayer:
    """What a layer keeps that the model itself lets see only `window` past tokens."""
    return RingLayer(geometry, sinks=0, window=window, in_cache=False)


def within_windows(at: Callable[..., Any]) -> Callable[..., Any]:
    """A policy's `at` for the layers that it rules; one with a window of its own is a ring."""

    @functools.wraps(at)
    def of_layer(policy: Any, layer: int, geometry: Geometry) -> Any:
        window = geometry.windows[layer] if geometry.windows else 0
        return of_window(window, geometry) if window else at(policy, layer, geometry)

    return of_layer
