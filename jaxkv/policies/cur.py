# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokens whose keys and values are longer than those around them."""

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
class CUR(ScoredPolicy):
    """CurDKV (arXiv 2509.15038) with local leverages: |k|^2 |v|^2, each over its neighbours' mean.

    What a head holds is cut by position into runs of `local` tokens; scores are shares of the sum
    of a head. Beside kvpress: a last run that is shorter is measured by its mean too, where a sum
    over fewer tokens makes each of them look larger.

    Attributes:
      budget, sinks, decode_room, allocation, table, floor: as for `ScoredPolicy`.
      window: as for `ScoredPolicy`; by the paper none, here the last token.
      local: tokens of a run.
    """

    agnostic = True

    window: int = 1
    local: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local < 1:
            raise InputError(f"local is {self.local}; it must be at least 1")

    def score(self, prompt: Prompt) -> Array:
        """[B, K, S]: of the tokens that a head holds, these sum to 1."""
        order, place = prompt.order()
        there = prompt.positions >= 0

        def leverage(x: Array) -> Array:
            norms = jnp.where(there, jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1), 0)
            means = self._sums(norms, order) / jnp.maximum(
                self._sums(there.astype(jnp.float32), order), 1
            )
            mine = jnp.take_along_axis(means, place // self.local, axis=-1)
            return norms / jnp.where(mine > 0, mine, 1)

        scores = leverage(prompt.keys) * leverage(prompt.values)
        total = jnp.sum(scores, axis=-1, keepdims=True)
        return scores / jnp.where(total > 0, total, 1)

    def _sums(self, x: Array, order: Array) -> Array:
        """Of the runs, [B, K, S] -> [B, K, R]."""
        x = jnp.take_along_axis(x, order, axis=-1)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[-1] % self.local)))
        return jnp.sum(x.reshape(*x.shape[:2], -1, self.local), axis=-1)
