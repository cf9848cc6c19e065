# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys and values as 4 bits with a scale a token: a quarter of the bytes of bfloat16, and a scale.

Two numbers lie in a byte, those of the two halves of a head, so that nothing is interleaved when
they are made wide. Arrays of bytes move, slot by slot, like any others, on every backend.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pallas_kernels.rounding import up_to_bfloat16

LARGEST = 7
ZERO = 8  # what a half byte holds for 0


class Int4(NamedTuple):
    """Numbers as whole multiples of a scale that each token of each head has for itself.

    Attributes:
      values: uint8 [.., S, H / 2]: 8 more than number i in the low half of byte i, and than number
        i + H / 2 in the high one.
      scale: bfloat16 or float32 [.., S], not negative.
    """

    values: Array
    scale: Array


def quantise4(x: Array) -> Int4:
    """Numbers [.., S, H], H even, rounded to the nearest of 15, by the largest of each token.

    The scale is the next bfloat16 from a seventh of the largest on. No number is off by more than
    half a scale: 1 / 13.9 of the largest of its token.
    """
    x = x.astype(jnp.float32)
    scale = up_to_bfloat16(jnp.max(jnp.abs(x), axis=-1) / LARGEST)
    wide = scale.astype(jnp.float32)
    values = jnp.round(x / jnp.where(wide == 0, 1.0, wide)[..., None]).astype(jnp.int32) + ZERO
    half = x.shape[-1] // 2
    both = values[..., :half] | (values[..., half:] << 4)
    return Int4(both.astype(jnp.uint8), scale)


def unpacked(values: Array, dtype: DTypeLike) -> Array:
    """What the bytes [.., H / 2] hold: whole numbers [.., H]."""
    wide = values.astype(jnp.int32)
    halves = [(wide & 15) - ZERO, (wide >> 4) - ZERO]
    return jnp.concatenate(halves, axis=-1).astype(dtype)
