# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention mass as one Hopper kernel, which visits only the blocks that are seen.

A block of threads keeps the keys of a block of slots in shared memory, for one query head, while
the blocks of queries that see any of them stream through. Slots are the rows of the product, and
queries its columns, so that a sum over the queries stays within few threads.
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
from pallas_kernels.gpu import (
    LOG2E,
    MAX_STAGES,
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
    to_slots,
    widened,
)
from pallas_kernels.score_bias import bend
from pallas_kernels.slots import Slots, parts_of
from pallas_kernels.visibility import used_positions, visible
from pallas_kernels.visits import seen_blocks, visits

MAX_BLOCK = 128  # slots: more, and their scores would not fit the registers
TALL = 64  # queries a block


@dataclasses.dataclass(frozen=True)
class _Case:
    """What a kernel is made for.

    Attributes:
      lanes: B N, rows of the batch times query heads.
      heads: N.
      group: query heads a KV head.
      places: arrays of positions a row of the batch: 1, or K.
      slots: S.
      head_dim: H.
      q_blocks: blocks of queries.
      k_blocks: blocks of slots.
      block: slots a block.
      stages: blocks of queries in shared memory.
      soft_cap: see `bend`.
      alibi: whether there are slopes.
      packed: whether K is whole numbers with scales.
      held: bytes of a slot of K where it is, else H.
      scale_type: of the scales, where there are any.
    """

    lanes: int
    heads: int
    group: int
    places: int
    slots: int
    head_dim: int
    q_blocks: int
    k_blocks: int
    block: int
    stages: int
    soft_cap: float | None
    alibi: bool
    packed: bool
    held: int
    scale_type: Any


