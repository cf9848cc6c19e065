# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Pool attention as XLA runs it: queries go to the blocks, a softmax in each, then one per head."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.pool.spans import Span, within
from pallas_kernels.precision import einsum
from pallas_kernels.score_bias import bend
from pallas_kernels.slots import Slots, numbers, product_dtype, split_scale
from pallas_kernels.softmax import Partial, merge
from pallas_kernels.visibility import visible

TILE = 32  # blocks of a span that are read at a time


def pool_attention(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array, owner: Array,
    *, num_kv_heads: int, scale: float,
    slopes: Array | None = None, soft_cap: float | None = None, span: Span | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """See `api.pool_attention`."""
    if span is not None:
        case = _Case(num_kv_heads, scale, soft_cap)
        return _spanned(case, q, k, v, q_pos, k_pos, owner, span, slopes)
    k, v, k_pos = jax.tree.map(lambda x: in_blocks(x, owner.shape[1]), (k, v, k_pos))
    k_scale, v_scale = split_scale(k)[1], split_scale(v)[1]
    b, n, h = q.shape
    group = n // num_kv_heads
    k, v = (numbers(x, product_dtype(x, q)) for x in (k, v))
    rows = (q * jnp.asarray(scale, q.dtype)).reshape(b, num_kv_heads, group, h).astype(k.dtype)
    # Queries are few: they are brought to the blocks, and no block is moved.
    rows = jnp.take_along_axis(rows, owner[:, :, None, None], axis=1)  # [B, M, G, H]
    scores = einsum("bmgh,bmch->bmgc", rows, k)
    if k_scale is not None:
        scores = scores * k_scale[:, :, None]
    distance = (q_pos[:, None, None] - k_pos)[:, :, None]
    steep = None if slopes is None else slopes.reshape(num_kv_heads, group)[owner][..., None]
    scores = bend(scores, distance, steep, soft_cap)
    seen = visible(q_pos[:, None, None], k_pos, 0, None)[:, :, None]
    scores = jnp.where(seen, scores, -jnp.inf)
    top = jnp.max(scores, axis=-1)
    mine = (owner[:, None] == jnp.arange(num_kv_heads, dtype=jnp.int32)[None, :, None])[
        ..., None
    ]  # [B, K, M, 1]
    level = jnp.max(jnp.where(mine, top[:, None], -jnp.inf), axis=2)  # [B, K, G]
    level = jnp.where(jnp.isneginf(level), 0.0, level)
    weights = jnp.exp(scores - jnp.take_along_axis(level, owner[:, :, None], axis=1)[..., None])
    shares = weights if v_scale is None else weights * v_scale[:, :, None]
    sums = einsum("bmgc,bmch->bmgh", shares.astype(v.dtype), v)
    share = mine[..., 0].astype(jnp.float32)
    out = einsum("bkm,bmgh->bkgh", share, sums)
    total = einsum("bkm,bmg->bkg", share, jnp.sum(weights, axis=-1))
    out = out / jnp.where(total == 0, 1.0, total)[..., None]
    lse = jnp.log(total) + level
    return out.reshape(b, n, h).astype(q.dtype), lse.reshape(b, n)


@dataclasses.dataclass(frozen=True)
class _Case:
    """What is static; see `api.pool_attention`."""

    num_kv_heads: int
    scale: float
    soft_cap: float | None

    def attend(self, *args: Any, slopes: Array | None) -> tuple[Array, Array]:
        """To all blocks."""
        return pool_attention(*args, slopes=slopes, **dataclasses.asdict(self))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _spanned(
    case: _Case, q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array, owner: Array,
    span: Span, slopes: Array | None,
) -> tuple[Array, Array]:  # fmt: skip
    """A loop over the blocks of each row's span, so that no others are read."""
    rows, blocks = owner.shape
    size, tile = k_pos.shape[1] // blocks, min(TILE, blocks)

    def of_row(row: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        begin, end = span[0][row], span[1][row]

        def cut(x: Array, start: Array, count: int) -> Array:
            at = row, start, *[0] * (x.ndim - 2)
            return lax.dynamic_slice(x, at, (1, count, *x.shape[2:]))

        mine, mine_pos = (lax.dynamic_slice_in_dim(x, row, 1) for x in (q, q_pos))

        def some(index: Array, part: Partial) -> Partial:
            wanted = begin + index * tile
            start = jnp.minimum(wanted, blocks - tile)
            keys, values, at = jax.tree.map(
                lambda x: cut(x, start * size, tile * size), (k, v, k_pos)
            )
            block = start + jnp.repeat(jnp.arange(tile, dtype=jnp.int32), size)
            there = (block >= wanted) & (block < end)
            at, whose = jnp.where(there[None], at, -1), cut(owner, start, tile)
            new = case.attend(mine, keys, values, mine_pos, at, whose, slopes=slopes)
            return merge(part, new)

        none = jnp.zeros_like(mine), jnp.full(mine.shape[:2], -jnp.inf, jnp.float32)
        part = lax.fori_loop(jnp.int32(0), (end - begin + tile - 1) // tile, some, none)
        (out, lse), (new_out, new_lse) = found, part
        out = lax.dynamic_update_slice_in_dim(out, new_out, row, 0)
        return out, lax.dynamic_update_slice_in_dim(lse, new_lse, row, 0)

    none = jnp.zeros_like(q), jnp.full(q.shape[:2], -jnp.inf, jnp.float32)
    return lax.fori_loop(jnp.int32(0), jnp.int32(rows), of_row, none)


@_spanned.defjvp
def _derivative(case: _Case, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """Of attention to all blocks, of which none but the span's are seen: no loop over data."""
    q, k, v, q_pos, k_pos, owner, span, slopes = primals
    k_pos = within(span, k_pos, owner.shape[1])

    def attend(q: Array, k: Slots, v: Slots) -> tuple[Array, Array]:
        return case.attend(q, k, v, q_pos, k_pos, owner, slopes=slopes)

    return jax.jvp(attend, (q, k, v), tuple(tangents[:3]))


def in_blocks(x: Array, blocks: int) -> Array:
    """[B, S, ..] as [B, M, C, ..]."""
    return x.reshape(x.shape[0], blocks, -1, *x.shape[2:])
