# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A layer whose part of the model's budget, and its heads' parts of it, the prompt decides."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax.numpy as jnp
from jax import Array

from jaxkv.attention import attend_one, attend_pool
from jaxkv.cache.pool import Pool, empty_pool
from jaxkv.cache.shared import Candidates, Shared
from jaxkv.cache.slab import append, append_slots, empty
from jaxkv.core.errors import InputError
from jaxkv.core.typing import Hidden, Queries, Rotation
from jaxkv.layers import draft as drafts
from jaxkv.layers.base import Chunk, Constants, Facts, FromFull, Geometry, WholePrompt
from jaxkv.layers.draft import Draft
from jaxkv.layers.prompt import Prompt, Scorer, scores_of, sinks_first
from pallas_kernels.softmax import merge


@flax.struct.dataclass
class SharedDraft:
    """A prompt that is being read.

    Attributes:
      draft: of the prompt, and of what the ring held.
      kept: the layer's cache, with the pool.
    """

    draft: Draft
    kept: Shared


@dataclasses.dataclass(frozen=True)
class SharedLayer(WholePrompt, FromFull):
    """Chooses from a stream's first prompt together with all other layers of the model.

    The best tokens of all KV heads of all layers compete for one budget. What a layer gets is a run
    of blocks of one pool, which is written once and then only read; no layer reads another's.
    Later prompts are kept as decoded tokens are, in the ring: their last `window + decode_room`.

    Attributes:
      geometry: of the layer.
      cap: chosen tokens of a KV head, mean over the model, at least `sinks`.
      window, scorer, decode_room, sinks, needs: as for `SelectedLayer`.
    """

    joint: ClassVar[bool] = True

    geometry: Geometry
    cap: int
    window: int
    scorer: Scorer
    decode_room: int
    sinks: int = 0
    needs: tuple[str, ...] = ()

    @property
    def block(self) -> int:
        """C: small where a budget is small, as every head leaves part of a block unused."""
        return 8 if self.cap < 256 else 16

    @property
    def recent(self) -> int:
        """Tokens that the ring keeps."""
        return self.window + self.decode_room

    def total(self, layers: int) -> int:
        """Tokens to choose of a model with so many layers of this kind."""
        return layers * self.geometry.num_kv_heads * self.cap

    def pool(self, layers: int) -> Pool:
        """An empty pool for a model with so many layers of this kind."""
        g, heads = self.geometry, layers * self.geometry.num_kv_heads
        blocks = -(-(self.total(layers) + heads * (self.block - 1)) // self.block)
        return empty_pool(g.batch_size, g.num_kv_heads, blocks, self.block, g.head_dim, g.dtype)

    def init(self) -> Shared:
        """An empty cache, beside the pool."""
        g = self.geometry
        ring = empty(g.batch_size, g.num_kv_heads, self.recent + 1, g.head_dim, g.dtype)
        none = jnp.zeros((g.batch_size, g.num_kv_heads + 1), jnp.int32)
        return Shared(ring, none, none[:, 1:])

    def step(self, cache: Shared, chunk: Chunk) -> tuple[Shared, Queries]:
        """Writes the token into the ring, over the oldest if it is full, then attends to both."""
        at, rope = chunk.positions(cache.ring), chunk.rope
        q, k = chunk.rotated(at)
        ring = append(cache.ring, k, chunk.v, at, at % (self.recent + 1))
        seen = merge(
            attend_one(q, ring.k, ring.v, at, ring.pos, rope),
            self._attend_pool(cache, q, at, rope),
        )
        out, _ = chunk.with_sink(*seen)
        return dataclasses.replace(cache, ring=ring), out

    def open(self, cache: Shared, count: int) -> SharedDraft:
        """See `WholePrompt`."""
        ring, heads = cache.ring, self.geometry.num_kv_heads
        pos = jnp.broadcast_to(ring.pos, (ring.pos.shape[0], heads, ring.slots))
        parts = [dataclasses.replace(ring, pos=pos)]
        draft = drafts.open_draft(parts, count, self.geometry, self.needs, self.window)
        return SharedDraft(draft, cache)

    def provide(
        self, draft: SharedDraft, like: Hidden | None, constants: Constants | None
    ) -> SharedDraft:
        """See `WholePrompt`."""
        inner = drafts.provide(draft.draft, self.needs, like, constants)
        return dataclasses.replace(draft, draft=inner)

    def feed(
        self, draft: SharedDraft, start: Array, count: int, chunk: Chunk
    ) -> tuple[SharedDraft, Queries]:
        """See `WholePrompt`."""
        at = chunk.positions(draft.draft.slab)
        inner, out, lse = drafts.feed(draft.draft, start, count, chunk)
        q, _ = chunk.rotated(at)
        out, _ = merge((out, lse), self._attend_pool(draft.kept, q, at, chunk.rope))
        out = drafts.nan_at_the_start(inner, self.needs, out)
        return dataclasses.replace(draft, draft=inner), out

    def close(self, draft: SharedDraft, cache: Shared, rope: Rotation | None) -> Candidates:
        """What may be chosen; the ring takes what is kept anyhow."""
        del cache  # the draft has it
        return self._candidates(draft.draft, draft.kept, rope)

    def looks_at(self) -> tuple[tuple[str, ...], int]:
        """What its scorer asks for, and the queries of the window."""
        return self.needs, self.window

    def from_full(
        self, empty: Shared, kept: Any, rope: Rotation | None, constants: Constants | None
    ) -> Candidates:
        """See `FromFull`; what is chosen, all layers decide."""
        draft = drafts.of_full(kept, self.geometry, None, self.needs, self.window, constants)
        return self._candidates(draft, empty, rope)

    def facts(self) -> Facts:
        """As many on average; a head may have more and another less."""
        keeps = (self.cap + self.recent,) * self.geometry.num_kv_heads
        return Facts(keeps, couples_heads=True, later=self.recent)

    def _candidates(self, draft: Draft, kept: Shared, rope: Rotation | None) -> Candidates:
        slab, fresh = draft.slab, draft.fed & (draft.began == 0)
        if drafts.unrepeated(draft, self.needs):
            scores, fresh = jnp.full(slab.pos.shape, -jnp.inf, jnp.float32), fresh & False
        else:
            prompt = Prompt(draft, rope, self.window, self.needs)
            scores, _ = sinks_first(scores_of(self.scorer, prompt), prompt, self.sinks)
        # Of a first prompt what is not in the window may be chosen, and is in no ring.
        new = drafts.arrived(draft, self.recent)
        late = new.pos >= (new.seen - self.window)[:, None, None]
        pos = jnp.where(late | jnp.logical_not(fresh)[:, None, None], new.pos, -1)
        new = dataclasses.replace(new, pos=pos)
        ring = append_slots(kept.ring, new, pos[:, 0] % (self.recent + 1))
        return Candidates(slab, scores, fresh, Shared(ring, kept.begins, kept.counts))

    def _attend_pool(self, cache: Shared, q: Queries, at: Array, rope: Rotation | None):
        if cache.pool is None:
            raise InputError(
                "allocation 'global' is over all layers of a model; a layer alone has no pool"
            )
        pool, heads = cache.pool, self.geometry.num_kv_heads
        return attend_pool(
            q, pool.k, pool.v, at, pool.pos, pool.owner, heads, rope, span=cache.span
        )
