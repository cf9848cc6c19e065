# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What the TPU kernels share: how large blocks may be, how queries lie in them, exact products."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.int4 import ZERO
from pallas_kernels.precision import einsum
from pallas_kernels.slots import INTEGERS, product_dtype
from pallas_kernels.tpu_layout import LANES

ROW_TILE = 16  # rows that a tile takes in any dtype that is served
VMEM_BYTES = 8 << 20  # for blocks and what is computed of them: half of the smallest limit
ROOM_BYTES = 14 << 20  # where all that a kernel needs is counted: most of the smallest limit
SMEM_BYTES = 256 << 10  # for what says which blocks to visit: a quarter of what a core has
DTYPES = (jnp.float32, jnp.bfloat16)


def check_dtypes(q: Array, *slabs: Array) -> None:
    """Refuses what a kernel does not take: slabs of floats, or all of them of the same integers."""
    kinds = {x.dtype for x in slabs}
    if {product_dtype(x, q) for x in slabs} - set(map(jnp.dtype, DTYPES)) or (
        kinds & set(map(jnp.dtype, INTEGERS)) and len(kinds) > 1
    ):
        raise NotImplementedError(
            f"queries, keys and values of {', '.join(str(x.dtype) for x in (q, *slabs))}: "
            "float32 or bfloat16, or keys and values of int8 or int4"
        )


def wide(block: Array, dtype: DTypeLike, dims: int) -> Array:
    """A block of a slab in the type that a product takes, whole numbers where they have scales.

    Args:
      block: as it lies in memory; of `Int4` half as many bytes as dimensions of a head.
      dtype: of the queries.
      dims: the axis of those.
    """
    if block.dtype == jnp.int8:
        return block.astype(dtype)
    if block.dtype != jnp.uint8:
        return block
    bits = block.astype(jnp.int32)
    halves = [half.astype(jnp.float32) - ZERO for half in (bits & 15, bits >> 4)]
    return jnp.concatenate([half.astype(dtype) for half in halves], axis=dims)


def even_block(slots: int, limit: int) -> int:
    """Slots a block: all of them, or a multiple of the lanes up to `limit`, in even shares."""
    if slots <= limit:
        return slots
    return pl.cdiv(pl.cdiv(slots, pl.cdiv(slots, limit)), LANES) * LANES


def share_rows(queries: int, group: int, limit: int) -> tuple[int, int]:
    """Queries and query heads a block, whose product is at most `limit`, which the lanes divide.

    Queries are whole tiles in number, all of them or a multiple of the lanes in even shares; query
    heads divide a group.
    """
    padded = pl.cdiv(queries, ROW_TILE) * ROW_TILE
    least = min(padded, LANES)
    together = max(x for x in range(1, group + 1) if group % x == 0 and x * least <= limit)
    return even_block(padded, max(limit // together // LANES, 1) * LANES), together


def by_head(x: Array, together: int, queries: int) -> Array:
    """[B, T, N, H] as [B, N / together, together, queries, H], zeros where there is no query."""
    b, t, n, h = x.shape
    x = jnp.moveaxis(x.reshape(b, t, n // together, together, h), 1, 3)
    return jnp.pad(x, [(0, 0)] * 3 + [(0, queries - t), (0, 0)])


def slopes_of(slopes: Array | None, together: int) -> list[Array]:
    """ALiBi's slopes [N] as a kernel's input [N / together, together, 1], if there are any."""
    return [] if slopes is None else [slopes.reshape(-1, together, 1)]


def by_token(scales: Sequence[Array | None]) -> list[Array]:
    """Scales of whole numbers [B, K, S] as a kernel's inputs [B K, 1, S], if there are any.

    They are float32: XLA would lay 16 rows of bfloat16 out for the one there is.
    """
    return [x.reshape(-1, 1, x.shape[2]) for x in scales if x is not None]


def filled_up(positions: Array, size: int) -> Array:
    """Positions [.., S] as [.., size]: nothing is in the rest."""
    padding = [(0, 0)] * (positions.ndim - 1) + [(0, size - positions.shape[-1])]
    return jnp.pad(positions, padding, constant_values=-1)


def in_hbm(x: Array) -> Array:
    """Keeps XLA from bringing a small slab to VMEM in full before the kernel starts."""
    return pltpu.with_memory_space_constraint(x, pltpu.HBM)


def product(subscripts: str, x: Array, y: Array) -> Array:
    """`einsum` whatever precision the user's defaults ask of bfloat16, which has only one here."""
    with jax.default_matmul_precision("default"):
        return einsum(subscripts, x, y)
