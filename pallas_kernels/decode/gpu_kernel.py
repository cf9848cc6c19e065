# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Decode attention as one Hopper kernel: K and V stream through shared memory once.

The slots are split among as many blocks of threads as the GPU holds at once, and XLA merges their
parts. Each keeps copies of the next blocks of K and V in flight while tensor cores work on one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.decode.gpu_slots import HIDDEN
from pallas_kernels.gpu import (
    LOG2E,
    MAX_STAGES,
    ROWS,
    SHARED_BYTES,
    TILE,
    across,
    down,
    held_type,
    product,
    widened,
)
from pallas_kernels.score_bias import bend

CORES = 132  # of an H100 or H200; on others the shares are a little uneven


@dataclasses.dataclass(frozen=True)
class Case:
    """What a kernel is made for.

    Attributes:
      slots: slots of the slab.
      heads: KV heads.
      places: arrays of marks a row of the batch: 1, or one a KV head.
      head_dim: H.
      rows: query heads a KV head, rounded up to a tile.
      block: slots a block.
      splits: blocks of threads that share a KV head.
      stages: blocks of K, and of V, in shared memory.
      with_mass: whether scores go out.
      packed: whether K and V are whole numbers with scales.
      held: bytes of a slot of K where they are, else H.
      scale_type: of the scales, where there are any.
      soft_cap: see `bend`.
      alibi: whether there are slopes.
      mixed: how many heads' slots lie mixed.
    """

    slots: int
    heads: int
    places: int
    head_dim: int
    rows: int
    block: int
    splits: int
    stages: int
    with_mass: bool
    packed: bool
    held: int
    scale_type: Any
    soft_cap: float | None
    alibi: bool
    mixed: int


