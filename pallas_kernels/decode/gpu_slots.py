# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What the GPU kernel of decode attention may know of each slot."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from pallas_kernels.gpu import whole_blocks

HIDDEN = 0


def marks(seen: Array, owner: Array | None, block: int) -> tuple[Array, Array]:
    """What the kernel may know of each slot, and which blocks hold any that is seen.

    Args:
      seen: bool [B, P, slots].
      owner: int32 [B, slots], the head of each; None where that is no question.
      block: slots a block.

    Returns:
      int32 [B, P, slots up to a whole block]: 0 is hidden, others are 1 more than the owner, and
      negative in a block that has hidden slots too; and bool [B, P, blocks].
    """
    own = 1 if owner is None else whole_blocks(owner[:, None] + 1, block)
    seen = whole_blocks(seen, block)
    blocks = seen.reshape(*seen.shape[:2], -1, block)
    sign = jnp.where(jnp.all(blocks, axis=-1, keepdims=True), 1, -blocks.astype(jnp.int32))
    return sign.reshape(seen.shape) * own, jnp.any(blocks, axis=-1)
