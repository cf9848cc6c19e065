# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Prefill attention as one TPU kernel, which visits only the blocks of slots that are seen.

The query heads of a KV head are rows of one product. For every block of such rows K and V stream
through VMEM once, block by block in the order of a table, under an online softmax. How long the
longest list of blocks is bounds the grid, so that one compiled program pays for the slots in use.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import tuned
from pallas_kernels.derivative import with_derivative_of
from pallas_kernels.prefill import xla
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
from pallas_kernels.tpu_layout import LANES, Order, stored_order
from pallas_kernels.visibility import used_positions, visible
from pallas_kernels.visits import longest, seen_blocks, visits

MAX_BLOCK = 1024  # slots: the reductions along them cost as much for a few
MAX_ROWS = 512  # queries times heads: so often is a key used that was read once


@dataclasses.dataclass(frozen=True)
class _Case:
    """What is static.

    Attributes:
      scale: multiplies the scores.
      window: see `visible`.
      sinks: see `visible`.
      soft_cap: see `bend`.
      alibi: whether there are slopes.
      max_block: see `prefill_attention`.
      interpret: whether to run without a TPU.
    """

    scale: float
    window: int | None
    sinks: int
    soft_cap: float | None
    alibi: bool
    max_block: int | None
    interpret: bool


@functools.partial(with_derivative_of, xla.prefill_attention)
def prefill_attention(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array,
    *, scale: float, window: int | None, sinks: int, num_slots: Array | None,
    slopes: Array | None = None, soft_cap: float | None = None, max_block: int | None = None,
    interpret: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
    """See `api.prefill_attention`.

    `max_block` bounds the slots a block; None is what was measured to be best, or the default.
    `interpret` runs the kernel without a TPU, slowly, for tests.
    """
    check_dtypes(q, split_scale(k)[0], split_scale(v)[0])
    k_pos = used_positions(k_pos, num_slots)
    case = _Case(scale, window, sinks, soft_cap, slopes is not None, max_block, interpret)
    return _attend(case, q, k, v, q_pos, k_pos, slopes)


def _attend(
    case: _Case, q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array, slopes: Array | None
) -> tuple[Array, Array]:
    (k, k_scale), (v, v_scale) = split_scale(k), split_scale(v)
    scales, dtype = by_token((k_scale, v_scale)), product_dtype(k, q)
    b, t, n, h = q.shape
    heads, slots = k.shape[1], k.shape[2]
    itemsize = max(x.dtype.itemsize for x in (q, k, v))  # integers are as wide as q here
    most = case.max_block or tuned.max_block("prefill", "mosaic_tpu", k.dtype, h, n // heads, slots)
    block, tall, together = block_shape(t, slots, n // heads, h, itemsize, most or MAX_BLOCK)
    # Query heads that share a block; a KV head has one or more of such parts.
    parts = n // heads // together
    order = stored_order(k.shape, k.dtype.itemsize)
    dims_first = order is Order.HEADS_DIMS
    if dims_first:  # what it is in memory: no key moves
        k, v = k.swapaxes(2, 3), v.swapaxes(2, 3)
    q_blocks, k_blocks = pl.cdiv(t, tall), pl.cdiv(slots, block)

    rows = (q * jnp.asarray(case.scale, q.dtype)).astype(dtype)
    rows = by_head(rows, together, q_blocks * tall)
    q_pos, k_pos = filled_up(q_pos, q_blocks * tall), filled_up(k_pos, k_blocks * block)
    places = k_pos.shape[1]
    if 4 * b * places * q_blocks * (k_blocks + 2) > SMEM_BYTES:
        raise NotImplementedError(
            f"{b} rows of {t} queries over {slots} slots with {places} position arrays each have "
            "more blocks than can be listed"
        )
    todo = visits(*seen_blocks(q_pos, k_pos, tall, block, case.sinks, case.window))
    if not case.interpret:
        k, v = in_hbm(k), in_hbm(v)

    def place(row: Array, head: Array) -> Array:
        return row * places + (lax.div(head, parts) if places > 1 else 0)

    def visited(row: Array, head: Array, query: Array, step: Array, order: Any) -> Array:
        return order[(place(row, head) * q_blocks + query) * k_blocks + step]

    def slots_of(row: Array, head: Array, query: Array, step: Array, order: Any, *_: Any):
        index = visited(row, head, query, step, order)
        own = lax.div(head, parts)
        return (row, own, 0, index) if dims_first else (row, own, index, 0)

    def positions_of(row: Array, head: Array, query: Array, step: Array, order: Any, *_: Any):
        return place(row, head), 0, visited(row, head, query, step, order)

    def scales_of(row: Array, head: Array, query: Array, step: Array, order: Any, *_: Any):
        return row * heads + lax.div(head, parts), 0, visited(row, head, query, step, order)

    def rows_of(row: Array, head: Array, query: Array, *_: Any):
        return row, head, 0, query, 0

    held = k.shape[2 if dims_first else 3]
    slots_block = (1, 1, held, block) if dims_first else (1, 1, block, held)
    rows_block = (1, 1, together, tall, h)
    steep = slopes_of(slopes, together)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, case, place, q_blocks, dims_first, bool(scales)),
        out_shape=[
            jax.ShapeDtypeStruct(rows.shape, q.dtype),
            jax.ShapeDtypeStruct(rows.shape[:4], jnp.float32),
        ],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(b, heads * parts, q_blocks, longest(todo)),
            in_specs=[
                pl.BlockSpec((1, tall, 1), lambda row, head, query, *_: (row, query, 0)),
                pl.BlockSpec(rows_block, rows_of),
                pl.BlockSpec(slots_block, slots_of),
                pl.BlockSpec(slots_block, slots_of),
                pl.BlockSpec((1, 1, block), positions_of),
                *[pl.BlockSpec((1, 1, block), scales_of)] * len(scales),
                *[pl.BlockSpec((1, together, 1), lambda row, head, *_: (head, 0, 0))] * len(steep),
            ],
            out_specs=[
                pl.BlockSpec(rows_block, rows_of),
                pl.BlockSpec(
                    (1, 1, together, tall), lambda row, head, query, *_: (row, head, 0, query)
                ),
            ],
            scratch_shapes=[
                pltpu.VMEM((together * tall, 1), jnp.float32),
                pltpu.VMEM((together * tall, 1), jnp.float32),
                pltpu.VMEM((together * tall, h), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=case.interpret,
        name="prefill_attention",
    )(
        *(x.reshape(-1) for x in todo), q_pos[..., None], rows, k, v,
        k_pos.reshape(b * places, 1, -1), *scales, *steep,
    )  # fmt: skip
    out = jnp.moveaxis(out, 3, 1)[:, :t].reshape(b, t, n, h)
    return out, jnp.moveaxis(lse, 3, 1)[:, :t].reshape(b, t, n)


def block_shape(
    queries: int, slots: int, group: int, head_dim: int, itemsize: int, most: int
) -> tuple[int, int, int]:
    """Slots, `most` at most, queries, and query heads a block.

    Queries are whole tiles in number, and where there are several blocks of them they fill the
    lanes; query heads divide a group.
    """
    tall, together = share_rows(queries, group, MAX_ROWS)
    rows, width = tall * together, pl.cdiv(head_dim, LANES) * LANES
    # Two of the queries and of the results, the sum, its two columns, and the positions.
    fixed = rows * (4 * width * itemsize + 4 * width + 2 * 4 * LANES) + 2 * tall * 4 * LANES
    # Two of K and of V; what is computed of them, float32 in three parts; and the scores.
    each = 4 * width * itemsize + width * (12 if itemsize == 2 else 40) + 8 * rows
    limit = min((ROOM_BYTES - fixed) // each, most) // LANES * LANES
    if limit <= 0:
        raise NotImplementedError(f"{rows} queries of {head_dim} do not fit VMEM")
    return even_block(slots, limit), tall, together


def _kernel(
    case: _Case, place: Any, q_blocks: int, dims_first: bool, packed: bool, *refs: Any
) -> None:
    """One block of slots for one block of queries of some heads.

    Args:
      case: what is static.
      place: row and head to the array of positions.
      q_blocks: blocks of queries.
      dims_first: whether blocks of K and V are [H, block] and not [block, H].
      packed: whether K and V are whole numbers with scales.
      *refs: the table of blocks, and how many are seen whole and in part; q_pos [1, tall, 1], q [1,
        1, heads, tall, H], k and v [1, 1, block, H] or [1, 1, H, block], k_pos [1, 1, block],
        scales of K and V [1, 1, block] and slopes [1, heads, 1] if there are any; out [1, 1, heads,
        tall, H], lse [1, 1, heads, tall]; and what one block hands to the next: the running maximum
        and sum [heads tall, 1], and the output before division [heads tall, H].
    """
    _, whole_ref, count_ref, q_pos_ref, q_ref, k_ref, v_ref, k_pos_ref, *others = refs
    k_scale_ref: Any = others.pop(0) if packed else None
    v_scale_ref: Any = others.pop(0) if packed else None
    slopes_ref: Any = others.pop(0) if case.alibi else None
    out_ref, lse_ref, top_ref, total_ref, sum_ref = others
    slots = "hs" if dims_first else "sh"
    row, head, query, step = (pl.program_id(axis) for axis in range(4))
    at = place(row, head) * q_blocks + query
    heads, tall, h = q_ref.shape[2:]

    @pl.when(step == 0)
    def _() -> None:
        top_ref[...] = jnp.full_like(top_ref, -jnp.inf)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    def fold(seen: Array | None) -> None:
        q = q_ref[0, 0].reshape(heads * tall, h)
        k, v = (wide(x[0, 0], q.dtype, 0 if dims_first else 1) for x in (k_ref, v_ref))
        scores = product(f"rh,{slots}->rs", q, k)
        v_scale: Any = v_scale_ref[0] if packed else None
        if packed:
            scores = scores * k_scale_ref[0]
        if case.alibi or case.soft_cap is not None:
            scores = scores.reshape(heads, tall, -1)
            distance = (q_pos_ref[0] - k_pos_ref[0])[None]
            steep = slopes_ref[0][:, :, None] if case.alibi else None
            scores = bend(scores, distance, steep, case.soft_cap).reshape(heads * tall, -1)
        if seen is not None:
            block = scores.shape[1]
            scores = scores.reshape(heads, tall, block)
            scores = jnp.where(seen[None], scores, -jnp.inf).reshape(heads * tall, block)
            # A weight of 0 hides any number, but not a NaN or an infinity that a slot beyond the
            # slab, or one never written, may hold.
            shown = jnp.max(seen.astype(jnp.float32), axis=0, keepdims=True)
            if packed:  # which knows neither; its scale may
                v_scale = jnp.where(shown > 0.5, v_scale, 0.0)
            else:
                shown = shown.astype(jnp.bfloat16)
                if not dims_first:  # down the slots, which a product turns fastest
                    shown = product("gs,gh->sh", shown, jnp.ones((1, h), jnp.bfloat16))
                v = jnp.where(shown > 0.5, v, jnp.zeros_like(v))
        top = jnp.maximum(top_ref[...], jnp.max(scores, axis=1, keepdims=True))
        base = jnp.where(top == -jnp.inf, 0.0, top)  # no visible slot yet
        weights = jnp.exp(scores - base)
        shrink = jnp.exp(top_ref[...] - base)
        top_ref[...] = top
        total_ref[...] = total_ref[...] * shrink + jnp.sum(weights, axis=1, keepdims=True)
        if packed:
            weights = weights * v_scale
        mixture = product(f"rs,{slots}->rh", weights.astype(v.dtype), v)
        sum_ref[...] = sum_ref[...] * shrink + mixture

    @pl.when(step < whole_ref[at])
    def _() -> None:
        fold(None)

    @pl.when((step >= whole_ref[at]) & (step < count_ref[at]))
    def _() -> None:
        fold(visible(q_pos_ref[0], k_pos_ref[0], case.sinks, case.window))

    @pl.when(step == pl.num_programs(3) - 1)
    def _() -> None:
        # Padding has seen the blocks that all others see whole.
        there = jnp.broadcast_to((q_pos_ref[0] >= 0)[None], (heads, tall, 1))
        there = there.reshape(heads * tall, 1) & (total_ref[...] > 0)
        total = jnp.where(there, total_ref[...], 1.0)
        out = jnp.where(there, sum_ref[...] / total, 0.0)
        out_ref[0, 0] = out.reshape(heads, tall, h).astype(out_ref.dtype)
        lse = jnp.where(there, jnp.log(total) + top_ref[...], -jnp.inf)
        lse_ref[0, 0] = lse.reshape(heads, tall)
