# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention results as a monoid: a partial output with its log-sum-exp merges with another."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

Partial = tuple[Array, Array]  # out [..., H], normalised over its own keys; lse [...], float32


def merge(*parts: Partial) -> Partial:
    """Attention over the union of disjoint key sets, from attention over each.

    Args:
      *parts: (out [..., H], lse [...]) per key set; lse is -inf, and out 0, where a set has no
        visible key.

    Returns:
      (out [..., H] in the dtype of the first part, lse [...] float32).
    """
    lse = parts[0][1]
    for _, other in parts[1:]:
        lse = jnp.logaddexp(lse, other)
    # Where no set has a visible key, lse is -inf and exp(-inf - -inf) would be NaN.
    finite = jnp.where(jnp.isneginf(lse), 0.0, lse)
    out = sum(o.astype(jnp.float32) * jnp.exp(part - finite)[..., None] for o, part in parts)
    return jnp.asarray(out).astype(parts[0][0].dtype), lse
