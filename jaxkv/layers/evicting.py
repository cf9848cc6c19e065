# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Layers that drop a token at every step: the one that attention goes to least."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax.numpy as jnp
from jax import Array

from jaxkv.attention import attend_one_mass
from jaxkv.cache import store as stores
from jaxkv.cache.exported import exportable
from jaxkv.cache.slab import Slab, append, append_per_head, empty
from jaxkv.core.typing import Queries, Rotation
from jaxkv.layers import draft as drafts
from jaxkv.layers.base import Chunk, Constants, Facts, FromFull, Geometry, WholePrompt, rotate
from jaxkv.layers.draft import Draft
from jaxkv.layers.packing import gathered, keep_best
from jaxkv.layers.scores import mass_of


@exportable
@flax.struct.dataclass
class Scored:
    """What a layer keeps.

    Attributes:
      slab: budget + 1 slots, P = K.
      score: float32 [B, K, S], attention that each token has received.
    """

    slab: Slab
    score: Array


@flax.struct.dataclass
class ScoredDraft:
    """A prompt that is being read, and the attention that each slot has received, [B, K, S]."""

    draft: Draft
    score: Array


@dataclasses.dataclass(frozen=True)
class H2OLayer(WholePrompt):
    """One layer: `budget` tokens, of which `recent` are the newest.

    Attributes:
      geometry: of the layer.
      budget: tokens kept.
      recent: of which the newest are safe.
    """

    geometry: Geometry
    budget: int
    recent: int

    def init(self) -> Scored:
        """An empty cache."""
        g, heads = self.geometry, self.geometry.num_kv_heads
        slab = empty(g.batch_size, heads, self.budget + 1, g.head_dim, g.dtype, pos_heads=heads)
        return Scored(slab, jnp.zeros(slab.pos.shape, jnp.float32))

    def step(self, cache: Scored, chunk: Chunk) -> tuple[Scored, Queries]:
        """Writes the token into the free slot of each head, attends, then frees the next."""
        at = chunk.positions(cache.slab)
        q, k = chunk.rotated(at)
        free = jnp.argmin(cache.slab.pos, axis=-1).astype(jnp.int32)
        slab = append_per_head(cache.slab, k, chunk.v, at, free)
        out, mass = attend_one_mass(q, slab.k, slab.v, at, slab.pos, chunk.rope, chunk.sink_logits)
        slots = jnp.arange(slab.slots, dtype=jnp.int32)[None, None]
        came = (slots == free[..., None]) & (at >= 0)[..., None]
        score = jnp.where(came, 0.0, cache.score) + self._of_kv_heads(mass)
        held = slab.pos >= 0
        old = held & (slab.pos <= (at - self.recent)[..., None])
        worst = jnp.argmin(jnp.where(old, score, jnp.inf), axis=-1, keepdims=True)
        worst = worst.astype(jnp.int32)
        over = jnp.sum(held, axis=-1, keepdims=True, dtype=jnp.int32) > self.budget
        gone = over & (slots == worst)
        slab = dataclasses.replace(slab, pos=jnp.where(gone, -1, slab.pos))
        return Scored(slab, score), out

    def open(self, cache: Scored, count: int) -> ScoredDraft:
        """See `WholePrompt`."""
        draft = drafts.open_draft([cache.slab], count, self.geometry, self.needs)
        return ScoredDraft(draft, stores.pad(cache.score, count, 0))

    def feed(
        self, draft: ScoredDraft, start: Array, count: int, chunk: Chunk
    ) -> tuple[ScoredDraft, Queries]:
        """See `WholePrompt`. The chunk's queries add to the scores of all that they saw."""
        at = chunk.positions(draft.draft.slab)
        inner, out, lse = drafts.feed(draft.draft, start, count, chunk)
        slab, used = inner.slab, inner.used(start + chunk.count, count)
        q = rotate(chunk.rope, chunk.q, at)
        mass = mass_of(q, lse, slab.k, at, slab.pos, chunk.rope, used)
        return ScoredDraft(inner, draft.score + self._of_kv_heads(mass)), out

    def close(self, draft: ScoredDraft, cache: Scored, rope: Rotation | None) -> Scored:
        """Keeps the newest and the highest scores; a row that took no token keeps what it had."""
        del rope
        slab = draft.draft.slab
        newest = slab.pos >= (slab.seen - self.recent)[:, None, None]
        value = jnp.where(newest, jnp.inf, draft.score)
        value = jnp.where(slab.pos >= 0, value, -jnp.inf)

        def pack(index: Array, kept: Array) -> Scored:
            score = stores.pad(stores.gather(draft.score, index, kept), 0, 1)
            return Scored(gathered(slab, index, kept, 1), score)

        return keep_best(draft.draft.fed, value, self.budget, None, pack, cache)

    def facts(self) -> Facts:
        """The budget."""
        return Facts((self.budget,) * self.geometry.num_kv_heads)

    def _of_kv_heads(self, mass: Array) -> Array:
        """Mean over the query heads of a KV head: [B, N, S] -> [B, K, S]."""
        b, _, slots = mass.shape
        return jnp.mean(mass.reshape(b, self.geometry.num_kv_heads, -1, slots), axis=2)


