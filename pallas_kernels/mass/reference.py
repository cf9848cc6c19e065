# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What attention mass is, in one matrix. It takes T x S memory: to be read, and for tests."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from pallas_kernels.precision import einsum
from pallas_kernels.score_bias import bend
from pallas_kernels.slots import Slots, scaled
from pallas_kernels.visibility import visible


def attention_mass(
    q: Array, lse: Array, k: Slots, q_pos: Array, k_pos: Array,
    *, scale: float, num_slots: Array | None,
    slopes: Array | None = None, soft_cap: float | None = None,
) -> Array:  # fmt: skip
    """See `api.attention_mass`."""
    k = scaled(k)
    b, t, n, h = q.shape
    heads, slots = k.shape[1], k.shape[2]
    rows = q.reshape(b, t, heads, n // heads, h).astype(k.dtype)
    scores = einsum("btkgh,bksh->bkgts", rows, k) * scale
    distance = q_pos[:, None, :, None] - k_pos[:, :, None, :]
    steep = None if slopes is None else slopes.reshape(1, heads, -1, 1, 1)
    scores = bend(scores, distance[:, :, None], steep, soft_cap)
    seen = visible(q_pos[:, None, :, None], k_pos[:, :, None, :], 0, None)
    if num_slots is not None:
        seen &= jnp.arange(slots, dtype=jnp.int32)[None, None, None] < num_slots
    lse = jnp.moveaxis(lse.reshape(b, t, heads, n // heads), 1, 3)
    weights = jnp.where(seen[:, :, None], jnp.exp(scores - lse[..., None]), 0.0)
    return jnp.sum(weights, axis=3).reshape(b, n, slots)
