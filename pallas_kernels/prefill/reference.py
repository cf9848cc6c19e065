# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What prefill attention is, in one softmax. It takes T x S memory: to be read, and for tests."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from pallas_kernels.precision import einsum
from pallas_kernels.score_bias import bend
from pallas_kernels.slots import Slots, scaled
from pallas_kernels.visibility import visible


def prefill_attention(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array,
    *, scale: float, window: int | None, sinks: int, num_slots: Array | None,
    slopes: Array | None = None, soft_cap: float | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """See `api.prefill_attention`."""
    k, v = scaled(k), scaled(v)
    b, t, n, h = q.shape
    heads = k.shape[1]
    rows = q.reshape(b, t, heads, n // heads, h).astype(k.dtype)
    scores = einsum("btkgh,bksh->bkgts", rows, k) * scale
    distance = q_pos[:, None, :, None] - k_pos[:, :, None, :]
    steep = None if slopes is None else slopes.reshape(1, heads, -1, 1, 1)
    scores = bend(scores, distance[:, :, None], steep, soft_cap)
    seen = visible(q_pos[:, None, :, None], k_pos[:, :, None, :], sinks, window)
    if num_slots is not None:
        seen &= jnp.arange(k.shape[2], dtype=jnp.int32)[None, None, None] < num_slots
    scores = jnp.where(seen[:, :, None], scores, -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True)
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v)
    out = out / jnp.where(total == 0, 1.0, total)
    out = jnp.moveaxis(out, 3, 1).reshape(b, t, n, h).astype(q.dtype)
    lse = jnp.moveaxis((jnp.log(total) + top)[..., 0], 3, 1).reshape(b, t, n)
    return out, lse
