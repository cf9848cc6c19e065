# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Slots as the GPU kernel counts them, and what it may know of each.

K and V are read as one matrix of all heads' slots, in whole tiles, so where S is no multiple of a
tile a head begins inside one and has its own shift.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

TILE = 8  # rows that lie together in shared memory, and so are copied together
HIDDEN, SEEN, ALL_SEEN = 0, 1, 2  # a slot, and one in a block whose slots are all seen


def from_tile(x: Array, lanes: int) -> Array:
    """What is said of each slot, as the kernel counts them from the first of a whole tile.

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
    """Scores [B * K, G, width] of the slots as the kernel counts them, to [B * K, G, S]."""
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


def marks(seen: Array, block: int) -> tuple[Array, Array]:
    """What the kernel may know of each slot, and which blocks hold any that is seen.

    Args:
      seen: bool [B, P, slots].
      block: slots a block.

    Returns:
      int32 [B, P, slots up to a whole block] and bool [B, P, blocks].
    """
    seen = whole_blocks(seen, block)
    blocks = seen.reshape(*seen.shape[:2], -1, block)
    each = jnp.where(jnp.all(blocks, axis=-1, keepdims=True), ALL_SEEN, blocks.astype(jnp.int32))
    return each.reshape(seen.shape), jnp.any(blocks, axis=-1)
