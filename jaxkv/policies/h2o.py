# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Heavy hitters: the tokens that have drawn most attention so far, and the newest."""

from __future__ import annotations

import dataclasses

import jax

from jaxkv.core.errors import InputError
from jaxkv.layers.base import Geometry
from jaxkv.layers.declared import swept
from jaxkv.layers.evicting import H2OLayer
from jaxkv.layers.ring import within_windows
from jaxkv.policies.budgets import in_tokens


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
