# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A layer whose budget is dealt out to its heads by the prompt, in blocks of one pool."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax.numpy as jnp
from jax import Array, lax

from jaxkv.attention import attend_one, attend_pool
from jaxkv.cache.exported import exportable
from jaxkv.cache.pool import Pool, as_slab, empty_pool, fill
from jaxkv.cache.slab import Slab, append, append_slots, concat_slots, empty
from jaxkv.core.typing import Hidden, Queries, Rotation
from jaxkv.layers import draft as drafts
from jaxkv.layers.base import Chunk, Constants, Facts, FromFull, Geometry, WholePrompt
from jaxkv.layers.draft import Draft
from jaxkv.layers.packing import keep_best, keep_rows
from jaxkv.layers.prompt import Prompt, Scorer, scores_of, sinks_first
from pallas_kernels.softmax import merge


@exportable
@flax.struct.dataclass
class Pooled:
    """What a layer keeps.

    Attributes:
      pool: the chosen tokens of the prompt.
      ring: the newest tokens, the same for every head.
    """

    pool: Pool
    ring: Slab


@dataclasses.dataclass(frozen=True)
class PooledLayer(WholePrompt, FromFull):
    """Chooses from a whole prompt, as `SelectedLayer` does, but with budgets that are traced.

    The best tokens of all KV heads of the layer compete for its budget (Ada-KV, arXiv 2407.11550),
    so that a head whose scores are spread gets more than one that has a few high ones. Which head
    got how much depends on the prompt, yet no prompt needs a new program: heads own blocks of one
    pool.

    Attributes:
      geometry: of the layer.
      cap: chosen tokens of a KV head, mean over the heads, at least `sinks`.
      window, scorer, decode_room, sinks, needs, agnostic: as for `SelectedLayer`.
      floor: share of what is dealt out that every head is sure of, in [0, 1].
    """

    geometry: Geometry
    cap: int
    window: int
    scorer: Scorer
    decode_room: int
    sinks: int = 0
    floor: float = 0.2
    needs: tuple[str, ...] = ()
    agnostic: bool = False

    @property
    def block(self) -> int:
        """C: small where a budget is small, as every head leaves part of a block unused."""
        return 16 if self.cap < 512 else 32

    @property
    def blocks(self) -> int:
        """M: the budget of all heads, and for each the rest of a block and of rounding."""
        heads = self.geometry.num_kv_heads
        return -(-(heads * self.cap + heads // 2 + heads * (self.block - 1)) // self.block)

    @property
    def recent(self) -> int:
        """Tokens that the ring keeps."""
        return self.window + self.decode_room

    def init(self) -> Pooled:
        """An empty cache."""
        g = self.geometry
        shape = g.head_dim, g.dtype
        return Pooled(
            empty_pool(g.batch_size, g.num_kv_heads, self.blocks, self.block, *shape),
            empty(g.batch_size, g.num_kv_heads, self.recent + 1, *shape),
        )

    def step(self, cache: Pooled, chunk: Chunk) -> tuple[Pooled, Queries]:
        """Writes the token into the ring, over the oldest if it is full, then attends to both."""
        at, rope = chunk.positions(cache.ring), chunk.rope
        q, k = chunk.rotated(at)
        ring = append(cache.ring, k, chunk.v, at, at % (self.recent + 1))
        pool, heads = cache.pool, self.geometry.num_kv_heads
        seen = merge(
            attend_one(q, ring.k, ring.v, at, ring.pos, rope),
            attend_pool(q, pool.k, pool.v, at, pool.pos, pool.owner, heads, rope),
        )
        out, _ = chunk.with_sink(*seen)
        return Pooled(pool, ring), out

    def open(self, cache: Pooled, count: int) -> Draft:
        """See `WholePrompt`."""
        ring, heads = cache.ring, self.geometry.num_kv_heads
        pool = as_slab(cache.pool, ring.seen)
        pos = jnp.broadcast_to(ring.pos, (ring.pos.shape[0], heads, ring.slots))
        slab = concat_slots([pool, dataclasses.replace(ring, pos=pos)])
        return drafts.open_draft([slab], count, self.geometry, self.needs, self.window)

    def provide(self, draft: Draft, like: Hidden | None, constants: Constants | None) -> Draft:
        """See `WholePrompt`."""
        return drafts.provide(draft, self.needs, like, constants)

    def feed(self, draft: Draft, start: Array, count: int, chunk: Chunk) -> tuple[Draft, Queries]:
        """See `WholePrompt`."""
        draft, out, _ = drafts.feed(draft, start, count, chunk)
        return draft, drafts.nan_at_the_start(draft, self.needs, out)

    def close(self, draft: Draft, cache: Pooled, rope: Rotation | None) -> Pooled:
        """Deals out the budget and packs the pool; a row that took no token keeps what it had."""
        if drafts.unrepeated(draft, self.needs):
            return self._kept_on(draft, cache)
        slab, heads = draft.slab, self.geometry.num_kv_heads
        prompt = Prompt(draft, rope, self.window, self.needs)
        scores = scores_of(self.scorer, prompt)
        order, first = sinks_first(scores, prompt, self.sinks)
        caps = self._caps(jnp.where(first, -jnp.inf, scores))
        caps = caps + jnp.sum(first, axis=-1, dtype=jnp.int32)
        recent = drafts.newest(slab, self.window)

        def pack(index: Array, kept: Array) -> Pooled:
            counts = jnp.sum(kept, axis=-1, dtype=jnp.int32)
            pool = fill(slab, index, counts, self.blocks, self.block)
            ring = dataclasses.replace(cache.ring, pos=jnp.full_like(cache.ring.pos, -1))
            ring = append_slots(ring, recent, recent.pos[:, 0] % (self.recent + 1))
            return Pooled(pool, ring)

        # A head may win the budget of all.
        chosen = keep_best(draft.fed, order, max(1, heads * self.cap), caps, pack, cache)
        if not self.agnostic:
            return chosen
        fits = drafts.fits(draft, cache.ring.pos[:, 0], self.recent)
        return keep_rows(fits, self._kept_on(draft, cache), chosen)

    def _kept_on(self, draft: Draft, cache: Pooled) -> Pooled:
        """A prompt's tokens in the ring, as if they had been decoded."""
        new = drafts.arrived(draft, self.recent)
        return Pooled(cache.pool, append_slots(cache.ring, new, new.pos[:, 0] % (self.recent + 1)))

    def looks_at(self) -> tuple[tuple[str, ...], int]:
        """What its scorer asks for, and the queries of the window."""
        return self.needs, self.window

    def from_full(
        self, empty: Pooled, kept: Any, rope: Rotation | None, constants: Constants | None
    ) -> Pooled:
        """See `FromFull`."""
        draft = drafts.of_full(kept, self.geometry, None, self.needs, self.window, constants)
        return self.close(draft, empty, rope)

    def facts(self) -> Facts:
        """As many on average; a head may have more and another less."""
        keeps = (self.cap + self.recent,) * self.geometry.num_kv_heads
        later = self.recent if "replay" in self.needs else None
        return Facts(keeps, couples_heads=True, later=later)

    def _caps(self, scores: Array) -> Array:
        """Tokens of each head beside its sinks: its part of the layer's best, above what is sure.

        Algorithm 1 of the paper with its safeguard, as the reference code rounds it:
        round((1 - floor) n) + floor-of(floor * cap), where n of the layer's K cap best scores are
        the head's. int32 [B, K].
        """
        batch, heads, slots = scores.shape
        cap = self.cap - self.sinks
        best, index = lax.top_k(
            scores.reshape(batch, heads * slots), min(heads * cap, heads * slots)
        )
        found = jnp.logical_not(jnp.isneginf(best))
        owner = index // slots
        won = jnp.sum(
            (owner[:, None] == jnp.arange(heads, dtype=jnp.int32)[None, :, None]) & found[:, None],
            axis=-1,
            dtype=jnp.int32,
        )
        sure = int(self.floor * cap)
        return jnp.round(won.astype(jnp.float32) * (1 - self.floor) + sure).astype(jnp.int32)
