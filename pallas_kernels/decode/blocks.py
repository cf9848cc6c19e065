# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What kernels over blocks of slots have in common: which blocks to visit, how parts merge."""

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


def merge(out: Array, lse: Array, axis: int) -> tuple[Array, Array]:
    """Attention over all keys, from attention over disjoint parts of them.

    Args:
      out: [..., H] with an axis of parts, each normalised over its own keys, 0 where it sees none.
      lse: float32 [...], -inf where a part sees no key.
      axis: the parts, not negative.

    Returns:
      out [..., H] and lse [...] without that axis, both float32; zeros and -inf where no part sees
      a key.
    """
    top = jnp.max(lse, axis=axis, keepdims=True)
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(lse - top)
    total = jnp.sum(weights, axis=axis, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    summed = jnp.sum(out.astype(jnp.float32) * weights[..., None], axis=axis)
    return summed, jnp.squeeze(jnp.log(total) + top, axis)
