# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What the GPU kernel of decode attention may know of each slot."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from pallas_kernels.gpu import whole_blocks

HIDDEN, SEEN, ALL_SEEN = 0, 1, 2  # a slot, and one in a block whose slots are all seen


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
