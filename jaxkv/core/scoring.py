# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How a model's layer scores a query against a key, where it is not by rotated products alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.core.typing import Rotation


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Scoring:
    """Stands where a policy takes a rotation: it rotates too, if the model does.

    Attributes:
      rotation: rotates (x [B, T, N, H], positions [B, T]); None for a model without.
      slopes: one per query head, ALiBi's (arXiv 2108.12409): slope times distance is taken from a
        score. Empty for a model without.
      soft_cap: scaled scores s become cap tanh(s / cap); None leaves them.
    """

    rotation: Rotation | None = None
    slopes: tuple[float, ...] = ()
    soft_cap: float | None = None

    def __call__(self, x: Array, positions: Array) -> Array:
        """Rotates heads [B, T, N, H] to positions [B, T]."""
        return x if self.rotation is None else self.rotation(x, positions)


def of_heads(rope: Rotation | None, heads: Sequence[int]) -> Rotation | None:
    """The scoring of some query heads."""
    if isinstance(rope, Scoring) and rope.slopes:
        return dataclasses.replace(rope, slopes=tuple(rope.slopes[head] for head in heads))
    return rope


class Bent(TypedDict):
    """Arguments of an op: `slopes` float32 [N] and `soft_cap`."""

    slopes: Array | None
    soft_cap: float | None


def bent(rope: Rotation | None) -> Bent:
    """What the ops of `pallas_kernels` are told of it."""
    if not isinstance(rope, Scoring):
        return {"slopes": None, "soft_cap": None}
    slopes = jnp.asarray(rope.slopes, jnp.float32) if rope.slopes else None
    return {"slopes": slopes, "soft_cap": rope.soft_cap}


def alibi_slopes(num_heads: int, most: float = 8.0) -> tuple[float, ...]:
    """ALiBi's slopes (arXiv 2108.12409, section 3): a geometric series down to 2^-most.

    Where heads are no power of two, the series of the next lower power comes first, then every
    second member of the next higher one's, as in the authors' code.

    Args:
      num_heads: N.
      most: the exponent of the smallest slope.
    """
    lower = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-most * (i + 1) / lower) for i in range(lower)]
    between = [2.0 ** (-most * (i + 0.5) / lower) for i in range(num_heads - lower)]
    return tuple(slopes + between)