def plan(
    *, lanes: int, heads: int, slots: int, group: int, head_dim: int, places: int,
    with_mass: bool, packed: bool, held: int, scale_type: Any, soft_cap: float | None,
    alibi: bool, mixed: int,
    most: int,
) -> Case:  # fmt: skip
    """How to go about a case: `lanes` is B K, `most` bounds the slots a block."""
    # Few dimensions leave registers for the scores of more slots, unless those go out as well.
    block = min(most, 64 if with_mass or head_dim > 64 else 128)
    stage = (2 * block * held + 12 * block) if packed else (4 * block * head_dim + 4 * block)
    fixed = 2 * ROWS * (head_dim + block) + (4 * ROWS * block if with_mass else 0) + (4 << 10)
    fixed += 4 * block * head_dim if packed else 0
    # Two to a core: one computes while the other waits.
    together = 2 if fixed + 2 * stage <= SHARED_BYTES // 2 else 1
    stages = min(MAX_STAGES, (SHARED_BYTES // together - fixed) // stage)
    return Case(
        slots=slots, heads=heads, places=heads if slots % TILE else places, head_dim=head_dim,
        rows=pl.cdiv(group, TILE) * TILE, block=block, stages=stages, with_mass=with_mass,
        packed=packed, held=held, scale_type=scale_type, soft_cap=soft_cap, alibi=alibi,
        mixed=mixed, splits=split_count(lanes, pl.cdiv(slots, block), together * CORES),
    )  # fmt: skip


def split_count(lanes: int, blocks: int, room: int) -> int:
    """Among how many to split each of `lanes`: the fewest that leave the least room idle.

    Args:
      lanes: rows of the batch times KV heads.
      blocks: blocks of slots, which are not split.
      room: blocks of threads that the GPU holds at once.
    """

    def idle(splits: int) -> float:
        used = lanes * splits / room
        return 1 - used / math.ceil(used)

    return min(range(1, min(blocks, max(room // lanes, 4)) + 1), key=idle)


def call(case: Case, lanes: int, width: int, interpret: Any) -> Any:
    """The kernel as a function of arrays.

    Args:
      case: what the kernel is made for.
      lanes: B * K.
      width: marks of a head.
      interpret: see `decode_attention`.
    """
    h, block, stages = case.head_dim, case.block, case.stages
    out_type = [
        jax.ShapeDtypeStruct((lanes, case.splits, case.rows, h), jnp.bfloat16),
        jax.ShapeDtypeStruct((lanes, case.splits, ROWS), jnp.float32),
    ]
    numbers = held_type(case.held, h, case.packed)
    scratch: dict[str, Any] = dict(
        q_smem=plgpu.SMEM((ROWS, h), jnp.bfloat16),
        k_smem=plgpu.SMEM((stages, block, case.held), numbers),
        v_smem=plgpu.SMEM((stages, block, case.held), numbers),
        marks_smem=plgpu.SMEM((stages, block), jnp.int32),
        weights_smem=plgpu.SMEM((ROWS, block), jnp.bfloat16),
        lse_smem=plgpu.SMEM((ROWS,), jnp.float32),
        q_there=plgpu.Barrier(),
        k_there=plgpu.Barrier(num_arrivals=2 + case.alibi + 2 * case.packed, num_barriers=stages),
        v_there=plgpu.Barrier(num_barriers=stages),
    )
    if case.packed:
        scratch["k_scale_smem"] = plgpu.SMEM((stages, block), case.scale_type)
        scratch["v_scale_smem"] = plgpu.SMEM((stages, block), case.scale_type)
        scratch["wide_smem"] = plgpu.SMEM((2, block, h), jnp.bfloat16)
    if case.mixed > 1:
        scratch["heads_smem"] = plgpu.SMEM((ROWS,), jnp.int32)
        scratch["heads_there"] = plgpu.Barrier()
    if case.alibi:
        scratch["far_smem"] = plgpu.SMEM((stages, block), jnp.float32)
        scratch["slopes_smem"] = plgpu.SMEM((ROWS,), jnp.float32)
        scratch["slopes_there"] = plgpu.Barrier()
    if case.with_mass:
        out_type.append(jax.ShapeDtypeStruct((lanes, case.rows, width), jnp.float32))
        scratch["scores_smem"] = plgpu.SMEM((ROWS, block), jnp.float32)
    return plgpu.kernel(
        functools.partial(_kernel, case),
        out_type=out_type,
        scratch_types=scratch,
        grid=(lanes, case.splits),
        grid_names=("lane", "split"),
        compiler_params=plgpu.CompilerParams(
            approx_math=True,  # to 2^-22, of numbers that are rounded to bfloat16
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
        ),
        interpret=interpret,
        kernel_name="decode_attention",
    )


def _kernel(
    case: Case, q_ref: Any, k_ref: Any, v_ref: Any, marks_ref: Any, first_ref: Any, last_ref: Any,
    *others: Any,
    q_smem: Any, k_smem: Any, v_smem: Any, marks_smem: Any, weights_smem: Any, lse_smem: Any,
    q_there: Any, k_there: Any, v_there: Any, scores_smem: Any = None,
    far_smem: Any = None, slopes_smem: Any = None, slopes_there: Any = None,
    k_scale_smem: Any = None, v_scale_smem: Any = None, wide_smem: Any = None,
    heads_smem: Any = None, heads_there: Any = None,
) -> None:  # fmt: skip
    """One of the splits of one KV head; every `splits`th block from the first with a visible slot.

    Args:
      case: what is the same for all.
      q_ref: [B K rows + ..., H].
      k_ref: [B K S, H].
      v_ref: [B K S, H].
      marks_ref: [B P, width].
      first_ref: first block with a visible slot, [B P].
      last_ref: last block with a visible slot, [B P].
      *others: where packed, scales of K and of V, [B K, width]; where heads are mixed, the head of
        each query [ROWS]; with slopes, distances [B P, width] and slopes [K, ROWS]; then what goes
        out: sums [B K, splits, rows, H], lse [B K, splits, ROWS], and with mass scores [B K, rows,
        width].
      q_smem: the queries, and at the end the output.
      k_smem: stages of K.
      v_smem: stages of V.
      marks_smem: stages of marks.
      weights_smem: the weights of one block.
      lse_smem: the end's log-sum-exp.
      q_there: queries have arrived.
      k_there: K and marks of a stage have arrived.
      v_there: V of a stage has arrived.
      scores_smem: scores on their way out, with mass.
      far_smem: stages of distances, with slopes.
      slopes_smem: the slopes of this head's queries.
      slopes_there: they have arrived.
      k_scale_smem: stages of scales, where packed.
      v_scale_smem: stages of scales, where packed.
      wide_smem: a block of K and one of V as bfloat16, where packed.
      heads_smem: the head of each query, where they are mixed.
      heads_there: they have arrived.
    """
    rest = list(others)
    scale_refs = [rest.pop(0) for _ in range(2 * case.packed)]
    heads_ref = rest.pop(0) if case.mixed > 1 else None
    far_ref, slopes_ref = (rest.pop(0), rest.pop(0)) if case.alibi else (None, None)
    out_ref, lse_ref, *scores_ref = rest
    block, h = case.block, case.head_dim
    width = 64 if h == 256 else h  # of V at a time: more would not fit the registers
    lane, split = lax.axis_index("lane"), lax.axis_index("split")
    place = lax.div(lane, case.heads // case.places)
    first = first_ref[place] + split
    steps = lax.div(jnp.maximum(last_ref[place] - first + case.splits, 0), case.splits)
    row = lax.div(lane * case.slots, TILE) * TILE

    def start(step: Array) -> Array:
        return (first + step * case.splits) * block

    def fetch_k(step: Array, stage: Array) -> None:
        rows = pl.ds(pl.multiple_of(row + start(step), TILE), block)
        plgpu.copy_gmem_to_smem(k_ref.at[rows], k_smem.at[stage], k_there.at[stage])

    def fetch_v(step: Array, stage: Array) -> None:
        rows = pl.ds(pl.multiple_of(row + start(step), TILE), block)
        marks = marks_ref.at[place, pl.ds(pl.multiple_of(start(step), block), block)]
        plgpu.copy_gmem_to_smem(marks, marks_smem.at[stage], k_there.at[stage])
        for ref, smem in zip(scale_refs, (k_scale_smem, v_scale_smem), strict=False):
            scales = ref.at[lane, pl.ds(pl.multiple_of(start(step), block), block)]
            plgpu.copy_gmem_to_smem(scales, smem.at[stage], k_there.at[stage])
        if far_ref is not None:
            far = far_ref.at[place, pl.ds(pl.multiple_of(start(step), block), block)]
            plgpu.copy_gmem_to_smem(far, far_smem.at[stage], k_there.at[stage])
        plgpu.copy_gmem_to_smem(v_ref.at[rows], v_smem.at[stage], v_there.at[stage])

    queries = pl.ds(pl.multiple_of(lane * case.rows, TILE), ROWS)
    plgpu.copy_gmem_to_smem(q_ref.at[queries], q_smem, q_there)
    if slopes_ref is not None:
        head = slopes_ref.at[lax.rem(lane, case.heads)]
        plgpu.copy_gmem_to_smem(head, slopes_smem, slopes_there)
    if heads_ref is not None:
        plgpu.copy_gmem_to_smem(heads_ref, heads_smem, heads_there)
    for ahead in range(case.stages):

        @pl.when(ahead < steps)
        def _(ahead: int = ahead) -> None:
            fetch_k(jnp.int32(ahead), jnp.int32(ahead))
            fetch_v(jnp.int32(ahead), jnp.int32(ahead))

    plgpu.barrier_wait(q_there)
    if case.alibi:
        plgpu.barrier_wait(slopes_there)
    if heads_ref is not None:
        plgpu.barrier_wait(heads_there)

    def visit(step: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        top, total, *sums = carry
        stage = lax.rem(step, jnp.int32(case.stages))
        plgpu.barrier_wait(k_there.at[stage])
        keys, values = k_smem.at[stage], v_smem.at[stage]
        if case.packed:
            keys = widened(keys, wide_smem.at[0])
        scores = product(q_smem, keys.T)

        @pl.when(step + case.stages < steps)
        def _() -> None:
            fetch_k(step + case.stages, stage)

        if case.packed:
            scores = scores * across(k_scale_smem[stage].astype(jnp.float32), ROWS)
        far, steep = jnp.int32(0), None
        if case.alibi:
            far = across(far_smem[stage], ROWS)
            steep = down(slopes_smem[...], block)
        scores = bend(scores, far, steep, case.soft_cap)
        mark = marks_smem[stage]
        seen = across(mark != HIDDEN, ROWS)
        if heads_ref is not None:
            seen = across(jnp.abs(mark) - 1, ROWS) == down(heads_smem[...], block)
        scores = jnp.where(seen, scores, -jnp.inf)
        higher = jnp.maximum(top, jnp.max(scores, axis=1))
        base = jnp.where(higher == -jnp.inf, 0.0, higher)  # no visible slot yet
        shrink = jnp.exp2((top - base) * LOG2E)
        weights = jnp.exp2(scores * LOG2E - down(base * LOG2E, block))
        total = total * shrink + jnp.sum(weights, axis=1)
        if case.packed:
            # The scale of a hidden slot may be NaN.
            v_scale = v_scale_smem[stage].astype(jnp.float32)
            weights = jnp.where(seen, weights * across(v_scale, ROWS), 0.0)
        weights_smem[...] = weights.astype(jnp.bfloat16)
        if case.with_mass:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            scores_smem[...] = scores
        plgpu.barrier_wait(v_there.at[stage])

        if case.packed:
            values = widened(values, wide_smem.at[1])
        else:
            # A weight of 0 hides any number, but not a NaN or an infinity, as a hidden slot may
            # hold.
            @pl.when(marks_smem[stage, 0] <= HIDDEN)
            def _() -> None:
                shown = down(marks_smem[stage] != HIDDEN, width)
                for at in range(0, h, width):
                    v = v_smem[stage, :, pl.ds(at, width)]
                    v_smem[stage, :, pl.ds(at, width)] = jnp.where(shown, v, jnp.zeros_like(v))

        plgpu.commit_smem()
        if case.with_mass:
            slots = pl.ds(pl.multiple_of(start(step), block), block)
            plgpu.copy_smem_to_gmem(
                scores_smem.at[pl.ds(0, case.rows)], scores_ref[0].at[lane, :, slots]
            )
        for part, at in enumerate(range(0, h, width)):
            fresh = product(weights_smem, values.at[:, pl.ds(at, width)])
            sums[part] = sums[part] * down(shrink, width) + fresh

        @pl.when(step + case.stages < steps)
        def _() -> None:
            fetch_v(step + case.stages, stage)

        return higher, total, *sums

    zeros = jnp.zeros((ROWS,), jnp.float32)
    empty = [jnp.zeros((ROWS, width), jnp.float32)] * (h // width)
    top, total, *sums = lax.fori_loop(0, steps, visit, (zeros - jnp.inf, zeros, *empty))
    divisor = jnp.where(total == 0.0, 1.0, total)
    for part, at in enumerate(range(0, h, width)):
        q_smem[:, pl.ds(at, width)] = (sums[part] / down(divisor, width)).astype(jnp.bfloat16)
    lse_smem[...] = jnp.log(total) + jnp.where(top == -jnp.inf, 0.0, top)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_smem.at[pl.ds(0, case.rows)], out_ref.at[lane, split])
    plgpu.copy_smem_to_gmem(lse_smem, lse_ref.at[lane, split])
    plgpu.wait_smem_to_gmem(0)
