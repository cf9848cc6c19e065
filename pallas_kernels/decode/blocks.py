# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What kernels over blocks of slots have in common: which blocks to visit, how parts merge."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels import softmax


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
    out, lse = jnp.moveaxis(out.astype(jnp.float32), axis, 0), jnp.moveaxis(lse, axis, 0)
    while (half := out.shape[0] // 2) > 0:
        rest_out, rest_lse = out[2 * half :], lse[2 * half :]  # of an odd number the last waits
        first, second = slice(0, half), slice(half, 2 * half)
        both = softmax.merge((out[first], lse[first]), (out[second], lse[second]))
        out, lse = jnp.concatenate([both[0], rest_out]), jnp.concatenate([both[1], rest_lse])
    return out[0], lse[0]
