# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What some models do to a score before the softmax: a soft cap, a bias by the distance."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def bend(scores: Array, distance: Array, slopes: Array | None, soft_cap: float | None) -> Array:
    """Soft-caps scores (Gemma 2, arXiv 2408.00118, section 2), then biases them (ALiBi).

    ALiBi (arXiv 2108.12409, section 3) takes slope times distance from a score.

    Args:
      scores: float32.
      distance: int32, tokens from the key to the query; broadcastable.
      slopes: float32, of the query heads; broadcastable. None is no bias.
      soft_cap: scores s become cap tanh(s / cap); None leaves them.
    """
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if slopes is not None:
        scores = scores - slopes * distance.astype(jnp.float32)
    return scores
