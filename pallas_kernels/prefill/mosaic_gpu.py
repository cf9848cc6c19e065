# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Prefill attention as one Hopper kernel, which visits only the blocks of slots that are seen.

A block of threads takes as many rows as a matrix product has, which are queries times the query
heads of one KV head. K and V stream through shared memory once for them, block by block in the
order of a table, under an online softmax, while copies of the next blocks are on their way.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import tuned
from pallas_kernels.derivative import with_derivative_of
from pallas_kernels.gpu import (
    LOG2E,
    MAX_STAGES,
    ROWS,
    SHARED_BYTES,
    TABLE_BYTES,
    TILE,
    across,
    all_slots,
    down,
    held_type,
    product,
    refuse,
    slot_positions,
    slot_scales,
    widened,
)
from pallas_kernels.prefill import xla
from pallas_kernels.score_bias import bend
from pallas_kernels.slots import Slots, parts_of
from pallas_kernels.visibility import used_positions, visible
from pallas_kernels.visits import ends, reached, seen_blocks, visits

MAX_BLOCK = 128  # slots


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
      interpret: parameters of Pallas, to run without a GPU.
    """

    scale: float
    window: int | None
    sinks: int
    soft_cap: float | None
    alibi: bool
    max_block: int | None
    interpret: Any


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What a kernel is made for, beside the case.

    Attributes:
      lanes: B K.
      heads: K.
      places: arrays of positions a row of the batch: 1, or K.
      slots: S.
      head_dim: H.
      q_blocks: blocks of rows.
      k_blocks: blocks of slots.
      block: slots a block.
      stages: blocks of K, and of V, in shared memory.
      packed: whether K and V are whole numbers with scales.
      held: bytes of a slot of K where they are, else H.
      scale_type: of the scales, where there are any.
    """

    lanes: int
    heads: int
    places: int
    slots: int
    head_dim: int
    q_blocks: int
    k_blocks: int
    block: int
    stages: int
    packed: bool
    held: int
    scale_type: Any


@functools.partial(with_derivative_of, xla.prefill_attention)
def prefill_attention(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array,
    *, scale: float, window: int | None, sinks: int, num_slots: Array | None,
    slopes: Array | None = None, soft_cap: float | None = None, max_block: int | None = None,
    interpret: Any = None,
) -> tuple[Array, Array]:  # fmt: skip
    """See `api.prefill_attention`.

    `max_block` bounds the slots a block; None is what was measured to be best, or the default.
    `interpret`, parameters of Pallas, runs the kernel without a GPU.
    """
    refuse(q, keys=parts_of(k)[0], values=parts_of(v)[0])
    k_pos = used_positions(k_pos, num_slots)
    case = _Case(scale, window, sinks, soft_cap, slopes is not None, max_block, interpret)
    return _attend(case, q, k, v, q_pos, k_pos, slopes)


def _attend(
    case: _Case, q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array, slopes: Array | None
) -> tuple[Array, Array]:
    (k, k_scale), (v, v_scale) = parts_of(k), parts_of(v)
    scales = [x for x in (k_scale, v_scale) if x is not None]
    b, t, n, h = q.shape
    heads, slots = k.shape[1], k.shape[2]
    group, lanes = n // heads, b * heads
    most = case.max_block or tuned.max_block("prefill", "mosaic_gpu", k.dtype, h, group, slots)
    block, stages = block_shape(h, bool(scales), most or MAX_BLOCK)
    k_pos = slot_positions(k_pos, lanes, block)
    padding = -(t * group) % ROWS
    q_pos = jnp.pad(jnp.repeat(q_pos, group, axis=1), ((0, 0), (0, padding)), constant_values=-1)
    shape = _Shape(
        lanes=lanes, heads=heads, places=k_pos.shape[1], slots=slots, head_dim=h,
        q_blocks=q_pos.shape[1] // ROWS, k_blocks=k_pos.shape[2] // block,
        block=block, stages=stages, packed=bool(scales), held=k.shape[-1],
        scale_type=scales[0].dtype if scales else None,
    )  # fmt: skip
    if 4 * b * shape.places * shape.q_blocks * shape.k_blocks > TABLE_BYTES:
        raise NotImplementedError(
            f"{b} rows of {t} queries over {slots} slots with {shape.places} position arrays each "
            "have more blocks than can be listed"
        )
    todo = visits(*seen_blocks(q_pos, k_pos, ROWS, block, case.sinks, case.window))

    rows = (q * jnp.asarray(case.scale, q.dtype)).astype(jnp.bfloat16)
    rows = jnp.moveaxis(rows.reshape(b, t, heads, group, h), 1, 2).reshape(lanes, t * group, h)
    rows = jnp.pad(rows, ((0, 0), (0, padding), (0, 0)))
    steep = []
    if slopes is not None:
        steep = [jnp.pad(jnp.tile(slopes.reshape(heads, group), (1, t)), ((0, 0), (0, padding)))]

    out, lse = _call(case, shape)(
        rows, q_pos, all_slots(k, block), all_slots(v, block),
        k_pos.reshape(b * shape.places, -1),
        *(x.reshape(-1) for x in (*todo, *ends(q_pos, ROWS))),
        *(slot_scales(x, block) for x in scales), *steep,
    )  # fmt: skip
    out = jnp.moveaxis(out[:, : t * group].reshape(b, heads, t, group, h), 2, 1)
    lse = jnp.moveaxis(lse[:, : t * group].reshape(b, heads, t, group), 2, 1)
    return out.reshape(b, t, n, h).astype(q.dtype), lse.reshape(b, t, n)


