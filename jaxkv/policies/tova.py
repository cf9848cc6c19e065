# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Drops the token that the newest query attends to least, one and the same in all heads."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.attention import attend_one_mass
from jaxkv.cache.slab import Slab, append, empty
from jaxkv.errors import InputError
from jaxkv.policies import draft as drafts
from jaxkv.policies.base import Chunk, Constants, Facts, FromFull, Geometry, WholePrompt, swept
from jaxkv.policies.budgets import in_tokens
from jaxkv.policies.draft import Draft
from jaxkv.policies.packing import gathered, keep_best
from jaxkv.policies.ring import within_windows
from jaxkv.typing import Queries, Rotation


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TOVA:
    """TOVA (arXiv 2401.06104): no window, no sinks, only the newest query's attention.

    The mean over all query heads of a layer decides, so all KV heads keep the same tokens. The
    newest token competes too. The prompt is read with full attention and reduced once, by its last
    query; then every step replaces one slot in place.

    Attributes:
      budget: tokens that are kept; as a float, a share of `max_length`.

    Memory: `budget` tokens per KV head, and one slot for the newest token.
    """

    budget: int | float = swept(1024)

    def __post_init__(self) -> None:
        if not (self.budget >= 1 if isinstance(self.budget, int) else 0 < self.budget <= 1):
            raise InputError(
                f"budget is {self.budget}; it must be at least 1 token, or a share up to 1.0"
            )

    @within_windows
    def at(self, layer: int, geometry: Geometry) -> TOVALayer:
        """The same for every layer."""
        del layer
        return TOVALayer(geometry, max(in_tokens(self.budget, geometry.max_length), 1))


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
        out, mass = attend_one_mass(q, slab.k, slab.v, at, slab.pos, chunk.rope)
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

    @property
    def last_queries(self) -> int:
        """The last."""
        return 1

    def from_full(
        self, empty: Slab, kept: Any, rope: Rotation | None, constants: Constants | None
    ) -> Slab:
        """See `FromFull`."""
        draft = drafts.of_full(kept, self.geometry, None, self.needs, 1, constants)
        return self.close(draft, empty, rope)

    def facts(self) -> Facts:
        """The budget; all heads choose together."""
        return Facts((self.budget,) * self.geometry.num_kv_heads, couples_heads=True)
