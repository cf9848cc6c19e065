# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Prefill attention in blocks of slots with an online softmax: no T x S matrix, no repeated head.

How many blocks are visited is traced, so one compiled program serves every fill of a cache and
pays only for the slots in use.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.precision import einsum
from pallas_kernels.visibility import visible

BLOCK = 512  # slots a block: large enough for the matrix unit, small enough to stay in cache


def prefill_attention(
    q: Array, k: Array, v: Array, q_pos: Array, k_pos: Array,
    *, scale: float, window: int | None, sinks: int, num_slots: Array | None,
) -> tuple[Array, Array]:  # fmt: skip
    """See `api.prefill_attention`."""
    b, t, n, h = q.shape
    heads, slots = k.shape[1], k.shape[2]
    group = n // heads
    block = min(BLOCK, slots)
    # [B, K, T G, H]: the G query heads of a KV head are more rows of the same product.
    rows = (q * jnp.asarray(scale, q.dtype)).reshape(b, t, heads, group, h).swapaxes(1, 2)
    rows = rows.reshape(b, heads, t * group, h).astype(k.dtype)

    def visit(index, carry):
        out, top, total = carry
        # The last block starts early enough to be whole, and hides the slots already seen.
        start = jnp.minimum(index * block, slots - block)
        keys = lax.dynamic_slice_in_dim(k, start, block, axis=2)
        values = lax.dynamic_slice_in_dim(v, start, block, axis=2)
        at = lax.dynamic_slice_in_dim(k_pos, start, block, axis=2)
        fresh = start + jnp.arange(block) >= index * block
        at = jnp.where(fresh[None, None], at, -1)
        seen = visible(q_pos[:, None, :, None], at[:, :, None, :], sinks, window)
        seen = jnp.broadcast_to(seen[:, :, :, None], (b, seen.shape[1], t, group, block))
        seen = seen.reshape(b, seen.shape[1], t * group, block)
        scores = jnp.where(seen, einsum("bkrh,bksh->bkrs", rows, keys), -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        safe = jnp.where(jnp.isneginf(new_top), 0.0, new_top)
        weights = jnp.exp(scores - safe)
        decay = jnp.exp(top - safe)
        total = total * decay + jnp.sum(weights, axis=-1, keepdims=True)
        out = out * decay + einsum("bkrs,bksh->bkrh", weights.astype(v.dtype), values)
        return out, new_top, total

    state = (
        jnp.zeros((b, heads, t * group, h), jnp.float32),
        jnp.full((b, heads, t * group, 1), -jnp.inf),
        jnp.zeros((b, heads, t * group, 1), jnp.float32),
    )
    used = slots if num_slots is None else jnp.minimum(num_slots, slots)
    blocks = (used + block - 1) // block
    if isinstance(blocks, int) and blocks == 1:
        out, top, total = visit(0, state)
    else:
        out, top, total = jax.lax.fori_loop(0, blocks, visit, state)
    out = out / jnp.where(total == 0, 1.0, total)
    lse = jnp.log(total) + jnp.where(jnp.isneginf(top), 0.0, top)
    out = out.reshape(b, heads, t, group, h).swapaxes(1, 2).reshape(b, t, n, h)
    lse = lse.reshape(b, heads, t, group).swapaxes(1, 2).reshape(b, t, n)
    return out.astype(q.dtype), lse
