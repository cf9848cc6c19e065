# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What kernels over blocks of slots have in common: which blocks to visit."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def block_range(seen: Array, block: int) -> tuple[Array, Array]:
    """The first and last block with a visible slot, int32 [B * P]; past it and 0 if there is none.

    Args:
      seen: bool [B, P, S].
      block: slots a block.
    """
    slots = seen.shape[-1]
    at = lax.div(lax.broadcasted_iota(jnp.int32, seen.shape, 2), block)
    first = jnp.min(jnp.where(seen, at, -(-slots // block)), axis=-1)
    last = jnp.max(jnp.where(seen, at, 0), axis=-1)
    return first.reshape(-1), last.reshape(-1)
