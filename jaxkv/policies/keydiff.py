# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokens with keys unlike those of the others."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.layers.prompt import Prompt
from jaxkv.policies.scored import ScoredPolicy
from pallas_kernels.precision import einsum


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyDiff(ScoredPolicy):
    """KeyDiff (arXiv 2504.15364): keys far from the mean direction of a head's keys are kept.

    Minus the cosine, in float32 whatever keys are held in: cosines near 1 are all the same in
    bfloat16.

    Attributes:
      budget, decode_room, allocation, table, floor: as for `ScoredPolicy`.
      sinks, window: as for `ScoredPolicy`; by the paper none, here the last token.
    """

    agnostic = True

    sinks: int = 0
    window: int = 1

    def score(self, prompt: Prompt) -> Array:
        """[B, K, S], in [-1, 1]."""
        unit = _unit(prompt.keys.astype(jnp.float32))
        return -einsum("bksh,bkh->bks", unit, _unit(prompt.mean(unit)))


def _unit(x: Array) -> Array:
    """Vectors of the last axis with length 1; zero stays zero."""
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(length > 0, length, 1)
