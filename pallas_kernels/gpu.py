# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What the GPU kernels share: how they count slots, what fits, products of tensor cores.

K and V are read as one matrix of all heads' slots, in whole tiles, so where S is no multiple of a
tile a head begins inside one and has its own shift.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from pallas_kernels.int4 import ZERO
from pallas_kernels.slots import product_dtype

TILE = 8  # rows that lie together in shared memory, and so are copied together
ROWS = 64  # of a matrix product
MAX_STAGES = 4  # blocks in shared memory, of which all but one are on their way
SHARED_BYTES = 226 << 10  # of a core, less what two blocks of threads have reserved
TABLE_BYTES = 64 << 20  # for what says which blocks to visit
LOG2E = math.log2(math.e)


def refuse(q: Array, **arrays: Array) -> None:
    """Raises NotImplementedError for what no tensor core takes, or no kernel is made for.

    Args:
      q: queries [.., H].
      **arrays: numbers of slabs.
    """
    head_dim = q.shape[-1]
    for name, x in arrays.items():
        if product_dtype(x, q) != jnp.bfloat16:
            # Tensor cores take float32 as TF32, of 10 bits.
            raise NotImplementedError(
                f"{name} of {x.dtype} for queries of {q.dtype}: only bfloat16, or integers for that"
            )
    if len({x.dtype for x in arrays.values()}) > 1:
        raise NotImplementedError("keys and values are not of one type")
    if head_dim % 32 and any(x.dtype == jnp.uint8 for x in arrays.values()):
        raise NotImplementedError(f"heads of {head_dim} in int4: multiples of 32")
    if head_dim % 16 or head_dim > 128 and head_dim != 256:
        raise NotImplementedError(f"heads of {head_dim}: multiples of 16 up to 128, or 256")


def from_tile(x: Array, lanes: int) -> Array:
    """What is said of each slot, as a kernel counts them from the first of a whole tile.

    Args:
      x: [B, P, S], bool or numbers.
      lanes: B * K.

    Returns:
      [B, P, S], or [B, K, S + TILE - 1] where heads are shifted; False or 0 for other heads' slots.
    """
    b, _, slots = x.shape
    if slots % TILE == 0:
        return x
    x = jnp.broadcast_to(x, (b, lanes // b, slots)).reshape(lanes, slots)
    at = lax.broadcasted_iota(jnp.int32, (lanes, slots + TILE - 1), 1) - _shift(lanes, slots)
    inside = (at >= 0) & (at < slots)
    shifted = jnp.take_along_axis(x, jnp.clip(at, 0, slots - 1), axis=1)
    return jnp.where(inside, shifted, jnp.zeros((), x.dtype)).reshape(b, lanes // b, -1)


def to_slots(scores: Array, slots: int) -> Array:
    """Scores [B * K, G, width] of the slots as a kernel counts them, to [B * K, G, S]."""
    if slots % TILE == 0:
        return scores[..., :slots]
    at = lax.broadcasted_iota(jnp.int32, (len(scores), slots), 1) + _shift(len(scores), slots)
    at = jnp.broadcast_to(at[:, None], (*scores.shape[:2], slots))
    return jnp.take_along_axis(scores, at, axis=2)


def _shift(lanes: int, slots: int) -> Array:
    """How far into a tile each head begins, int32 [lanes, 1]."""
    return lax.broadcasted_iota(jnp.int32, (lanes, 1), 0) * (slots % TILE) % TILE


def whole_blocks(x: Array, block: int) -> Array:
    """[B, P, slots], and zeros or False up to a whole block."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[-1] % block)))


def slot_positions(k_pos: Array, lanes: int, block: int) -> Array:
    """Positions [B, P, S] as a kernel counts slots, in whole blocks: -1 for what is no slot."""
    return whole_blocks(from_tile(k_pos + 1, lanes), block) - 1


def slot_scales(scale: Array, block: int) -> Array:
    """Scales [B, K, S] as a kernel counts slots, in whole blocks: [B K, slots]."""
    lanes = scale.shape[0] * scale.shape[1]
    return whole_blocks(from_tile(scale, lanes), block).reshape(lanes, -1)


def all_slots(x: Array, block: int) -> Array:
    """[B, K, S, H] as one matrix of slots; copied only where it is no whole tiles, or no block."""
    x = x.reshape(-1, x.shape[-1])
    return jnp.pad(x, ((0, max(-len(x) % TILE, block - len(x))), (0, 0)))


def held_type(held: int, head_dim: int, packed: bool) -> DTypeLike:
    """Of what lies in shared memory of a slab: `held` of it a slot, whole numbers where packed."""
    if not packed:
        return jnp.bfloat16
    return jnp.int8 if held == head_dim else jnp.uint8


def widened(small: Any, wide: Any) -> Any:
    """Whole numbers of one block of shared memory as the bfloat16 of a product, in another.

    That holds every int8 exactly. Bytes of `Int4` are half as many as dimensions of a head.
    """
    half = small.shape[-1]
    if small.dtype == jnp.uint8:
        bits = small[...].astype(jnp.int32)
        for at, number in ((0, bits & 15), (half, bits >> 4)):
            wide[:, pl.ds(at, half)] = (number - ZERO).astype(jnp.float32).astype(wide.dtype)
    else:
        wide[...] = small[...].astype(wide.dtype)
    plgpu.commit_smem()
    return wide


def product(a: Any, b: Any) -> Array:
    """Of two matrices in shared memory, float32."""

    def run(total: Any) -> Array:
        plgpu.wgmma(total, a, b)
        return total[...]

    return pl.run_scoped(run, plgpu.WGMMAAccumulatorRef((a.shape[0], b.shape[1]), jnp.float32))


def down(column: Array, columns: int) -> Array:
    """[rows] as [rows, columns], which lie in registers as those of a product do.

    Left to itself jax finds the same, but for jax 0.10 a large kernel is too many choices.
    """
    column = plgpu.layout_cast(column, plgpu.Layout.WGMMA.reduce(1))
    return lax.broadcast_in_dim(column, (column.shape[0], columns), (0,))


def across(row: Array, rows: int) -> Array:
    """[columns] as [rows, columns]; see `down`."""
    row = plgpu.layout_cast(row, plgpu.Layout.WGMMA.reduce(0))
    return lax.broadcast_in_dim(row, (rows, row.shape[0]), (1,))