def attention_mass(
    q: Array, lse: Array, k: Slots, q_pos: Array, k_pos: Array,
    *, scale: float, num_slots: Array | None, slopes: Array | None = None,
    soft_cap: float | None = None, max_block: int | None = None, interpret: Any = None,
) -> Array:  # fmt: skip
    """See `api.attention_mass`.

    `max_block` bounds the slots a block; None is what was measured to be best, or the default.
    `interpret`, parameters of Pallas, runs the kernel without a GPU.
    """
    k, k_scale = parts_of(k)
    b, t, n, h = q.shape
    heads, slots = k.shape[1], k.shape[2]
    refuse(q, keys=k)
    most = max_block or tuned.max_block("mass", "mosaic_gpu", k.dtype, h, n // heads, slots)
    block, stages = block_shape(h, k_scale is not None, most or MAX_BLOCK)
    k_pos = slot_positions(used_positions(k_pos, num_slots), b * heads, block)
    padding = -t % TALL
    q_pos = jnp.pad(q_pos, ((0, 0), (0, padding)), constant_values=-1)
    case = _Case(
        lanes=b * n, heads=n, group=n // heads, places=k_pos.shape[1], slots=slots, head_dim=h,
        q_blocks=q_pos.shape[1] // TALL, k_blocks=k_pos.shape[2] // block,
        block=block, stages=stages, soft_cap=soft_cap, alibi=slopes is not None,
        packed=k_scale is not None, held=k.shape[-1],
        scale_type=None if k_scale is None else k_scale.dtype,
    )  # fmt: skip
    if 4 * b * case.places * case.q_blocks * case.k_blocks > TABLE_BYTES:
        raise NotImplementedError(
            f"{b} rows of {t} queries over {slots} slots with {case.places} position arrays each "
            "have more blocks than can be listed"
        )
    some = seen_blocks(q_pos, k_pos, TALL, block, 0, None)[0].swapaxes(2, 3)
    todo = visits(some, jnp.zeros_like(some))

    rows = jnp.moveaxis((q * jnp.asarray(scale, q.dtype)).astype(jnp.bfloat16), 1, 2)
    rows = jnp.pad(rows.reshape(b * n, t, h), ((0, 0), (0, padding), (0, 0)))
    # A query that saw no key has lse -inf, and would make exp(score - lse) infinite.
    level = jnp.moveaxis(jnp.where(jnp.isneginf(lse), jnp.inf, lse), 1, 2).reshape(b * n, t)
    level = jnp.pad(level, ((0, 0), (0, padding)), constant_values=jnp.inf)
    more = [] if k_scale is None else [slot_scales(k_scale, block)]
    if slopes is not None:
        more.append(slopes)
    mass = _call(case, interpret)(
        rows, q_pos, level, all_slots(k, block), k_pos.reshape(b * case.places, -1),
        todo.order.reshape(-1), todo.count.reshape(-1), *more,
    )  # fmt: skip
    return to_slots(mass.reshape(b * heads, n // heads, -1), slots).reshape(b, n, slots)


def block_shape(head_dim: int, packed: bool, most: int) -> tuple[int, int]:
    """Slots a block, `most` at most, and stages of queries."""
    block = min(most, 64 if head_dim == 256 else 128)
    stage = TALL * (2 * head_dim + 8)
    fixed = (2 + packed) * block * head_dim + (8 + 4 * packed) * block + (4 << 10)
    # Two to a core: one computes while the other waits.
    together = 2 if fixed + 2 * stage <= SHARED_BYTES // 2 else 1
    return block, min(MAX_STAGES, (SHARED_BYTES // together - fixed) // stage)


def _call(case: _Case, interpret: Any) -> Any:
    """The kernel as a function of arrays."""
    h, block, stages = case.head_dim, case.block, case.stages
    numbers = held_type(case.held, h, case.packed)
    scratch: dict[str, Any] = dict(
        k_smem=plgpu.SMEM((block, case.held), numbers),
        k_pos_smem=plgpu.SMEM((block,), jnp.int32),
        q_smem=plgpu.SMEM((stages, TALL, h), jnp.bfloat16),
        q_pos_smem=plgpu.SMEM((stages, TALL), jnp.int32),
        level_smem=plgpu.SMEM((stages, TALL), jnp.float32),
        mass_smem=plgpu.SMEM((block,), jnp.float32),
        k_there=plgpu.Barrier(num_arrivals=2 + case.packed),
        q_there=plgpu.Barrier(num_arrivals=3, num_barriers=stages),
    )
    if case.packed:
        scratch["k_scale_smem"] = plgpu.SMEM((block,), case.scale_type)
        scratch["wide_smem"] = plgpu.SMEM((block, h), jnp.bfloat16)
    return plgpu.kernel(
        functools.partial(_kernel, case),
        out_type=jax.ShapeDtypeStruct((case.lanes, case.k_blocks * block), jnp.float32),
        scratch_types=scratch,
        grid=(case.lanes, case.k_blocks),
        grid_names=("lane", "column"),
        compiler_params=plgpu.CompilerParams(
            approx_math=True,  # to 2^-22, of scores that came of bfloat16
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
        ),
        interpret=interpret,
        kernel_name="attention_mass",
    )


def _kernel(
    case: _Case, q_ref: Any, q_pos_ref: Any, level_ref: Any, k_ref: Any, k_pos_ref: Any,
    order_ref: Any, count_ref: Any, *others: Any, k_smem: Any, k_pos_smem: Any, q_smem: Any,
    q_pos_smem: Any, level_smem: Any, mass_smem: Any, k_there: Any, q_there: Any,
    k_scale_smem: Any = None, wide_smem: Any = None,
) -> None:  # fmt: skip
    """One block of slots for one query head, and every block of queries that sees any of it.

    Args:
      case: what is the same for all.
      q_ref: [B N, T, H].
      q_pos_ref: [B, T].
      level_ref: lse, infinite for a query that counts for nothing, [B N, T].
      k_ref: [B K S, H].
      k_pos_ref: [B P, slots].
      order_ref: blocks of queries to visit, [B P k_blocks q_blocks].
      count_ref: how many there are, [B P k_blocks].
      *others: where packed, the scales [B K, slots]; with slopes, [N]; then what goes out,
        [B N, slots].
      k_smem: the keys.
      k_pos_smem: their positions.
      q_smem: stages of queries.
      q_pos_smem: stages of their positions.
      level_smem: stages of lse.
      mass_smem: the sums on their way out.
      k_there: keys and positions have arrived.
      q_there: all of a stage has arrived.
      k_scale_smem: the keys' scales, where packed.
      wide_smem: the keys as bfloat16, where packed.
    """
    slopes_ref = others[case.packed] if case.alibi else None
    out_ref = others[-1]
    block, stages = case.block, case.stages
    lane, column = lax.axis_index("lane"), lax.axis_index("column")
    row, head = lax.div(lane, case.heads), lax.rem(lane, case.heads)
    own = lax.div(lane, case.group)  # of B K
    place = lax.div(own, case.heads // case.group // case.places)
    table = place * case.k_blocks + column
    count = count_ref[table]
    start = column * block
    slots = pl.ds(pl.multiple_of(start, block), block)

    def block_of(step: Array) -> Array:
        return order_ref[table * case.q_blocks + step]

    def fetch(index: Array, stage: Array) -> None:
        rows = pl.ds(pl.multiple_of(index * TALL, TALL), TALL)
        there = q_there.at[stage]
        plgpu.copy_gmem_to_smem(q_ref.at[lane, rows], q_smem.at[stage], there)
        plgpu.copy_gmem_to_smem(q_pos_ref.at[row, rows], q_pos_smem.at[stage], there)
        plgpu.copy_gmem_to_smem(level_ref.at[lane, rows], level_smem.at[stage], there)

    begin = lax.div(own * case.slots, TILE) * TILE
    keys = pl.ds(pl.multiple_of(begin + start, TILE), block)

    @pl.when(count > 0)
    def _() -> None:
        plgpu.copy_gmem_to_smem(k_ref.at[keys], k_smem, k_there)
        plgpu.copy_gmem_to_smem(k_pos_ref.at[place, slots], k_pos_smem, k_there)
        if case.packed:
            plgpu.copy_gmem_to_smem(others[0].at[own, slots], k_scale_smem, k_there)

    for ahead in range(stages):

        @pl.when(ahead < count)
        def _(ahead: int = ahead) -> None:
            fetch(block_of(jnp.int32(ahead)), jnp.int32(ahead))

    @pl.when(count > 0)
    def _() -> None:
        plgpu.barrier_wait(k_there)
        if case.packed:
            widened(k_smem, wide_smem)

    matrix = wide_smem if case.packed else k_smem
    steep = None if slopes_ref is None else slopes_ref[head]

    def visit(step: Array, total: Array) -> Array:
        stage = lax.rem(step, jnp.int32(stages))
        ahead = block_of(jnp.minimum(step + stages, count - 1))  # asked for before it is needed
        plgpu.barrier_wait(q_there.at[stage])
        scores = product(matrix, q_smem.at[stage].T)
        if case.packed:
            scores = scores * down(k_scale_smem[...].astype(jnp.float32), TALL)
        q_pos, k_pos = across(q_pos_smem[stage], block), down(k_pos_smem[...], TALL)
        scores = bend(scores, q_pos - k_pos, steep, case.soft_cap)
        weights = jnp.exp2(scores * LOG2E - across(level_smem[stage] * LOG2E, block))
        weights = jnp.where(visible(q_pos, k_pos, 0, None), weights, 0.0)

        @pl.when(step + stages < count)
        def _() -> None:
            fetch(ahead, stage)

        return total + jnp.sum(weights, axis=1)

    mass_smem[...] = lax.fori_loop(0, count, visit, jnp.zeros((block,), jnp.float32))
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(mass_smem, out_ref.at[lane, slots])
    plgpu.wait_smem_to_gmem(0)
