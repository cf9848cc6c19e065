# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The attention that queries to come are expected to pay, from the queries that were."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.core.errors import InputError
from jaxkv.layers.prompt import Prompt
from jaxkv.policies.scored import ScoredPolicy
from pallas_kernels.precision import einsum


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedAttention(ScoredPolicy):
    """Expected Attention (arXiv 2510.00636): no question is known, and none is asked.

    Future queries of a head are taken to be normal, with the mean m and the covariance C of the
    prompt's before they are rotated. With R the mean rotation over the next `future` positions, a
    key k is expected to get `exp(m R^T k / sqrt(H) + k^T R C R^T k / 2 H)`; over all keys but the
    sinks' these sum to 1. A token's score is its share, mean over the query heads of a KV head,
    plus `epsilon`, times the length of its value. Soft caps of scores are not looked at.

    Budgets that are the same in every head lose most of what this method can do (`allocation`).

    Attributes:
      budget, sinks, window, decode_room, allocation, table, floor: as for `ScoredPolicy`.
      future: positions over which the rotation is averaged.
      epsilon: added to the share of each token, so that a head of few high ones does not get all.
    """

    needs = ("moments",)
    agnostic = True

    allocation: str = "ada"
    future: int = 512
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.future <= 2**16:
            raise InputError(f"future is {self.future}; it must be from 1 to {2**16}")
        if not self.epsilon >= 0:
            raise InputError(f"epsilon is {self.epsilon}; it must be at least 0")

    def score(self, prompt: Prompt) -> Array:
        """Sections 3.2 and 3.3 of the paper; keys are turned back, where it turns the queries."""
        k = prompt.keys.astype(jnp.float32)
        batch, heads, slots, dim = k.shape
        back = einsum("bksh,bih->bksi", k, prompt.rotation(self.future))
        mean = prompt.query_mean().reshape(batch, heads, -1, dim)
        spread = prompt.query_covariance().reshape(batch, heads, -1, dim, dim)
        score = einsum("bkgh,bksh->bkgs", mean, back) / dim**0.5
        turned = einsum("bkghi,bksi->bkgsh", spread, back)
        score = score + jnp.sum(turned * back[:, :, None], axis=-1) / (2 * dim)
        if (slopes := prompt.slopes()) is not None:
            slopes = slopes.reshape(1, heads, -1, 1)
            score = score + slopes * prompt.positions[:, :, None].astype(jnp.float32)
        others = (prompt.positions >= self.sinks)[:, :, None]
        share = jax.nn.softmax(jnp.where(others, score, -jnp.inf), axis=-1)
        length = jnp.linalg.norm(prompt.values.astype(jnp.float32), axis=-1)
        return (jnp.mean(share, axis=2) + self.epsilon) * length
