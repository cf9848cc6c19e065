# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys and values as int8 with a scale a token, half the bytes of bfloat16.

No op makes wide numbers of a whole slab: a scale is the same for all H dimensions of a token, so it
multiplies a score, or a weight, where it would have to multiply H numbers of the slab.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

LARGEST = 127


class Int8(NamedTuple):
    """Numbers as whole multiples of a scale that each token of each head has for itself.

    Attributes:
      values: int8 [.., S, H].
      scale: float32 [.., S], not negative.
    """

    values: Array
    scale: Array


Slots = Array | Int8


def quantise(x: Array) -> Int8:
    """Numbers [.., S, H] rounded to the nearest of 255, by the largest of each token.

    No number is off by more than half a scale: 1 / 254 of the largest of its token.
    """
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / LARGEST
    values = jnp.round(x / jnp.where(scale == 0, 1.0, scale)[..., None])
    return Int8(values.astype(jnp.int8), scale)


def widen(x: Slots) -> Array:
    """What the numbers of a slab stand for: float32 [.., S, H] where they are int8."""
    return x.values.astype(jnp.float32) * x.scale[..., None] if isinstance(x, Int8) else x


def split_scale(x: Slots) -> tuple[Array, Array | None]:
    """The numbers of a slab [.., S, H], and their scales [.., S] if they have any."""
    return (x.values, x.scale) if isinstance(x, Int8) else (x, None)


def product_dtype(x: Array, q: Array) -> jnp.dtype:
    """In what a product takes the numbers of a slab: their own, or the query's where int8.

    Both bfloat16 and float32 hold every int8 exactly.
    """
    return q.dtype if x.dtype == jnp.int8 else x.dtype
