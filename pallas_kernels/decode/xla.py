# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Decode attention as XLA runs it well: two batched products, one softmax over the slots."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels import compiler
from pallas_kernels.precision import einsum
from pallas_kernels.score_bias import bend
from pallas_kernels.slots import Slots, is_packed, numbers, product_dtype, split_scale
from pallas_kernels.softmax import Partial, merge
from pallas_kernels.visibility import visible

BLOCK = 512  # slots of integers that are made wide at a time


def decode_attention(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array,
    *, scale: float, window: int | None, sinks: int, q_sink: Array | None, with_mass: bool,
    slopes: Array | None = None, soft_cap: float | None = None,
) -> tuple[Array, ...]:  # fmt: skip
    """See `api.decode_attention`."""
    case = {
        "scale": scale, "window": window, "sinks": sinks, "with_mass": with_mass,
        "slopes": slopes, "soft_cap": soft_cap,
    }  # fmt: skip
    if is_packed(k) and k_pos.shape[2] > BLOCK >= sinks:
        return _by_blocks(q, k, v, q_pos, k_pos, q_sink, case)
    return _at_once(q, k, v, q_pos, k_pos, q_sink, **case)


def _by_blocks(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array, q_sink: Array | None,
    case: dict[str, Any],
) -> tuple[Array, ...]:  # fmt: skip
    """A block of slots after another: XLA would make wide numbers of a whole slab first."""
    slots, blocks = k_pos.shape[2], -(-k_pos.shape[2] // BLOCK)
    b, n, _ = q.shape

    def block(index: int | Array, q_sink: Array | None) -> tuple[Array, ...]:
        # The last block starts early enough to be whole, and hides the slots already seen.
        start = jnp.minimum(jnp.int32(index * BLOCK), slots - BLOCK)
        keys, values, at = jax.tree.map(
            lambda x: lax.dynamic_slice_in_dim(x, start, BLOCK, 2), (k, v, k_pos)
        )
        fresh = start + jnp.arange(BLOCK, dtype=jnp.int32) >= index * BLOCK
        at = jnp.where(fresh, at, -1)
        return start, fresh, *_at_once(q, keys, values, q_pos, at, q_sink, **case)

    def keep(index: int | Array, found: tuple[Array, ...], held: tuple[Array, ...]):
        """The weights of a block's slots among themselves, and its lse."""
        if not held:
            return held
        (start, fresh, _, lse, mine), (weights, levels) = found, held
        old = lax.dynamic_slice_in_dim(weights, start, BLOCK, 2)
        weights = lax.dynamic_update_slice_in_dim(weights, jnp.where(fresh, mine, old), start, 2)
        at = jnp.int32(0), jnp.int32(0), jnp.int32(index)
        return weights, lax.dynamic_update_slice(levels, lse[..., None], at)

    def more(index: Array, carry: tuple[Partial, tuple[Array, ...]]):
        found = block(index, None)
        return merge(carry[0], (found[2], found[3])), keep(index, found, carry[1])

    held: tuple[Array, ...] = ()
    if case["with_mass"]:
        held = jnp.zeros((b, n, slots), jnp.float32), jnp.zeros((b, n, blocks), jnp.float32)
    first = block(0, q_sink)  # which has the sinks
    begun = (first[2].astype(jnp.float32), first[3]), keep(0, first, held)
    (out, lse), held = lax.fori_loop(jnp.int32(1), jnp.int32(blocks), more, begun)
    if not held:
        return out.astype(q.dtype), lse
    weights, levels = held
    share = jnp.exp(levels - jnp.where(jnp.isneginf(lse), 0.0, lse)[..., None])
    return out.astype(q.dtype), lse, weights * jnp.repeat(share, BLOCK, axis=2)[..., :slots]


def _at_once(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array, q_sink: Array | None,
    *, scale: float, window: int | None, sinks: int, with_mass: bool,
    slopes: Array | None, soft_cap: float | None,
) -> tuple[Array, ...]:  # fmt: skip
    k_scale, v_scale = split_scale(k)[1], split_scale(v)[1]
    b, n, h = q.shape
    k, v = (numbers(x, product_dtype(x, q)) for x in (k, v))
    heads = k.shape[1]

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
