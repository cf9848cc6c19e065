# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Decode attention as one TPU kernel: K and V stream through VMEM once, in blocks of slots."""

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
from pallas_kernels.decode import xla
from pallas_kernels.decode.blocks import block_range
from pallas_kernels.derivative import with_derivative_of
from pallas_kernels.score_bias import bend
from pallas_kernels.slots import Slots, product_dtype, split_scale
from pallas_kernels.tpu import (
    SMEM_BYTES,
    VMEM_BYTES,
    by_token,
    check_dtypes,
    even_block,
    in_hbm,
    product,
    slopes_of,
    wide,
)
from pallas_kernels.tpu_layout import LANES, SUBLANES, Order, stored_order
from pallas_kernels.visibility import visible

MAX_BLOCK = 2048  # slots; 1 MiB of bfloat16 at H = 128, which takes long enough to hide a step


@functools.partial(with_derivative_of, xla.decode_attention)
def decode_attention(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array,
    *, scale: float, window: int | None, sinks: int, q_sink: Array | None, with_mass: bool,
    slopes: Array | None = None, soft_cap: float | None = None, max_block: int | None = None,
    interpret: bool = False,
) -> tuple[Array, ...]:  # fmt: skip
    """See `api.decode_attention`.

    `max_block` bounds the slots a block; None is what was measured to be best, or the default.
    `interpret` runs the kernel without a TPU, slowly, for tests.
    """
    (k, k_scale), (v, v_scale) = split_scale(k), split_scale(v)
    b, n, h = q.shape
    heads, slots = k.shape[1], k.shape[2]
    check_dtypes(q, k, v)
    order = stored_order(k.shape, k.dtype.itemsize)
    if order is None or (with_mass and order is Order.SLOTS_HEADS):
        raise NotImplementedError(
            f"{slots} slots, which {SUBLANES} does not divide, lie in an order that is not served"
        )
    # These views are what the arrays are in memory: none of them moves a key.
    mixed = 1
    if order is Order.HEADS_DIMS:
        k, v = k.swapaxes(2, 3), v.swapaxes(2, 3)
    elif order is Order.SLOTS_HEADS:
        k, v = (x.swapaxes(1, 2).reshape(b, 1, slots * heads, -1) for x in (k, v))
        k_pos = jnp.broadcast_to(k_pos, (b, heads, slots)).swapaxes(1, 2)
        k_pos = k_pos.reshape(b, 1, slots * heads)
        k_scale, v_scale = (
            None if x is None else x.swapaxes(1, 2).reshape(b, 1, slots * heads)
            for x in (k_scale, v_scale)
        )
        mixed = heads
    return attend(
        q, k, v, by_token((k_scale, v_scale)), q_pos, k_pos, None,
        scale=scale, window=window, sinks=sinks, q_sink=q_sink, with_mass=with_mass,
        slopes=slopes, soft_cap=soft_cap, mixed=mixed, dims_first=order is Order.HEADS_DIMS,
        max_block=max_block, interpret=interpret,
    )  # fmt: skip


