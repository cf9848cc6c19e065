# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Heavy hitters: the tokens that have drawn most attention so far, and the newest."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.attention import attend_one_mass
from jaxkv.cache import store as stores
from jaxkv.cache.exported import exportable
from jaxkv.cache.slab import Slab, append_per_head, empty
from jaxkv.errors import InputError
from jaxkv.policies import draft as drafts
from jaxkv.policies.base import Chunk, Facts, Geometry, WholePrompt, rotate, swept
from jaxkv.policies.budgets import in_tokens
from jaxkv.policies.draft import Draft
from jaxkv.policies.packing import gathered, keep_best
from jaxkv.policies.ring import within_windows
from jaxkv.policies.scores import mass_of
from jaxkv.typing import Queries, Rotation


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class H2O:
    """H2O (arXiv 2306.14048), with eviction at every step and nothing kept beyond the budget.

    A token's score is the sum of the attention that it has received from every query since it came,
    the mean over the query heads that share a KV head. Each KV head keeps the `recent` share of its
    budget for its newest tokens, and the highest scores among the others. The prompt is read with
    full attention and its column sums are taken block by block, never as a matrix.

    Attributes:
      budget: tokens that a KV head keeps; as a float, a share of `max_length`.
      recent: the share of the budget that is for the newest tokens.

    Memory: `budget` tokens per KV head, one slot for the newest token, and a score for each.
    """

    budget: int | float = swept(1024)
    recent: float = 0.5

    def __post_init__(self) -> None:
        if not (self.budget >= 2 if isinstance(self.budget, int) else 0 < self.budget <= 1):
            raise InputError(
                f"budget is {self.budget}; it must be at least 2 tokens, or a share up to 1.0"
            )
        if not 0 <= self.recent <= 1:
            raise InputError(f"recent is {self.recent}; it must be from 0 to 1")

    @within_windows
    def at(self, layer: int, geometry: Geometry) -> H2OLayer:
        """The same for every layer."""
        del layer
        budget = max(in_tokens(self.budget, geometry.max_length), 2)
        return H2OLayer(geometry, budget, round(budget * self.recent))


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
        out, mass = attend_one_mass(q, slab.k, slab.v, at, slab.pos, chunk.rope)
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
