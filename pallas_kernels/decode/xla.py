# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Decode attention as XLA runs it well: two batched products, one softmax over the slots."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from pallas_kernels import compiler
from pallas_kernels.int8 import Slots, product_dtype, split_scale
from pallas_kernels.precision import einsum
from pallas_kernels.score_bias import bend
from pallas_kernels.visibility import visible


def decode_attention(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array,
    *, scale: float, window: int | None, sinks: int, q_sink: Array | None, with_mass: bool,
    slopes: Array | None = None, soft_cap: float | None = None,
) -> tuple[Array, ...]:  # fmt: skip
    """See `api.decode_attention`."""
    (k, k_scale), (v, v_scale) = split_scale(k), split_scale(v)
    b, n, h = q.shape
    heads = k.shape[1]
    k, v = (x.astype(product_dtype(x, q)) for x in (k, v))

    def grouped(x: Array) -> Array:
        # Scaling the query costs H products where scaling the scores costs S.
        return (x * jnp.asarray(scale, x.dtype)).reshape(b, heads, n // heads, h).astype(k.dtype)

    scores = einsum("bkgh,bksh->bkgs", grouped(q), k)
    if q_sink is not None and sinks:
        # A slice of a few slots is cheap; a slice of the rest would copy the cache.
        first = einsum("bkgh,bksh->bkgs", grouped(q_sink), k[:, :, :sinks])
        scores = scores.at[..., :sinks].set(first)
    if k_scale is not None:
        scores = scores * k_scale[:, :, None]
    if slopes is not None or soft_cap is not None:
        distance = q_pos[:, None, None] - k_pos
        if q_sink is not None and window is not None:
            near = jnp.minimum(q_pos, sinks + window)[:, None, None] - k_pos
            distance = jnp.where(jnp.arange(k.shape[2], dtype=jnp.int32) < sinks, near, distance)
        steep = None if slopes is None else slopes.reshape(1, heads, -1, 1)
        scores = bend(scores, distance[:, :, None], steep, soft_cap)
    seen = visible(q_pos[:, None, None], k_pos, sinks, window)[:, :, None]
    scores = jnp.where(seen, scores, -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True)
    top = jnp.where(jnp.isneginf(top), 0.0, top)  # a row that sees nothing
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    shares = weights if v_scale is None else weights * v_scale[:, :, None]
    out = compiler.by_slot(shares.astype(v.dtype), v)
    divisor = jnp.where(total == 0, 1.0, total)
    out = (out / divisor).reshape(b, n, h).astype(q.dtype)
    lse = (jnp.log(total) + top).reshape(b, n)
    if not with_mass:
        return out, lse
    return out, lse, (weights / divisor).reshape(b, n, -1)
