# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokens with short keys."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.layers.prompt import Prompt
from jaxkv.policies.scored import ScoredPolicy


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class KNorm(ScoredPolicy):
    """The L2 norm of keys (arXiv 2406.11430): the shorter a key, the more attention it draws.

    Norms cannot be compared from head to head. The paper leaves the first two layers as they are;
    here, as in kvpress, every layer chooses.

    Attributes:
      budget, decode_room, allocation, table: as for `ScoredPolicy`.
      sinks, window: as for `ScoredPolicy`; by the paper none, here the last token.
    """

    agnostic = True

    allocations = ("uniform", "table")

    sinks: int = 0
    window: int = 1

    def score(self, prompt: Prompt) -> Array:
        """[B, K, S]: minus the norm."""
        return -jnp.linalg.norm(prompt.keys.astype(jnp.float32), axis=-1)