def attend(
    q: Array, k: Array, v: Array, scales: list[Array], q_pos: Array, k_pos: Array,
    owner: Array | None,
    *, scale: float, window: int | None, sinks: int, q_sink: Array | None, with_mass: bool,
    slopes: Array | None, soft_cap: float | None, mixed: int, dims_first: bool,
    max_block: int | None, interpret: bool,
) -> tuple[Array, ...]:  # fmt: skip
    """Decode attention over keys and values as they lie.

    Args:
      q: as for `api.decode_attention`, and so is what is not named here.
      k: [B, K, S, H], or [B, K, H, S]; K is 1 where heads are mixed, and S counts the slots of all.
        In place of H what `Int4` holds of it.
      v: as `k`.
      scales: of K and of V, float32 [B K, 1, S], if they are whole numbers.
      q_pos: int32 [B].
      k_pos: int32 [B, P, S].
      owner: int32 [B, S], the head of each slot where heads are mixed; None: they take turns.
      scale, window, sinks, q_sink, with_mass, slopes, soft_cap: see there.
      mixed: how many heads' slots lie mixed along S.
      dims_first: whether the slots come last in K and V.
      max_block: see `decode_attention`.
      interpret: see `decode_attention`.
    """
    b, n, h = q.shape
    heads, slots = k.shape[1], k_pos.shape[2]
    group, places = n // heads, k_pos.shape[1]
    if 4 * b * (2 * places + 1) > SMEM_BYTES:
        raise NotImplementedError(f"{b} rows with {places} position arrays each are too many")
    dtype = product_dtype(k, q)
    op = "pool" if owner is not None else "decode-mass" if with_mass else "decode"
    kind = k.dtype, h, group // mixed, slots // mixed
    most = max_block or tuned.max_block(op, "mosaic_tpu", *kind) or MAX_BLOCK
    block = block_slots(slots, h, group, max(dtype.itemsize, v.dtype.itemsize), most)

    queries = [q] if q_sink is None or not sinks else [q, q_sink]
    grouped = [
        (x * jnp.asarray(scale, x.dtype)).reshape(b, heads, group, h).astype(dtype) for x in queries
    ]
    first, last = block_range(visible(q_pos[:, None, None], k_pos, sinks, window), block)
    if not interpret:
        k, v = in_hbm(k), in_hbm(v)

    def place(row: Array, head: Array) -> Array:
        return row * places + (head if places > 1 else 0)

    def in_range(row: Array, head: Array, step: Array, first: Any, last: Any) -> Array:
        # Blocks out of the range take the index of the nearest one in it: it is there already, or
        # is needed next, so they cost no transfer.
        at = place(row, head)
        return jnp.clip(step, first[at], last[at])

    def slots_of(row: Array, head: Array, step: Array, first: Any, last: Any, _: Any):
        index = in_range(row, head, step, first, last)
        return (row, head, 0, index) if dims_first else (row, head, index, 0)

    def positions_of(row: Array, head: Array, step: Array, first: Any, last: Any, _: Any):
        return place(row, head), 0, in_range(row, head, step, first, last)

    def scales_of(row: Array, head: Array, step: Array, first: Any, last: Any, _: Any):
        return row * heads + head, 0, in_range(row, head, step, first, last)

    def head_of(row: Array, head: Array, *_: Any):
        return row, head, 0, 0

    held = k.shape[2 if dims_first else 3]
    slots_block = (1, 1, held, block) if dims_first else (1, 1, block, held)
    out_shape = [
        jax.ShapeDtypeStruct((b, heads, group, h), q.dtype),
        jax.ShapeDtypeStruct((b, heads, group, 1), jnp.float32),
    ]
    out_specs = [
        pl.BlockSpec((1, 1, group, h), head_of),
        pl.BlockSpec((1, 1, group, 1), head_of),
    ]
    if with_mass:
        # Every block has its place here: the kernel fills those that it skips.
        out_shape.append(jax.ShapeDtypeStruct((b, heads, group, slots), jnp.float32))
        out_specs.append(
            pl.BlockSpec((1, 1, group, block), lambda row, head, step, *_: (row, head, 0, step))
        )
    case = _Case(
        slots=slots, block=block, places=places, mixed=mixed, window=window, sinks=sinks,
        dims_first=dims_first, soft_cap=soft_cap, alibi=slopes is not None,
        in_cache=q_sink is not None, packed=bool(scales),
        owned=owner is not None,
    )  # fmt: skip
    steep = slopes_of(slopes, group)
    owners = [] if owner is None else [owner[:, None]]
    out, lse, *scores = pl.pallas_call(
        functools.partial(_kernel, case, len(queries) == 2, with_mass),
        out_shape=out_shape,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(b, heads, pl.cdiv(slots, block)),
            in_specs=[
                *[pl.BlockSpec((1, 1, group, h), head_of)] * len(queries),
                pl.BlockSpec(slots_block, slots_of),
                pl.BlockSpec(slots_block, slots_of),
                pl.BlockSpec((1, 1, block), positions_of),
                *[pl.BlockSpec((1, 1, block), scales_of)] * (len(scales) + len(owners)),
                *[pl.BlockSpec((1, group, 1), lambda row, head, *_: (head, 0, 0))] * len(steep),
            ],
            out_specs=out_specs,
            scratch_shapes=[
                pltpu.VMEM((group, 1), jnp.float32),
                pltpu.VMEM((group, 1), jnp.float32),
                pltpu.VMEM((group, h), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="decode_attention",
    )(
        first,
        last,
        q_pos,
        *grouped,
        k,
        v,
        k_pos.reshape(b * places, 1, slots),
        *scales,
        *owners,
        *steep,
    )
    out, lse = out.reshape(b, n, h), lse.reshape(b, n)
    if not with_mass:
        return out, lse
    level = jnp.where(jnp.isneginf(lse), 0.0, lse)
    return out, lse, jnp.exp(scores[0].reshape(b, n, slots) - level[..., None])


@dataclasses.dataclass(frozen=True)
class _Case:
    """What a kernel is made for.

    Attributes:
      slots: slots of the slab; the last block may reach beyond them, into anything.
      block: slots a block.
      places: P, position arrays a row.
      mixed: how many heads' slots lie mixed; all their queries are there, as one group.
      window: see `visible`.
      sinks: see `visible`.
      dims_first: whether blocks of K and V are [H, block] and not [block, H].
      soft_cap: see `bend`.
      alibi: whether there are slopes.
      in_cache: whether sinks are at most `sinks + window` away, where there are slopes.
      packed: whether K and V are whole numbers with scales.
      owned: whether slots say whose they are; else the heads take turns.
    """

    slots: int
    block: int
    places: int
    mixed: int
    window: int | None
    sinks: int
    dims_first: bool
    soft_cap: float | None
    alibi: bool
    in_cache: bool
    packed: bool
    owned: bool


def block_slots(slots: int, head_dim: int, group: int, itemsize: int, most: int) -> int:
    """Slots a block: all of them, or a multiple of the lanes that fits VMEM, in even shares.

    `most` bounds them too.
    """
    rows, width = pl.cdiv(group, SUBLANES) * SUBLANES, pl.cdiv(head_dim, LANES) * LANES
    buffers = 4 * width * itemsize  # two of K and two of V
    hidden = 8 * width  # the mask of a block with NaNs in hidden slots, and V under it
    scores = 4 * rows * 8  # scores, weights and their temporaries, and two blocks of scores out
    positions = 4 * 8 * 4
    limit = VMEM_BYTES // (buffers + hidden + scores + positions) // LANES * LANES
    limit = min(most, limit)
    if limit <= 0:
        raise NotImplementedError(f"{group} query heads of {head_dim} do not fit VMEM")
    return even_block(slots, limit)


def _kernel(case: _Case, two_queries: bool, with_mass: bool, *refs: Any) -> None:
    """One block of slots of one KV head, or of all where they lie mixed.

    Args:
      case: what is the same for all blocks.
      two_queries: whether there is a q_sink, which scores the first slots.
      with_mass: whether scores go out.
      *refs: first and last block to visit [B P], q_pos [B]; q and q_sink [1, 1, G, H], k and v [1,
        1, block, H] or [1, 1, H, block], k_pos [1, 1, block], scales of K and V, owners [1, 1,
        block] and slopes [1, G, 1] if there are any; out [1, 1, G, H], lse [1, 1, G, 1], scores [1,
        1, G, block]; and what one block hands to the next: the running maximum and sum [G, 1], and
        the output before division [G, H].
    """
    first_ref, last_ref, q_pos_ref, q_ref, *others = refs
    sink_ref: Any = others.pop(0) if two_queries else None
    k_ref, v_ref, pos_ref, *others = others
    k_scale_ref: Any = others.pop(0) if case.packed else None
    v_scale_ref: Any = others.pop(0) if case.packed else None
    owner_ref: Any = others.pop(0) if case.owned else None
    slopes_ref: Any = others.pop(0) if case.alibi else None
    out_ref, lse_ref, *others = others
    scores_ref: Any = others.pop(0) if with_mass else None
    top_ref, total_ref, sum_ref = others
    rows = "hs" if case.dims_first else "sh"
    row, head, step = (pl.program_id(axis) for axis in range(3))
    at = row * case.places + (head if case.places > 1 else 0)
    start = step * case.block
    inside = (step >= first_ref[at]) & (step <= last_ref[at])

    @pl.when(step == 0)
    def _() -> None:
        top_ref[...] = jnp.full_like(top_ref, -jnp.inf)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    if scores_ref is not None:

        @pl.when(~inside)
        def _() -> None:
            scores_ref[...] = jnp.full_like(scores_ref, -jnp.inf)

    @pl.when(inside)
    def _() -> None:
        dims = 0 if case.dims_first else 1
        k, v = (wide(x[0, 0], q_ref.dtype, dims) for x in (k_ref, v_ref))
        slot = start + lax.broadcasted_iota(jnp.int32, (1, case.block), 1)
        there = visible(q_pos_ref[row], pos_ref[0], case.sinks, case.window) & (slot < case.slots)
        scores = product(f"gh,{rows}->gs", q_ref[0, 0], k)
        if sink_ref is not None:
            sinks = case.sinks * case.mixed
            scores = lax.cond(
                start < sinks,
                lambda: jnp.where(
                    slot < sinks, product(f"gh,{rows}->gs", sink_ref[0, 0], k), scores
                ),
                lambda: scores,
            )
        if case.packed:
            scores = scores * k_scale_ref[0]
        distance = q_pos_ref[row] - pos_ref[0]
        if case.in_cache and case.window is not None:
            near = jnp.minimum(q_pos_ref[row], case.sinks + case.window) - pos_ref[0]
            distance = jnp.where(slot < case.sinks * case.mixed, near, distance)
        scores = bend(scores, distance, slopes_ref[0] if case.alibi else None, case.soft_cap)
        seen = there
        if case.mixed > 1:
            # Parting the heads would move the keys; the product with the keys of all is masked
            # down to each head's own. So a NaN that one head sees shows in the others too.
            queries = scores.shape[0]
            query = lax.broadcasted_iota(jnp.int32, (queries, 1), 0)
            own = lax.div(query, queries // case.mixed)
            whose = owner_ref[0] if case.owned else lax.rem(slot, case.mixed)
            seen = there & (whose == own)
        scores = jnp.where(seen, scores, -jnp.inf)
        if scores_ref is not None:
            scores_ref[0, 0] = scores
        top = jnp.maximum(top_ref[...], jnp.max(scores, axis=1, keepdims=True))
        base = jnp.where(top == -jnp.inf, 0.0, top)  # no visible slot yet
        weights = jnp.exp(scores - base)
        shrink = jnp.exp(top_ref[...] - base)
        top_ref[...] = top
        total_ref[...] = total_ref[...] * shrink + jnp.sum(weights, axis=1, keepdims=True)
        if case.packed:
            weights = weights * jnp.where(there, v_scale_ref[0], 0.0)
        weights = weights.astype(v.dtype)
        mixture = product(f"gs,{rows}->gh", weights, v)
        kept = sum_ref[...] * shrink
        # A weight of 0 hides any number, but not a NaN or an infinity that a slot beyond the slab,
        # or one never written, may hold. They are rare, and a mask over V is dear: only then.
        # Not `jnp.all`: where a process asked for 64 bits, Mosaic reduces bools as float64.
        clean = jnp.max(jnp.where(jnp.isfinite(mixture), 0.0, 1.0)) < 0.5

        @pl.when(clean)
        def _() -> None:
            sum_ref[...] = kept + mixture

        @pl.when(~clean)
        def _() -> None:
            shown = there
            if not case.dims_first:  # down the slots, which a product turns fastest
                ones = jnp.ones((1, v.shape[1]), jnp.float32)
                shown = product("gs,gh->sh", there.astype(jnp.float32), ones) > 0.5
            shown = jnp.where(shown, v, jnp.zeros_like(v))
            sum_ref[...] = kept + product(f"gs,{rows}->gh", weights, shown)

    @pl.when(step == pl.num_programs(2) - 1)
    def _() -> None:
        total, top = total_ref[...], top_ref[...]
        out_ref[0, 0] = (sum_ref[...] / jnp.where(total == 0, 1.0, total)).astype(out_ref.dtype)
        lse_ref[0, 0] = jnp.log(total) + jnp.where(top == -jnp.inf, 0.0, top)
