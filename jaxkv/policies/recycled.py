# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Full attention now and then, and in between only over the keys that it looked at."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxkv.attention import attend_one, attend_one_mass
from jaxkv.cache import store as stores
from jaxkv.cache.exported import exportable
from jaxkv.cache.refreshed import Refreshed
from jaxkv.cache.slab import Slab, append, empty
from jaxkv.errors import InputError
from jaxkv.policies.base import Chunk, Facts, Geometry, in_caches, rotate, swept
from jaxkv.policies.budgets import in_tokens
from jaxkv.policies.full import FullLayer, poison
from jaxkv.policies.packing import keep_rows
from jaxkv.policies.ring import within_windows
from jaxkv.policies.scores import best_slots, max_pool
from jaxkv.typing import Queries
from pallas_kernels import compiler


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class RecycledAttention:
    """Recycled Attention (arXiv 2411.05787; its second version is called RefreshKV).

    Everything is kept. The last query of the prompt, and every query of a full step, looks at all
    of it and copies the keys and values that it attends to most into a small cache. The steps in
    between read that one alone: the newest token goes in, and what scored lowest goes out. Scores
    stay as they are until the next full step, so tokens decoded since then leave last.

    A full step comes every `stride` decode steps; with a `threshold` it comes then only in layers
    whose query has moved: where the cosine between the mean query of the layer's heads and that of
    its last full step is at most `threshold`. The queries are compared before rotation, so that
    distance alone does not move them (the paper does not say). In a batch a layer refreshes all
    rows when any row asks.

    The first version of the paper is `kernel=1`, with `k` 4096 or 2048 and `stride` 50 or 10.

    Attributes:
      k: tokens of the small cache; as a float, a share of `max_length`.
      stride: decode steps from one full step, or one check, to the next; the prompt is step 0.
      threshold: a cosine, which turns the dynamic schedule on; None refreshes at every stride.
      kernel: neighbours over which scores are max-pooled, odd; 1 does not pool.

    Memory: `max_length` tokens per KV head and `k` more. What is saved is reading, not memory.
    """

    k: int | float = swept(0.125)
    stride: int = in_caches(10)
    threshold: float | None = in_caches(None)
    kernel: int = 7

    def __post_init__(self) -> None:
        if not (self.k >= 1 if isinstance(self.k, int) else 0 < self.k <= 1):
            raise InputError(f"k is {self.k}; it must be at least 1 token, or a share up to 1.0")
        if self.stride < 1:
            raise InputError(f"stride is {self.stride}; it must be at least 1")
        if self.threshold is not None and not self.threshold == self.threshold:
            raise InputError(f"threshold is {self.threshold}; it must be a number, such as 0.85")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise InputError(f"kernel is {self.kernel}; it must be odd and at least 1")

    @within_windows
    def at(self, layer: int, geometry: Geometry) -> RecycledLayer:
        """The same for every layer; each decides by itself."""
        del layer
        k = max(1, min(in_tokens(self.k, geometry.max_length), geometry.max_length))
        return RecycledLayer(geometry, k, self.stride, self.threshold, self.kernel)


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
        _, mass = attend_one_mass(rotate(rope, last, at), full.k, full.v, at, full.pos, rope)
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
            out, mass = attend_one_mass(q, full.k, full.v, at, full.pos, rope)
            return out, *self._best(full, mass)

        def at_some() -> tuple[Queries, Array, Array]:
            out, _ = attend_one(q, part.k, part.v, at, part.pos, rope)
            none = jnp.zeros((*part.pos.shape[:2], self.k), jnp.int32)
            return out, none, none.astype(bool)

        refresh = jnp.any(asks)
        out, index, valid = lax.cond(refresh, at_all, at_some)

        def refreshed(part: Slab, index: Array) -> Slab:
            copies = keep_rows(active, _copies(full, index, valid), part)
            k, v = stores.keep_order((copies.k, copies.v))
            return dataclasses.replace(copies, k=k, v=v)

        part = compiler.in_place_if(refresh, refreshed, part, index)
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
            self._everything.facts(), copies=self.k, couples_heads=self.threshold is not None
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
