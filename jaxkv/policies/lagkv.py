# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokens whose keys and values are unlike those that come after them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.core.errors import InputError
from jaxkv.layers.prompt import Prompt
from jaxkv.policies.scored import ScoredPolicy


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class LagKV(ScoredPolicy):
    """LagKV (arXiv 2504.04704): as many tokens of each `lag`, and all of the last ones.

    After the sinks, what a head holds is cut by position into partitions of `lag` tokens. A token
    is measured by the ranges of the next partition's channels; the more its own channels then
    scatter, the better its rank within its partition. The last whole partition and what follows it
    have no next one and come first, the newest before all.

    Beside kvpress: a channel that is constant in the next partition counts as zero, where that
    divides by zero; and where the budget is smaller than what comes first, the newest of it are
    kept, where that leaves it to how equal scores are sorted.

    Attributes:
      budget, sinks, decode_room, allocation, table: as for `ScoredPolicy`.
      window: as for `ScoredPolicy`; by the paper none of its own.
      lag: tokens of a partition.
    """

    agnostic = True

    allocations = ("uniform", "table")  # ranks, the same in every head

    window: int = 1
    lag: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lag < 1:
            raise InputError(f"lag is {self.lag}; it must be at least 1")

    def score(self, prompt: Prompt) -> Array:
        """[B, K, S]: a rank in [0, 1), or from 1 on what comes first."""
        order, place = prompt.order()
        held = jnp.sum(prompt.positions >= 0, axis=-1, dtype=jnp.int32)[..., None]
        first = 1.0 + place.astype(jnp.float32)
        slots = place.shape[-1]
        parts = (slots - self.sinks) // self.lag
        if parts < 2:
            return first
        spread = self._spread(prompt.keys, order, parts) + self._spread(prompt.values, order, parts)
        ranks = jnp.argsort(jnp.argsort(spread, axis=-1), axis=-1).astype(jnp.float32) / self.lag
        ranks = ranks.reshape(*ranks.shape[:2], -1)
        after = slots - self.sinks - ranks.shape[-1]
        ranks = jnp.pad(ranks, ((0, 0), (0, 0), (self.sinks, after)))
        ranks = jnp.take_along_axis(ranks, place, axis=-1)
        end = held - (held - self.sinks) % self.lag - self.lag
        return jnp.where((place >= self.sinks) & (place < end), ranks, first)

    def _spread(self, x: Array, order: Array, parts: int) -> Array:
        """Of the tokens of all partitions but the last, a share of each: [B, K, P - 1, lag]."""
        x = jnp.take_along_axis(x, order[..., None], axis=2).astype(jnp.float32)
        b, heads, _, dim = x.shape
        x = x[:, :, self.sinks : self.sinks + parts * self.lag]
        x = x.reshape(b, heads, parts, self.lag, dim)
        low, high = (f(x[:, :, 1:], axis=3, keepdims=True) for f in (jnp.min, jnp.max))
        span = high - low
        scaled = jnp.where(span > 0, (x[:, :, :-1] - low) / jnp.where(span > 0, span, 1), 0)
        return jax.nn.softmax(jnp.std(scaled, axis=-1, ddof=1), axis=-1)
