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


def with_sink(out: Array, lse: Array, logit: Array) -> Partial:
    """As `merge`, with a key that nobody sees: its value is 0 and its score is the same for all.

    Args:
      out: [..., H].
      lse: float32 [...].
      logit: that score, of as many axes as `lse`; broadcasts to it.

    Returns:
      out and lse, as `merge` does; lse is never -inf.
    """
    total = jnp.logaddexp(lse, logit.astype(jnp.float32))
    return (out.astype(jnp.float32) * jnp.exp(lse - total)[..., None]).astype(out.dtype), total


def merge_along(out: Array, lse: Array, axis: int) -> Partial:
    """As `merge`, of parts that are one array: a reduction, whatever their number.

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
