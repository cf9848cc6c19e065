# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What pool attention is: every head looks at every block, and is let see its own."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from pallas_kernels.pool.spans import Span, within
from pallas_kernels.precision import einsum
from pallas_kernels.score_bias import bend
from pallas_kernels.slots import Slots, scaled
from pallas_kernels.visibility import visible


def pool_attention(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array, owner: Array,
    *, num_kv_heads: int, scale: float,
    slopes: Array | None = None, soft_cap: float | None = None, span: Span | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """See `api.pool_attention`."""
    k, v = scaled(k), scaled(v)
    k_pos = within(span, k_pos, owner.shape[1])
    owner = jnp.repeat(owner, k.shape[1] // owner.shape[1], axis=1)
    scores = einsum("bnh,bsh->bns", q.astype(k.dtype), k) * scale
    distance = (q_pos[:, None] - k_pos)[:, None]
    steep = None if slopes is None else slopes[None, :, None]
    scores = bend(scores, distance, steep, soft_cap)
    mine = (
        owner[:, None]
        == (jnp.arange(q.shape[1], dtype=jnp.int32) * num_kv_heads // q.shape[1])[None, :, None]
    )
    seen = mine & visible(q_pos[:, None], k_pos, 0, None)[:, None]
    scores = jnp.where(seen, scores, -jnp.inf)
    top = jnp.max(scores, axis=2, keepdims=True)
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=2)
    out = einsum("bns,bsh->bnh", weights.astype(v.dtype), v)
    out = out / jnp.where(total == 0, 1.0, total)[..., None]
    return out.astype(q.dtype), jnp.log(total) + top[:, :, 0]