@dataclasses.dataclass(frozen=True)
class TOVALayer(WholePrompt, FromFull):
    """One layer: `budget` tokens, and one slot that is free before every step."""

    needs = ("mass",)

    geometry: Geometry
    budget: int

    def init(self) -> Slab:
        """An empty slab, P = 1."""
        g = self.geometry
        return empty(g.batch_size, g.num_kv_heads, self.budget + 1, g.head_dim, g.dtype)

    def step(self, cache: Slab, chunk: Chunk) -> tuple[Slab, Queries]:
        """Writes the token into the free slot, attends, then frees the least attended."""
        at = chunk.positions(cache)
        q, k = chunk.rotated(at)
        free = jnp.argmin(cache.pos[:, 0], axis=-1, keepdims=True).astype(jnp.int32)
        slab = append(cache, k, chunk.v, at, free)
        out, mass = attend_one_mass(q, slab.k, slab.v, at, slab.pos, chunk.rope, chunk.sink_logits)
        held = slab.pos[:, 0] >= 0
        mean = jnp.where(held, jnp.mean(mass, axis=1), jnp.inf)
        over = (jnp.sum(held, axis=-1, dtype=jnp.int32) > self.budget) & (at[:, 0] >= 0)
        worst = jnp.argmin(mean, axis=-1).astype(jnp.int32)
        gone = over[:, None] & (jnp.arange(slab.slots, dtype=jnp.int32)[None] == worst[:, None])
        return dataclasses.replace(slab, pos=jnp.where(gone[:, None], -1, slab.pos)), out

    def open(self, cache: Slab, count: int) -> Draft:
        """See `WholePrompt`."""
        g = self.geometry
        pos = jnp.broadcast_to(cache.pos, (g.batch_size, g.num_kv_heads, cache.slots))
        return drafts.open_draft([dataclasses.replace(cache, pos=pos)], count, g, self.needs, 1)

    def feed(self, draft: Draft, start: Array, count: int, chunk: Chunk) -> tuple[Draft, Queries]:
        """See `WholePrompt`."""
        draft, out, _ = drafts.feed(draft, start, count, chunk)
        return draft, out

    def close(self, draft: Draft, cache: Slab, rope: Rotation | None) -> Slab:
        """Keeps what the last query attends to most; a row that took no token keeps what it had."""
        slab, heads = draft.slab, self.geometry.num_kv_heads
        mean = jnp.mean(drafts.mass(draft, rope), axis=1, keepdims=True)
        value = jnp.where(slab.pos[:, :1] >= 0, mean, -jnp.inf)

        def pack(index: Array, kept: Array) -> Slab:
            every = (*index.shape[:1], heads, index.shape[-1])
            index, kept = (jnp.broadcast_to(x, every) for x in (index, kept))
            packed = gathered(slab, index, kept, 1)
            return dataclasses.replace(packed, pos=packed.pos[:, :1])

        return keep_best(draft.fed, value, self.budget, None, pack, cache)

    def looks_at(self) -> tuple[tuple[str, ...], int]:
        """The attention of the last query."""
        return self.needs, 1

    def from_full(
        self, empty: Slab, kept: Any, rope: Rotation | None, constants: Constants | None
    ) -> Slab:
        """See `FromFull`."""
        draft = drafts.of_full(kept, self.geometry, None, self.needs, 1, constants)
        return self.close(draft, empty, rope)

    def facts(self) -> Facts:
        """The budget; all heads choose together."""
        return Facts((self.budget,) * self.geometry.num_kv_heads, couples_heads=True)
