# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Prefill attention in blocks of slots with an online softmax: no T x S matrix, no repeated head.

How many blocks are visited is traced, so one compiled program serves every fill of a cache and
pays only for the slots in use.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.precision import einsum
from pallas_kernels.visibility import visible

BLOCK = 512  # slots a block: large enough for the matrix unit, small enough to stay in cache
UNROLLED = 8  # matrices in a batch up to which a CPU takes them one by one

Running = tuple[Array, Array, Array]  # output so far [.., R, H]; top score and total [.., R, 1]


def prefill_attention(
    q: Array, k: Array, v: Array, q_pos: Array, k_pos: Array,
    *, scale: float, window: int | None, sinks: int, num_slots: Array | None,
) -> tuple[Array, Array]:  # fmt: skip
    """See `api.prefill_attention`."""
    b, t, n, h = q.shape
    heads, slots = k.shape[1], k.shape[2]
    group = n // heads
    # [B, K, T G, H]: the G query heads of a KV head are more rows of the same product.
    rows = (q * jnp.asarray(scale, q.dtype)).reshape(b, t, heads, group, h).swapaxes(1, 2)
    rows = rows.reshape(b, heads, t * group, h).astype(k.dtype)
    used = jnp.int32(slots) if num_slots is None else jnp.minimum(num_slots, slots)
    batched = functools.partial(_visit_blocks, window=window, sinks=sinks, split=False)
    split = functools.partial(_visit_blocks, window=window, sinks=sinks, split=True)
    args = rows, k, v, q_pos, k_pos, used
    if b * heads <= UNROLLED:
        out, top, total = lax.platform_dependent(*args, cpu=split, default=batched)
    else:
        out, top, total = batched(*args)
    out = out / jnp.where(total == 0, 1.0, total)
    lse = jnp.log(total) + jnp.where(jnp.isneginf(top), 0.0, top)
    out = out.reshape(b, heads, t, group, h).swapaxes(1, 2).reshape(b, t, n, h)
    lse = lse.reshape(b, heads, t, group).swapaxes(1, 2).reshape(b, t, n)
    return out.astype(q.dtype), lse


def _visit_blocks(
    rows: Array, k: Array, v: Array, q_pos: Array, k_pos: Array, used: Array,
    *, window: int | None, sinks: int, split: bool,
) -> Running:  # fmt: skip
    """Folds block after block into the running result, [B, K, T G, ..].

    `split` takes the B K matrices one by one: XLA's CPU backend runs a plain product faster than
    a batch of them, and the scores of one head stay in the processor's cache.
    """
    b, heads, count, h = rows.shape
    t, slots = q_pos.shape[1], k.shape[2]
    block = min(BLOCK, slots)

    def visit(index: Array, running: list[Running]) -> list[Running]:
        # The last block starts early enough to be whole, and hides the slots already seen.
        start = jnp.minimum(index * block, slots - block)
        keys, values, at = (lax.dynamic_slice_in_dim(x, start, block, 2) for x in (k, v, k_pos))
        fresh = start + jnp.arange(block) >= index * block
        at = jnp.where(fresh[None, None], at, -1)
        seen = visible(q_pos[:, None, :, None], at[:, :, None, :], sinks, window)
        p = seen.shape[1]
        seen = jnp.broadcast_to(seen[:, :, :, None], (b, p, t, count // t, block))
        seen = seen.reshape(b, p, count, block)
        if not split:
            return [_fold(running[0], rows, keys, values, seen)]
        return [
            _fold(running[i * heads + j], rows[i, j], keys[i, j], values[i, j], seen[i, j % p])
            for i in range(b)
            for j in range(heads)
        ]

    lead = () if split else (b, heads)
    empty = (
        jnp.zeros((*lead, count, h), jnp.float32),
        jnp.full((*lead, count, 1), -jnp.inf),
        jnp.zeros((*lead, count, 1), jnp.float32),
    )
    running = [empty] * (b * heads if split else 1)
    running = jax.lax.fori_loop(0, (used + block - 1) // block, visit, running)
    if not split:
        return running[0]
    out, top, total = (
        jnp.stack(parts).reshape(b, heads, count, -1) for parts in zip(*running, strict=True)
    )
    return out, top, total


def _fold(running: Running, rows: Array, keys: Array, values: Array, seen: Array) -> Running:
    """One step of the online softmax: [.., R, H] rows over [.., S, H] keys."""
    out, top, total = running
    scores = jnp.where(seen, einsum("...rh,...sh->...rs", rows, keys), -jnp.inf)
    new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
    safe = jnp.where(jnp.isneginf(new_top), 0.0, new_top)
    weights = jnp.exp(scores - safe)
    decay = jnp.exp(top - safe)
    total = total * decay + jnp.sum(weights, axis=-1, keepdims=True)
    out = out * decay + einsum("...rs,...sh->...rh", weights.astype(values.dtype), values)
    return out, new_top, total
