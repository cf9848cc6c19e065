# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Layers that keep everything, read a part of it, and look at everything now and then."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax.numpy as jnp
from jax import Array, lax

from jaxkv.attention import attend_one, attend_one_mass
from jaxkv.cache import store as stores
from jaxkv.cache.exported import exportable
from jaxkv.cache.refreshed import Refreshed
from jaxkv.cache.slab import Slab, append, empty
from jaxkv.core.typing import Queries
from jaxkv.layers.base import Chunk, Facts, Geometry, rotate
from jaxkv.layers.full import FullLayer, poison
from jaxkv.layers.packing import keep_rows
from jaxkv.layers.ring import RingLayer
from jaxkv.layers.scores import best_slots, max_pool
from pallas_kernels import compiler


@exportable
@flax.struct.dataclass
class Recycled(Refreshed):
    """What a layer keeps; `full` has P = 1, and `part` k + 1 slots, P = K.

    The lowest score of the last full step is first in `part`. Its slots are a ring: partial step n
    after the full one writes over what step n - 1 gave up.

    Attributes:
      query: float32 [B, H], mean over the heads of the query of the last full step.
      since: int32 [B], steps since the last full step.
      threshold: float32 [B], that of the policy, if it has one.
    """

    query: Array
    since: Array
    threshold: Array | None


@dataclasses.dataclass(frozen=True)
class RecycledLayer:
    """One layer; for the attributes see `RecycledAttention`."""

    geometry: Geometry
    k: int
    stride: int
    threshold: float | None
    kernel: int

    def init(self) -> Recycled:
        """An empty cache."""
        g, heads = self.geometry, self.geometry.num_kv_heads

        def rows(value: float, dtype: str = "int32") -> Array:
            # An array of its own each time: a cache is donated, and no buffer can be twice.
            return jnp.full((g.batch_size,), value, dtype)

        return Recycled(
            full=self._everything.init(),
            part=empty(g.batch_size, heads, self.k + 1, g.head_dim, g.dtype, pos_heads=heads),
            query=jnp.zeros((g.batch_size, g.head_dim), jnp.float32),
            since=rows(0),
            steps=rows(0),
            full_steps=rows(0),
            stride=rows(self.stride),
            threshold=None if self.threshold is None else rows(self.threshold, "float32"),
        )

    def take(self, cache: Recycled, chunk: Chunk) -> tuple[Recycled, Queries]:
        """Writes the chunk into both caches; a decoded token attends to the one or the other."""
        return (self._step if chunk.decoding else self._prefill)(cache, chunk)

    def _prefill(self, cache: Recycled, chunk: Chunk) -> tuple[Recycled, Queries]:
        """Full attention over the chunk; its last query fills the small cache."""
        full, out = self._everything.take(cache.full, chunk)
        lengths, rope = chunk.lengths, chunk.rope
        if lengths is None:
            lengths = jnp.full((chunk.q.shape[0],), chunk.count, jnp.int32)
        index = jnp.maximum(lengths - 1, 0)[:, None, None, None]
        last = jnp.take_along_axis(chunk.q, index, axis=1)
        at = jnp.where(lengths > 0, full.seen - 1, -1)[:, None]
        _, mass = attend_one_mass(
            rotate(rope, last, at), full.k, full.v, at, full.pos, rope, chunk.sink_logits
        )
        none = jnp.zeros_like(full.seen)
        part = _copies(full, *self._best(full, mass))
        fed = dataclasses.replace(
            cache, part=part, query=_mean_query(last), since=none, steps=none, full_steps=none
        )
        # The full cache is left out: it knows by itself which rows took tokens.
        after = keep_rows(lengths > 0, *(dataclasses.replace(x, full=none) for x in (fed, cache)))
        return dataclasses.replace(after, full=full), out

    def _step(self, cache: Recycled, chunk: Chunk) -> tuple[Recycled, Queries]:
        at, rope = chunk.positions(cache.full), chunk.rope
        active = at[:, 0] >= 0
        q, k = chunk.rotated(at)
        full = append(cache.full, k, chunk.v, at, at)
        steps = cache.steps + active.astype(jnp.int32)
        asks = active & (steps % cache.stride == 0)
        if cache.threshold is not None:
            asks &= _cosine(_mean_query(chunk.q), cache.query) <= cache.threshold

        slot = (self.k + cache.since) % (self.k + 1)
        part = append(cache.part, k, chunk.v, at, slot[:, None])

        # No cache passes through a branch: what the branches give is small.
        def at_all() -> tuple[Queries, Array, Array]:
            out, mass = attend_one_mass(q, full.k, full.v, at, full.pos, rope, chunk.sink_logits)
            return out, *self._best(full, mass)

        def at_some() -> tuple[Queries, Array, Array]:
            out, _ = chunk.with_sink(*attend_one(q, part.k, part.v, at, part.pos, rope))
            none = jnp.zeros((*part.pos.shape[:2], self.k), jnp.int32)
            return out, none, none.astype(bool)

        refresh = jnp.any(asks)
        out, index, valid = lax.cond(refresh, at_all, at_some)

        def refreshed(part: Slab, index: Array, consts: tuple[Slab, Array, Array]) -> Slab:
            full, valid, active = consts
            copies = keep_rows(active, _copies(full, index, valid), part)
            k, v = stores.keep_order((copies.k, copies.v))
            return dataclasses.replace(copies, k=k, v=v)

        part = compiler.in_place_if(refresh, refreshed, part, index, (full, valid, active))
        now = refresh & active
        after = dataclasses.replace(
            cache,
            full=full,
            part=part,
            query=jnp.where(now[:, None], _mean_query(chunk.q), cache.query),
            since=jnp.where(now, 0, cache.since + active.astype(jnp.int32)),
            steps=steps,
            full_steps=cache.full_steps + now.astype(jnp.int32),
        )
        return after, poison(out, at, full.slots)

    def facts(self) -> Facts:
        """Everything, and copies of `k`; with a threshold the layer's mean query decides."""
        return dataclasses.replace(
            self._everything.facts(),
            copies=self.k,
            stride=self.stride,
            couples_heads=self.threshold is not None,
        )

    @property
    def _everything(self) -> FullLayer:
        return FullLayer(self.geometry)

    def _best(self, full: Slab, mass: Array) -> tuple[Array, Array]:
        """Slots of the `k` best by one query's attention, lowest first: [B, K, k], and validity."""
        b, heads = full.pos.shape[0], self.geometry.num_kv_heads
        held = full.pos >= 0  # [B, 1, S]: slots are positions, so neighbours are neighbours
        score = jnp.max(mass.reshape(b, heads, -1, full.slots), axis=2)  # of the query heads
        score = max_pool(jnp.where(held, score, -jnp.inf), self.kernel)
        index, valid = best_slots(jnp.where(held, score, -jnp.inf), self.k)
        return index[..., ::-1], valid[..., ::-1]


