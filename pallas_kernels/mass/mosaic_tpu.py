# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention mass as one TPU kernel, which visits only the blocks that are seen.

For every block of slots the queries that see any of it stream through VMEM, and the keys stay.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import tuned
from pallas_kernels.score_bias import bend
from pallas_kernels.slots import Slots, product_dtype, split_scale
from pallas_kernels.tpu import (
    ROOM_BYTES,
    SMEM_BYTES,
    by_head,
    by_token,
    check_dtypes,
    even_block,
    filled_up,
    in_hbm,
    product,
    share_rows,
    slopes_of,
    wide,
)
from pallas_kernels.tpu_layout import LANES, SUBLANES, Order, stored_order
from pallas_kernels.visibility import used_positions, visible
from pallas_kernels.visits import longest, seen_blocks, visits

MAX_BLOCK = 1024  # slots
MAX_ROWS = 512  # queries times heads


def attention_mass(
    q: Array, lse: Array, k: Slots, q_pos: Array, k_pos: Array,
    *, scale: float, num_slots: Array | None, slopes: Array | None = None,
    soft_cap: float | None = None, max_block: int | None = None, interpret: bool = False,
) -> Array:  # fmt: skip
    """See `api.attention_mass`.

    `max_block` bounds the slots a block; None is what was measured to be best, or the default.
    `interpret` runs the kernel without a TPU, slowly, for tests.
    """
    k, k_scale = split_scale(k)
    check_dtypes(q, k)
    scales, dtype = by_token([k_scale]), product_dtype(k, q)
    b, t, n, h = q.shape
    heads, slots = k.shape[1], k.shape[2]
    k_pos = used_positions(k_pos, num_slots)
    most = max_block or tuned.max_block("mass", "mosaic_tpu", k.dtype, h, n // heads, slots)
    block, tall, together = block_shape(t, slots, n // heads, h, dtype.itemsize, most or MAX_BLOCK)
    # Query heads that share a block; a KV head has one or more of such parts.
    parts = n // heads // together
    dims_first = stored_order(k.shape, k.dtype.itemsize) is Order.HEADS_DIMS
    if dims_first:  # what it is in memory: no key moves
        k = k.swapaxes(2, 3)
    q_blocks, k_blocks, places = pl.cdiv(t, tall), pl.cdiv(slots, block), k_pos.shape[1]
    if 4 * b * places * (k_blocks * (q_blocks + 2) + 1) > SMEM_BYTES:
        raise NotImplementedError(
            f"{b} rows of {t} queries over {slots} slots with {places} position arrays each have "
            "more blocks than can be listed"
        )

    rows = (q * jnp.asarray(scale, q.dtype)).astype(dtype)
    rows = by_head(rows, together, q_blocks * tall)
    # A query that saw no key has lse -inf, and would make exp(score - lse) infinite.
    level = jnp.where(jnp.isneginf(lse), jnp.inf, lse)
    # Heads along the lanes: a lane of its own for every query would take as many bytes as 128.
    level = by_head(level[..., None], together, q_blocks * tall)[..., 0].swapaxes(2, 3)
    q_pos, k_pos = filled_up(q_pos, q_blocks * tall), filled_up(k_pos, k_blocks * block)
    some, _ = seen_blocks(q_pos, k_pos, tall, block, 0, None)
    some = some.swapaxes(2, 3)  # [B, P, blocks of slots, blocks of queries]
    seen = jnp.any(some, axis=3)
    columns, queries = visits(seen, jnp.zeros_like(seen)), visits(some, jnp.zeros_like(some))
    if not interpret:
        k = in_hbm(k)

    def place(row: Array, head: Array) -> Array:
        return row * places + (lax.div(head, parts) if places > 1 else 0)

    def column_of(row: Array, head: Array, column: Array, columns: Any) -> Array:
        return columns[place(row, head) * k_blocks + column]

    def query_of(row: Array, head: Array, column: Array, step: Array, refs: Any) -> Array:
        at = place(row, head) * k_blocks + column_of(row, head, column, refs[0])
        return refs[2][at * q_blocks + step]

    def keys_of(row: Array, head: Array, column: Array, step: Array, columns: Any, *_: Any):
        index, own = column_of(row, head, column, columns), lax.div(head, parts)
        return (row, own, 0, index) if dims_first else (row, own, index, 0)

    def rows_of(row: Array, head: Array, column: Array, step: Array, *refs: Any):
        return row, head, 0, query_of(row, head, column, step, refs), 0

    held = k.shape[2 if dims_first else 3]
    keys_block = (1, 1, held, block) if dims_first else (1, 1, block, held)
    steep = slopes_of(slopes, together)
    mass = pl.pallas_call(
        functools.partial(
            _kernel, place, k_blocks, dims_first, bool(scales), bool(steep), soft_cap
        ),
        out_shape=jax.ShapeDtypeStruct((b, heads * parts, together, slots), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(b, heads * parts, longest(columns), longest(queries)),
            in_specs=[
                pl.BlockSpec(
                    (1, tall, 1),
                    lambda row, head, column, step, *refs: (
                        row, query_of(row, head, column, step, refs), 0,
                    ),
                ),
                pl.BlockSpec((1, 1, together, tall, h), rows_of),
                pl.BlockSpec(
                    (1, 1, tall, together),
                    lambda row, head, column, step, *refs: (
                        row, head, query_of(row, head, column, step, refs), 0,
                    ),
                ),
                pl.BlockSpec(keys_block, keys_of),
                pl.BlockSpec(
                    (1, 1, block),
                    lambda row, head, column, step, columns, *_: (
                        place(row, head), 0, column_of(row, head, column, columns),
                    ),
                ),
                *[
                    pl.BlockSpec(
                        (1, 1, block),
                        lambda row, head, column, step, columns, *_: (
                            row * heads + lax.div(head, parts), 0,
                            column_of(row, head, column, columns),
                        ),
                    )
                ] * len(scales),
                *[pl.BlockSpec((1, together, 1), lambda row, head, *_: (head, 0, 0))] * len(steep),
            ],
            out_specs=pl.BlockSpec(
                (1, 1, together, block),
                lambda row, head, column, step, columns, *_: (
                    row, head, 0, column_of(row, head, column, columns),
                ),
            ),
            scratch_shapes=[pltpu.VMEM((together, SUBLANES, block), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")
        ),
        interpret=interpret,
        name="attention_mass",
    )(
        columns.order.reshape(-1), columns.count.reshape(-1),
        queries.order.reshape(-1), queries.count.reshape(-1),
        q_pos[..., None], rows, level, k, k_pos.reshape(b * places, 1, -1), *scales, *steep,
    )  # fmt: skip
    # Blocks that were not visited hold anything.
    visited = jnp.repeat(seen, block, axis=2)[:, :, None, :slots]
    mass = mass.reshape(b, heads, n // heads, slots)
    return jnp.where(visited, mass, 0.0).reshape(b, n, slots)


def block_shape(
    queries: int, slots: int, group: int, head_dim: int, itemsize: int, most: int
) -> tuple[int, int, int]:
    """Slots, `most` at most, queries, and query heads a block: see `share_rows`."""
    tall, together = share_rows(queries, group, MAX_ROWS)
    rows, width = tall * together, pl.cdiv(head_dim, LANES) * LANES
    # Two of the queries, of their levels, and of their positions.
    fixed = 2 * rows * width * itemsize + 4 * tall * 4 * LANES
    # Two of K; what is computed of it, float32 in three parts; scores; the sum and two results.
    each = width * (2 * itemsize + (6 if itemsize == 2 else 20)) + 8 * rows + 96 * together
    limit = min((ROOM_BYTES - fixed) // each, most) // LANES * LANES
    if limit <= 0:
        raise NotImplementedError(f"{rows} queries of {head_dim} do not fit VMEM")
    return even_block(slots, limit), tall, together


def _kernel(
    place: Any, k_blocks: int, dims_first: bool, packed: bool, alibi: bool, soft_cap: float | None,
    *refs: Any,
) -> None:  # fmt: skip
    """One block of queries of some heads for one block of slots.

    Args:
      place: row and head to the array of positions.
      k_blocks: blocks of slots.
      dims_first: whether blocks of K are [H, block] and not [block, H].
      packed: whether K is whole numbers with scales.
      alibi: whether there are slopes.
      soft_cap: see `bend`.
      *refs: the table of blocks of slots, and how many there are; for each of them a table of
        blocks of queries, and how many there are; q_pos [1, tall, 1], q [1, 1, heads, tall, H], lse
        [1, 1, tall, heads], k [1, 1, block, H] or [1, 1, H, block], k_pos [1, 1, block], scales [1,
        1, block] and slopes [1, heads, 1] if there are any; out [1, 1, heads, block]; and what one
        block hands to the next: the sum, in `SUBLANES` parts.
    """
    columns_ref, used_ref, _, count_ref, q_pos_ref, q_ref, level_ref, k_ref, *others = refs
    k_pos_ref, *others = others
    scale_ref: Any = others.pop(0) if packed else None
    slopes_ref: Any = others.pop(0) if alibi else None
    out_ref, sum_ref = others
    row, head, column, step = (pl.program_id(axis) for axis in range(4))
    at = place(row, head)
    used = column < used_ref[at]
    count = count_ref[at * k_blocks + columns_ref[at * k_blocks + column]]
    heads, tall, h = q_ref.shape[2:]
    block = k_pos_ref.shape[2]

    @pl.when(used & (step == 0))
    def _() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)

    @pl.when(used & (step < count))
    def _() -> None:
        q, level = q_ref[0, 0].reshape(heads * tall, h), level_ref[0, 0]
        level = jnp.concatenate([level[:, one : one + 1] for one in range(heads)], axis=0)
        k = wide(k_ref[0, 0], q.dtype, 0 if dims_first else 1)
        scores = product(f"rh,{'hs' if dims_first else 'sh'}->rs", q, k)
        if packed:
            scores = scores * scale_ref[0]
        if alibi or soft_cap is not None:
            distance = (q_pos_ref[0] - k_pos_ref[0])[None]
            steep = slopes_ref[0][:, :, None] if alibi else None
            scores = bend(scores.reshape(heads, tall, block), distance, steep, soft_cap)
            scores = scores.reshape(heads * tall, block)
        weights = jnp.exp(scores - level).reshape(heads, tall, block)
        seen = visible(q_pos_ref[0], k_pos_ref[0], 0, None)
        weights = jnp.where(seen[None], weights, 0.0)
        weights = weights.reshape(heads, tall // SUBLANES, SUBLANES, block)
        sum_ref[...] += jnp.sum(weights, axis=1)

    @pl.when(used & (step == pl.num_programs(3) - 1))
    def _() -> None:
        out_ref[0, 0] = jnp.sum(sum_ref[...], axis=1)