def block_shape(head_dim: int, packed: bool, most: int) -> tuple[int, int]:
    """Slots a block, `most` at most, and stages."""
    block = min(most, 64 if head_dim > 64 else 128)
    stage = 2 * block * head_dim + 12 * block if packed else 4 * block * head_dim + 4 * block
    fixed = 2 * ROWS * (head_dim + block) + (4 << 10) + (4 * block * head_dim if packed else 0)
    # Two to a core: one computes while the other waits.
    together = 2 if fixed + 2 * stage <= SHARED_BYTES // 2 else 1
    return block, min(MAX_STAGES, (SHARED_BYTES // together - fixed) // stage)


def _call(case: _Case, shape: _Shape) -> Any:
    """The kernel as a function of arrays."""
    h, block, stages = shape.head_dim, shape.block, shape.stages
    numbers = held_type(shape.held, h, shape.packed)
    scratch: dict[str, Any] = dict(
        q_smem=plgpu.SMEM((ROWS, h), jnp.bfloat16),
        q_pos_smem=plgpu.SMEM((ROWS,), jnp.int32),
        k_smem=plgpu.SMEM((stages, block, shape.held), numbers),
        v_smem=plgpu.SMEM((stages, block, shape.held), numbers),
        k_pos_smem=plgpu.SMEM((stages, block), jnp.int32),
        weights_smem=plgpu.SMEM((ROWS, block), jnp.bfloat16),
        lse_smem=plgpu.SMEM((ROWS,), jnp.float32),
        q_there=plgpu.Barrier(num_arrivals=2 + case.alibi),
        k_there=plgpu.Barrier(num_arrivals=2 + 2 * shape.packed, num_barriers=stages),
        v_there=plgpu.Barrier(num_barriers=stages),
    )
    if shape.packed:
        scratch["k_scale_smem"] = plgpu.SMEM((stages, block), shape.scale_type)
        scratch["v_scale_smem"] = plgpu.SMEM((stages, block), shape.scale_type)
        scratch["wide_smem"] = plgpu.SMEM((2, block, h), jnp.bfloat16)
    if case.alibi:
        scratch["slopes_smem"] = plgpu.SMEM((ROWS,), jnp.float32)
    return plgpu.kernel(
        functools.partial(_kernel, case, shape),
        out_type=[
            jax.ShapeDtypeStruct((shape.lanes, shape.q_blocks * ROWS, h), jnp.bfloat16),
            jax.ShapeDtypeStruct((shape.lanes, shape.q_blocks * ROWS), jnp.float32),
        ],
        scratch_types=scratch,
        grid=(shape.lanes, shape.q_blocks),
        grid_names=("lane", "query"),
        compiler_params=plgpu.CompilerParams(
            approx_math=True,  # to 2^-22, of numbers that are rounded to bfloat16
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
        ),
        interpret=case.interpret,
        kernel_name="prefill_attention",
    )


def _kernel(
    case: _Case, shape: _Shape, q_ref: Any, q_pos_ref: Any, k_ref: Any, v_ref: Any, k_pos_ref: Any,
    order_ref: Any, whole_ref: Any, count_ref: Any, first_ref: Any, last_ref: Any, *others: Any,
    q_smem: Any, q_pos_smem: Any, k_smem: Any, v_smem: Any, k_pos_smem: Any, weights_smem: Any,
    lse_smem: Any, q_there: Any, k_there: Any, v_there: Any, slopes_smem: Any = None,
    k_scale_smem: Any = None, v_scale_smem: Any = None, wide_smem: Any = None,
) -> None:  # fmt: skip
    """One block of rows of one KV head, and every block of slots that any of them sees.

    Args:
      case: what is static.
      shape: what is, of the arrays.
      q_ref: [B K, rows, H].
      q_pos_ref: [B, rows].
      k_ref: [B K S, H].
      v_ref: [B K S, H].
      k_pos_ref: [B P, slots].
      order_ref: blocks of slots to visit, [B P q_blocks k_blocks].
      whole_ref: how many of the first are seen whole, [B P q_blocks].
      count_ref: how many there are, [B P q_blocks].
      first_ref: first position of a block of rows, [B q_blocks].
      last_ref: last position, [B q_blocks].
      *others: where packed, scales of K and of V, [B K, slots]; with slopes, [K, rows]; then what
        goes out: the output [B K, rows, H] and lse [B K, rows].
      q_smem: the queries, and at the end the output.
      q_pos_smem: their positions.
      k_smem: stages of K.
      v_smem: stages of V.
      k_pos_smem: stages of positions.
      weights_smem: the weights of one block.
      lse_smem: the end's log-sum-exp.
      q_there: queries, positions and slopes have arrived.
      k_there: K and positions of a stage have arrived.
      v_there: V of a stage has arrived.
      slopes_smem: the slopes of these rows.
      k_scale_smem: stages of scales, where packed.
      v_scale_smem: stages of scales, where packed.
      wide_smem: a block of K and one of V as bfloat16, where packed.
    """
    scale_refs = others[: 2 * shape.packed]
    slopes_ref = others[2 * shape.packed] if case.alibi else None
    out_ref, lse_ref = others[-2:]
    block, h, stages = shape.block, shape.head_dim, shape.stages
    width = 64 if h == 256 else h  # of V at a time: more would not fit the registers
    lane = lax.axis_index("lane")
    query = shape.q_blocks - 1 - lax.axis_index("query")  # the last queries see the most
    row, head = lax.div(lane, shape.heads), lax.rem(lane, shape.heads)
    place = lax.div(lane, shape.heads // shape.places)
    table = place * shape.q_blocks + query
    whole, count = whole_ref[table], count_ref[table]
    first, last = (ref[row * shape.q_blocks + query] for ref in (first_ref, last_ref))
    begin = lax.div(lane * shape.slots, TILE) * TILE

    def start(step: Array) -> Array:
        """The first slot of what is visited then."""
        return order_ref[table * shape.k_blocks + step] * block

    def fetch_k(at: Array, stage: Array) -> None:
        slots = pl.ds(pl.multiple_of(begin + at, TILE), block)
        plgpu.copy_gmem_to_smem(k_ref.at[slots], k_smem.at[stage], k_there.at[stage])

    def fetch_v(at: Array, stage: Array) -> None:
        slots = pl.ds(pl.multiple_of(begin + at, TILE), block)
        positions = k_pos_ref.at[place, pl.ds(pl.multiple_of(at, block), block)]
        plgpu.copy_gmem_to_smem(positions, k_pos_smem.at[stage], k_there.at[stage])
        for ref, smem in zip(scale_refs, (k_scale_smem, v_scale_smem), strict=False):
            scales = ref.at[lane, pl.ds(pl.multiple_of(at, block), block)]
            plgpu.copy_gmem_to_smem(scales, smem.at[stage], k_there.at[stage])
        plgpu.copy_gmem_to_smem(v_ref.at[slots], v_smem.at[stage], v_there.at[stage])

    rows = pl.ds(pl.multiple_of(query * ROWS, ROWS), ROWS)
    plgpu.copy_gmem_to_smem(q_ref.at[lane, rows], q_smem, q_there)
    plgpu.copy_gmem_to_smem(q_pos_ref.at[row, rows], q_pos_smem, q_there)
    if slopes_ref is not None:
        plgpu.copy_gmem_to_smem(slopes_ref.at[head, rows], slopes_smem, q_there)
    for ahead in range(stages):

        @pl.when(ahead < count)
        def _(ahead: int = ahead) -> None:
            at = start(jnp.int32(ahead))
            fetch_k(at, jnp.int32(ahead))
            fetch_v(at, jnp.int32(ahead))

    plgpu.barrier_wait(q_there)

    def visit(masked: bool, step: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        top, total, *sums = carry
        stage = lax.rem(step, jnp.int32(stages))
        ahead = start(jnp.minimum(step + stages, count - 1))  # asked for before it is needed
        plgpu.barrier_wait(k_there.at[stage])
        keys, values = k_smem.at[stage], v_smem.at[stage]
        if shape.packed:
            keys = widened(keys, wide_smem.at[0])
        scores = product(q_smem, keys.T)

        @pl.when(step + stages < count)
        def _() -> None:
            fetch_k(ahead, stage)

        if shape.packed:
            scores = scores * across(k_scale_smem[stage].astype(jnp.float32), ROWS)
        q_pos, k_pos = down(q_pos_smem[...], block), across(k_pos_smem[stage], ROWS)
        steep = down(slopes_smem[...], block) if case.alibi else None
        scores = bend(scores, q_pos - k_pos, steep, case.soft_cap)
        seen = visible(q_pos, k_pos, case.sinks, case.window) if masked else None
        if seen is not None:
            scores = jnp.where(seen, scores, -jnp.inf)
        higher = jnp.maximum(top, jnp.max(scores, axis=1))
        base = jnp.where(higher == -jnp.inf, 0.0, higher)  # no visible slot yet
        shrink = jnp.exp2((top - base) * LOG2E)
        weights = jnp.exp2(scores * LOG2E - down(base * LOG2E, block))
        total = total * shrink + jnp.sum(weights, axis=1)
        if shape.packed:
            weights = weights * across(v_scale_smem[stage].astype(jnp.float32), ROWS)
            if seen is not None:  # the scale of a hidden slot may be NaN
                weights = jnp.where(seen, weights, 0.0)
        weights_smem[...] = weights.astype(jnp.bfloat16)
        plgpu.barrier_wait(v_there.at[stage])
        if shape.packed:
            values = widened(values, wide_smem.at[1])
        elif masked:
            # A weight of 0 hides any number, but not a NaN or an infinity that a slot beyond the
            # slab, or one never written, may hold.
            shown = reached(first, last, k_pos_smem[stage], case.sinks, case.window)
            for at in range(0, h, width):
                v = v_smem[stage, :, pl.ds(at, width)]
                v_smem[stage, :, pl.ds(at, width)] = jnp.where(
                    down(shown, width), v, jnp.zeros_like(v)
                )
        plgpu.commit_smem()
        for part, at in enumerate(range(0, h, width)):
            fresh = product(weights_smem, values.at[:, pl.ds(at, width)])
            sums[part] = sums[part] * down(shrink, width) + fresh

        @pl.when(step + stages < count)
        def _() -> None:
            fetch_v(ahead, stage)

        return higher, total, *sums

    zeros = jnp.zeros((ROWS,), jnp.float32)
    empty = [jnp.zeros((ROWS, width), jnp.float32)] * (h // width)
    carry = zeros - jnp.inf, zeros, *empty
    carry = lax.fori_loop(0, whole, functools.partial(visit, False), carry)
    top, total, *sums = lax.fori_loop(whole, count, functools.partial(visit, True), carry)
    # Padding has seen the blocks that all others see whole.
    there = (q_pos_smem[...] >= 0) & (total != 0.0)
    divisor = jnp.where(there, total, 1.0)
    for part, at in enumerate(range(0, h, width)):
        out = jnp.where(down(there, width), sums[part] / down(divisor, width), 0.0)
        q_smem[:, pl.ds(at, width)] = out.astype(jnp.bfloat16)
    lse_smem[...] = jnp.where(there, jnp.log(total) + top, -jnp.inf)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_smem, out_ref.at[lane, rows])
    plgpu.copy_smem_to_gmem(lse_smem, lse_ref.at[lane, rows])
    plgpu.wait_smem_to_gmem(0)
