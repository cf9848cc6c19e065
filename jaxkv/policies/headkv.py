# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""More tokens for the heads that retrieve and reason, fewer for the rest."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from jaxkv.core.errors import InputError
from jaxkv.layers.base import Geometry
from jaxkv.layers.declared import swept
from jaxkv.policies.budgets import headkv, of_ruled, redistribute
from jaxkv.policies.head_scores import head_scores
from jaxkv.policies.snapkv import SnapKV


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class HeadKV(SnapKV):
    """HeadKV (arXiv 2410.19258): as `SnapKV`, with a budget for each head from its importance.

    Budgets follow the paper's equation 4 over all heads of the model; a KV head's is the mean of
    those of its query heads, so that the model's stays what was asked for. What a head's budget has
    beyond `max_length`, which no prompt can fill, goes to the other heads.

    Attributes:
      budget, sinks, window, decode_room, kernel: as for `SnapKV`.
      allocation: "own" is by importance; or as for `ScoredPolicy`.
      scores: importance of the heads: HeadKV's JSON, a file of `jaxkv.calibrate headkv`, or None
        for the one that is shipped for the model.
      beta: a `1 / beta` of every budget is dealt out by importance; close to 1 all of it.
    """

    allocations = ("own", *SnapKV.allocations)

    budget: int | float = swept(128)
    _: dataclasses.KW_ONLY
    window: int = 8
    allocation: str = "own"
    scores: str | None = None
    beta: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 1:
            raise InputError(f"beta is {self.beta}; it must be at least 1")
        self.only_with("own", "scores", "beta")

    def own_caps(self, layer: int, geometry: Geometry) -> tuple[int, ...]:
        """By the layer's heads."""
        return tuple(int(cap) for cap in _caps(self, geometry)[layer])


@functools.lru_cache(maxsize=8)
def _caps(policy: HeadKV, geometry: Geometry) -> np.ndarray:
    """Chosen tokens of each KV head, [L, K]."""
    scores = head_scores(policy.scores, geometry)[list(geometry.ruled)]
    scores = scores / max(scores.sum(), np.finfo(np.float64).tiny)
    budget = policy.budget_tokens(geometry) - policy.sinks
    caps = headkv(scores, budget, policy.beta, policy.window)
    of_group = scores.shape[0], geometry.num_kv_heads, -1
    caps = np.round(caps.reshape(of_group).mean(axis=-1)).astype(np.int64)
    longest = max(geometry.max_length - policy.window, 1)
    return of_ruled(redistribute(caps + policy.sinks, longest), geometry)
