# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How a TPU keeps a slab in memory."""

from __future__ import annotations

import enum

from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint

LANES, SUBLANES = 128, 8  # of a tile


class Order(enum.Enum):
    """How the axes of a slab [B, K, S, H] lie in memory, the fastest last."""

    HEADS_SLOTS = "B K S H"
    HEADS_DIMS = "B K H S"
    SLOTS_HEADS = "B S K H"


def stored_order(shape: tuple[int, ...], itemsize: int) -> Order | None:
    """The order in which XLA keeps a slab on a TPU: the one that its tiles pad least.

    A kernel that reads another order gets a copy of the whole slab before it. None is an order
    that the kernel does not read, which only a slab with S no multiple of 8 can have.

    Args:
      shape: B, K, S, H.
      itemsize: bytes of a number.
    """
    rows, heads, slots, head_dim = shape

    def padding(size: int, tile: int) -> float:
        return -(-size // tile) * tile / size

    def down(size: int) -> float:  # padding of the axis along the sublanes: small ones tile finer
        return padding(size, min(SUBLANES, max(4 // itemsize, 1 << (size - 1).bit_length())))

    least = min(down(size) for size in (slots, heads, rows))
    if padding(slots, LANES) * down(head_dim) < padding(head_dim, LANES) * least:
        return Order.HEADS_DIMS
    if down(slots) == least:
        return Order.HEADS_SLOTS
    # The heads fold into the slots without a copy only where they fill whole tiles.
    return None if heads % SUBLANES else Order.SLOTS_HEADS


AXES = {
    Order.HEADS_SLOTS: (0, 1, 2, 3),
    Order.HEADS_DIMS: (0, 1, 3, 2),
    Order.SLOTS_HEADS: (0, 2, 1, 3),
}


def keep_order(slab: Array) -> Array:
    """On a TPU, holds a slab [B, K, S, H] that a loop carries to its stored order.

    XLA gives arguments their stored order, but in a loop the order that some operation likes best,
    be it one that runs once in ten steps: the slab is then copied at every step.
    """
    return lax.platform_dependent(slab, tpu=in_stored_order, default=lambda x: x)


def in_stored_order(slab: Array) -> Array:
    """As `keep_order`, in a program for a TPU."""
    order = stored_order(slab.shape, slab.dtype.itemsize)
    return slab if order is None else with_layout_constraint(slab, Layout(AXES[order]))
