# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A layer's budget, dealt out to its heads by where the prompt's attention went."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp
from jax import Array, lax

from jaxkv.attention import attend_one, attend_pool
from jaxkv.cache.exported import exportable
from jaxkv.cache.pool import Pool, as_slab, empty_pool, fill
from jaxkv.cache.slab import Slab, append, append_slots, concat_slots, empty
from jaxkv.errors import InputError
from jaxkv.policies import draft as drafts
from jaxkv.policies.base import Chunk, Facts, Geometry, WholePrompt
from jaxkv.policies.budgets import check_budget, in_tokens
from jaxkv.policies.draft import Draft
from jaxkv.policies.scores import best_slots, pooled_scores
from jaxkv.policies.selected import keep_rows
from jaxkv.softmax import merge
from jaxkv.typing import Queries, Rotation


@dataclasses.dataclass(frozen=True)
class AdaKV:
    """Ada-KV (arXiv 2407.11550) on SnapKV's scores, per KV head.

    The best tokens of all KV heads of a layer compete for its budget, so that a head whose
    attention is spread gets more than one that looks at a few tokens. Which head got how much
    depends on the prompt, yet no prompt needs a new program: heads own blocks of one pool.

    Attributes:
      budget: tokens of a prompt that a KV head keeps, mean over the heads of a layer, the window
        included; as a float, a share of `max_length`.
      window: last tokens of the prompt, always kept by every head, whose queries choose.
      kernel: neighbours over which scores are max-pooled, odd.
      floor: share of the budget that every head is sure of, in [0, 1]; 1 is `SnapKV`.
      decode_room: as for `SnapKV`.

    Memory: `budget + decode_room` tokens per KV head on average, one slot for the newest token, and
    the unused end of each head's last block of 16 or 32.
    """

    budget: int | float = 1024
    window: int = 32
    kernel: int = 7
    floor: float = 0.2
    decode_room: int = 128

    def __post_init__(self) -> None:
        check_budget(self.budget, self.window, self.kernel, self.decode_room)
        if not 0 <= self.floor <= 1:
            raise InputError(f"floor is {self.floor}; it must be from 0 to 1")

    def at(self, layer: int, geometry: Geometry) -> PooledLayer:
        """The same for every layer."""
        del layer
        budget = max(in_tokens(self.budget, geometry.max_length), self.window)
        return PooledLayer(
            geometry, budget - self.window, self.window, self.kernel, self.floor, self.decode_room
        )


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
class PooledLayer(WholePrompt):
    """Chooses from a whole prompt, as `SelectedLayer` does, but with budgets that are traced.

    Attributes:
      geometry: of the layer.
      cap: chosen tokens of a KV head, mean over the heads.
      window, kernel, floor, decode_room: as for `AdaKV`.
    """

    geometry: Geometry
    cap: int
    window: int
    kernel: int
    floor: float
    decode_room: int

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
        out, _ = merge(
            attend_one(q, ring.k, ring.v, at, ring.pos, rope),
            attend_pool(q, pool.k, pool.v, at, pool.pos, pool.owner, heads, rope),
        )
        return Pooled(pool, ring), out

    def open(self, cache: Pooled, count: int) -> Draft:
        """See `WholePrompt`."""
        ring, heads = cache.ring, self.geometry.num_kv_heads
        pool = as_slab(cache.pool, ring.seen)
        pos = jnp.broadcast_to(ring.pos, (ring.pos.shape[0], heads, ring.slots))
        slab = concat_slots([pool, dataclasses.replace(ring, pos=pos)])
        return drafts.open_draft([slab], count, self.geometry, self.window)

    def feed(self, draft: Draft, start: Array, count: int, chunk: Chunk) -> tuple[Draft, Queries]:
        """See `WholePrompt`."""
        draft, out, _ = drafts.feed(draft, start, count, chunk)
        return draft, out

    def close(self, draft: Draft, cache: Pooled, rope: Rotation | None) -> Pooled:
        """Deals out the budget and packs the pool; a row that took no token keeps what it had."""
        slab = draft.slab
        protected = slab.pos >= (slab.seen - self.window)[:, None, None]
        choice = (slab.pos >= 0) & jnp.logical_not(protected)
        scores = pooled_scores(drafts.mass(draft, rope), slab.pos, choice, self.kernel)
        # A head may win the budget of all.
        index, valid = best_slots(scores, max(1, self.geometry.num_kv_heads * self.cap))
        caps = jnp.minimum(self._caps(scores), jnp.sum(valid, axis=-1, dtype=jnp.int32))
        pool = fill(slab, index, caps, self.blocks, self.block)
        recent = drafts.newest(slab, self.window)
        ring = dataclasses.replace(cache.ring, pos=jnp.full_like(cache.ring.pos, -1))
        ring = append_slots(ring, recent, recent.pos[:, 0] % (self.recent + 1))
        return keep_rows(draft.fed, Pooled(pool, ring), cache)

    def facts(self) -> Facts:
        """As many on average; a head may have more and another less."""
        keeps = (self.cap + self.recent,) * self.geometry.num_kv_heads
        return Facts(keeps, couples_heads=True)

    def _caps(self, scores: Array) -> Array:
        """Tokens of each head: its part of the layer's best, above what it is sure of.

        Algorithm 1 of the paper with its safeguard, as the reference code rounds it:
        round((1 - floor) n) + floor-of(floor * cap), where n of the layer's K cap best scores are
        the head's. int32 [B, K].
        """
        batch, heads, slots = scores.shape
        flat = scores.reshape(batch, heads * slots)
        best, index = lax.top_k(flat, min(heads * self.cap, heads * slots))
        found = jnp.logical_not(jnp.isneginf(best))
        owner = index // slots
        won = jnp.sum(
            (owner[:, None] == jnp.arange(heads, dtype=jnp.int32)[None, :, None]) & found[:, None],
            axis=-1,
            dtype=jnp.int32,
        )
        sure = int(self.floor * self.cap)
        return jnp.round(won.astype(jnp.float32) * (1 - self.floor) + sure).astype(jnp.int32)
