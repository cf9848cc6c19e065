# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The tokens of a prompt that its last queries looked at, as many in every head."""

from __future__ import annotations

import dataclasses

import jax
from jax import Array

from jaxkv.core.errors import InputError
from jaxkv.layers.base import Geometry
from jaxkv.layers.prompt import Prompt
from jaxkv.layers.scores import pooled_scores
from jaxkv.policies.budgets import pyramid
from jaxkv.policies.scored import ScoredPolicy


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class SnapKV(ScoredPolicy):
    """SnapKV (arXiv 2404.14469), per KV head.

    A token's score is the attention of the prompt's last `window` queries, max-pooled over its
    neighbours. The reference code keeps tokens per query head, which takes as many times the memory
    as query heads share a KV head, and never evicts while decoding; `decode_room` bounds memory.

    Attributes:
      budget, sinks, window, decode_room, allocation, table, floor: as for `ScoredPolicy`.
      kernel: neighbours over which scores are max-pooled, odd.
    """

    needs = ("mass",)

    sinks: int = 0
    window: int = 32
    kernel: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise InputError(f"kernel is {self.kernel}; it must be odd and at least 1")

    def score(self, prompt: Prompt) -> Array:
        """See `pooled_scores`."""
        return pooled_scores(prompt.mass(), prompt.positions, prompt.valid, self.kernel)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class PyramidKV(SnapKV):
    """PyramidKV (arXiv 2406.02069): as `SnapKV`, but lower layers keep more than higher ones.

    Budgets fall linearly with depth and sum to `budget` a layer; the reference code's sum is above
    it, by 4 % at 128 tokens.

    Attributes:
      budget, sinks, window, decode_room, kernel: as for `SnapKV`.
      allocation: "own" is by depth; or as for `ScoredPolicy`.
      beta: steepness: the last layer chooses a `1 / beta` of the mean.
    """

    allocations = ("own", *ScoredPolicy.allocations)

    window: int = 8
    allocation: str = "own"
    beta: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 1:
            raise InputError(f"beta is {self.beta}; it must be at least 1")
        self.only_with("own", "beta")

    def own_caps(self, layer: int, geometry: Geometry) -> tuple[int, ...]:
        """Less with every layer, the sinks beside it."""
        ruled, sinks = geometry.ruled, self.sinks
        budget, longest = self.budget_tokens(geometry) - sinks, geometry.max_length - sinks
        caps = pyramid(budget, self.window, self.beta, len(ruled), longest)
        return (sinks + caps[ruled.index(layer)],) * geometry.num_kv_heads
