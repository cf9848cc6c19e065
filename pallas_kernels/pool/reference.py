# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What pool attention is: every head looks at every block, and is let see its own."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from pallas_kernels.bend import bend
from pallas_kernels.precision import einsum
from pallas_kernels.visibility import visible


def pool_attention(
    q: Array, k: Array, v: Array, q_pos: Array, k_pos: Array, owner: Array,
    *, num_kv_heads: int, scale: float,
    slopes: Array | None = None, soft_cap: float | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """See `api.pool_attention`."""
    scores = einsum("bnh,bmch->bnmc", q.astype(k.dtype), k) * scale
    distance = (q_pos[:, None, None] - k_pos)[:, None]
    steep = None if slopes is None else slopes[None, :, None, None]
    scores = bend(scores, distance, steep, soft_cap)
    mine = owner[:, None] == (jnp.arange(q.shape[1]) * num_kv_heads // q.shape[1])[None, :, None]
    seen = mine[..., None] & visible(q_pos[:, None, None], k_pos, 0, None)[:, None]
    scores = jnp.where(seen, scores, -jnp.inf)
    top = jnp.max(scores, axis=(2, 3), keepdims=True)
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=(2, 3))
    out = einsum("bnmc,bmch->bnh", weights.astype(v.dtype), v)
    out = out / jnp.where(total == 0, 1.0, total)[..., None]
    return out.astype(q.dtype), jnp.log(total) + top[:, :, 0, 0]
