# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Mean and covariance of vectors that come a chunk at a time, sound in float32 however many."""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp
from jax import Array

from jaxkv.cache.exported import exportable
from jaxkv.core.typing import Queries
from pallas_kernels.precision import einsum


@exportable
@flax.struct.dataclass
class Moments:
    """What is known of the vectors of each head so far.

    Sums of squares are of differences to the mean and never of the vectors themselves, whose own
    squares may be so large that float32 has no digits left for the differences.

    Attributes:
      count: int32 [B], vectors.
      mean: float32 [B, N, H].
      spread: float32 [B, N, H, H], sum of the outer products of what differs from the mean.
    """

    count: Array
    mean: Array
    spread: Array

    def heads(self, order: Sequence[int]) -> Moments:
        """Of some heads."""
        at = jnp.asarray(order, jnp.int32)
        return Moments(self.count, self.mean[:, at], self.spread[:, at])

    @property
    def covariance(self) -> Array:
        """By the count, not one less: float32 [B, N, H, H]; zero where there is no vector."""
        return self.spread / jnp.maximum(self.count, 1).astype(jnp.float32)[:, None, None, None]


def no_moments(batch: int, heads: int, dim: int) -> Moments:
    """Of no vectors."""
    return Moments(
        jnp.zeros((batch,), jnp.int32),
        jnp.zeros((batch, heads, dim), jnp.float32),
        jnp.zeros((batch, heads, dim, dim), jnp.float32),
    )


def moments_of(x: Queries, valid: Array) -> Moments:
    """Of the vectors [B, T, N, H] where bool [B, T] says that there is one."""
    there = valid[:, :, None, None]
    count = jnp.sum(valid, axis=1, dtype=jnp.int32)
    one = 1 / jnp.maximum(count, 1).astype(jnp.float32)[:, None, None]
    off = jnp.where(there, x.astype(jnp.float32), 0)
    mean = jnp.zeros_like(off[:, 0])
    # The second turn takes away what rounding left of the mean.
    for _ in range(2):
        rest = jnp.sum(off, axis=1) * one
        off = jnp.where(there, off - rest[:, None], 0)
        mean = mean + rest
    return Moments(count, mean, einsum("btnh,btni->bnhi", off, off))


def joined(a: Moments, b: Moments) -> Moments:
    """Of the vectors of both (Chan, Golub and LeVeque 1979, equation 2.1)."""
    count = a.count + b.count
    share = b.count.astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)
    step = b.mean - a.mean
    weight = (a.count.astype(jnp.float32) * share)[:, None, None, None]
    between = einsum("bnh,bni->bnhi", step, step) * weight
    mean = a.mean + step * share[:, None, None]
    return Moments(count, mean, a.spread + b.spread + between)
