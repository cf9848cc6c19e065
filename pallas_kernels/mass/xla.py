# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention mass in blocks of queries by slots; blocks that no query sees are not computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels import tuned
from pallas_kernels.precision import einsum
from pallas_kernels.score_bias import bend
from pallas_kernels.slots import Slots, numbers, product_dtype, split_scale
from pallas_kernels.visibility import used_positions, visible

BLOCK = 512  # queries, and slots, a block


def attention_mass(
    q: Array, lse: Array, k: Slots, q_pos: Array, k_pos: Array,
    *, scale: float, num_slots: Array | None,
    slopes: Array | None = None, soft_cap: float | None = None, max_block: int | None = None,
) -> Array:  # fmt: skip
    """See `api.attention_mass`; `max_block` is for queries and slots, None what is best."""
    held, k_scale = split_scale(k)
    dtype = product_dtype(k, q)
    b, t, n, h = q.shape
    heads, slots = held.shape[1], held.shape[2]
    group = n // heads
    rows = (q * jnp.asarray(scale, q.dtype)).reshape(b, t, heads, group, h).astype(dtype)
    rows = jnp.moveaxis(rows, 1, 3)  # [B, K, G, T, H]
    # A query that saw no key has lse -inf, and would make exp(score - lse) infinite.
    lse = jnp.where(jnp.isneginf(lse), jnp.inf, lse).reshape(b, t, heads, group)
    lse = jnp.moveaxis(lse, 1, 3)  # [B, K, G, T]
    steep = None if slopes is None else slopes.reshape(1, heads, group, 1, 1)
    k_pos = used_positions(k_pos, num_slots)
    used = slots if num_slots is None else jnp.minimum(num_slots, slots)
    most = max_block or tuned.max_block("mass", "xla", held.dtype, h, group, slots) or BLOCK
    wide, tall = min(most, slots), min(most, t)

    def of_block(column: int | Array, row: int | Array, mass: Array) -> Array:
        """Adds what queries [row, row + tall) give to slots [column, column + wide)."""
        # The last blocks start early enough to be whole; what they had before counts once.
        column, row = (lax.convert_element_type(x, jnp.int32) for x in (column, row))
        first, top = jnp.minimum(column, slots - wide), jnp.minimum(row, t - tall)
        keys = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, wide, 2), k)
        at = lax.dynamic_slice_in_dim(k_pos, first, wide, 2)
        queries = lax.dynamic_slice_in_dim(rows, top, tall, 3)
        level = lax.dynamic_slice_in_dim(lse, top, tall, 3)
        asked = lax.dynamic_slice_in_dim(q_pos, top, tall, 1)
        asked = jnp.where((top + jnp.arange(tall, dtype=jnp.int32) >= row)[None], asked, -1)
        at = jnp.where((first + jnp.arange(wide, dtype=jnp.int32) >= column)[None, None], at, -1)
        seen = visible(asked[:, None, :, None], at[:, :, None, :], 0, None)

        def add(mass: Array) -> Array:
            scores = einsum("bkgth,bksh->bkgts", queries, numbers(keys, dtype))
            if k_scale is not None:
                size = lax.dynamic_slice_in_dim(k_scale, first, wide, 2)
                scores = scores * size[:, :, None, None]
            distance = asked[:, None, :, None] - at[:, :, None, :]
            scores = bend(scores, distance[:, :, None], steep, soft_cap)
            weights = jnp.where(seen[:, :, None], jnp.exp(scores - level[..., None]), 0.0)
            old = lax.dynamic_slice_in_dim(mass, first, wide, 3)
            return lax.dynamic_update_slice_in_dim(mass, old + weights.sum(axis=3), first, 3)

        return lax.cond(jnp.any(seen), add, lambda mass: mass, mass)

    def of_slots(index: int | Array, mass: Array) -> Array:
        def of_queries(step: int | Array, mass: Array) -> Array:
            return of_block(index * wide, step * tall, mass)

        return lax.fori_loop(0, -(-t // tall), of_queries, mass)

    mass = jnp.zeros((b, heads, group, slots), jnp.float32)
    blocks = lax.convert_element_type((used + wide - 1) // wide, jnp.int32)
    return lax.fori_loop(jnp.int32(0), blocks, of_slots, mass).reshape(b, n, slots)