def _copies(full: Slab, index: Array, valid: Array) -> Slab:
    """The slots `index`, [B, K, k], of a full cache, and an empty one behind them."""

    def copies(store: Any) -> Any:
        store, at = compiler.just_before(store, index)
        return stores.pad(stores.gather(stores.keep_order(store), at), 0, 1)

    pos = jnp.where(valid, stores.gather(full.pos, index), -1)
    return Slab(copies(full.k), copies(full.v), stores.pad(pos, 0, 1, fill=-1), full.seen)


def _mean_query(q: Queries) -> Array:
    """Mean over the heads of the one token: [B, 1, N, H] -> float32 [B, H]."""
    return jnp.mean(q[:, 0].astype(jnp.float32), axis=1)


def _cosine(a: Array, b: Array) -> Array:
    """[B, H] and [B, H] -> [B]."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-30)


@dataclasses.dataclass(frozen=True)
class StreamingPlusLayer:
    """One layer: both caches take every token, and each step reads one of them.

    Attributes:
      everything: reads prompts and full steps.
      ring: reads the steps in between.
      stride: as for `StreamingLLMPlus`.
    """

    everything: FullLayer
    ring: RingLayer
    stride: int

    def init(self) -> Refreshed:
        """An empty cache."""
        # An array of its own each: a cache is donated, and no buffer can be twice.
        rows = (
            jnp.full((self.ring.geometry.batch_size,), x, jnp.int32) for x in (0, 0, self.stride)
        )
        return Refreshed(self.everything.init(), self.ring.init(), *rows)

    def take(self, cache: Refreshed, chunk: Chunk) -> tuple[Refreshed, Queries]:
        """Writes the chunk into both caches; a decoded token attends to the one or the other."""
        return (self._step if chunk.decoding else self._prefill)(cache, chunk)

    def _prefill(self, cache: Refreshed, chunk: Chunk) -> tuple[Refreshed, Queries]:
        """Full attention over the chunk; the ring takes its end."""
        at = chunk.positions(cache.full)
        part = self.ring.write(cache.part, rotate(chunk.rope, chunk.k, at), chunk.v, at)
        full, out = self.everything.take(cache.full, chunk)
        fed = at[:, 0] >= 0
        steps, full_steps = (jnp.where(fed, 0, x) for x in (cache.steps, cache.full_steps))
        return Refreshed(full, part, steps, full_steps, cache.stride), out

    def _step(self, cache: Refreshed, chunk: Chunk) -> tuple[Refreshed, Queries]:
        at, rope = chunk.positions(cache.full), chunk.rope
        active = (at[:, 0] >= 0).astype(jnp.int32)
        q, k = chunk.rotated(at)
        full = append(cache.full, k, chunk.v, at, at)
        part = self.ring.write(cache.part, k, chunk.v, at)
        steps = cache.steps + active
        refresh = jnp.any((active > 0) & (steps % cache.stride == 0))
        out = lax.cond(
            refresh,
            lambda: chunk.with_sink(*attend_one(q, full.k, full.v, at, full.pos, rope))[0],
            lambda: self.ring.read(part, chunk, at),
        )
        full_steps = cache.full_steps + active * refresh.astype(jnp.int32)
        after = Refreshed(full, part, steps, full_steps, cache.stride)
        return after, poison(out, at, full.slots)

    def facts(self) -> Facts:
        """Everything, and copies of the sinks and the window."""
        copies = self.ring.sinks + self.ring.window
        return dataclasses.replace(self.everything.facts(), copies=copies, stride=self.stride)
