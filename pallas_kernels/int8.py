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

from pallas_kernels.rounding import up_to_bfloat16

LARGEST = 127


class Int8(NamedTuple):
    """Numbers as whole multiples of a scale that each token of each head has for itself.

    Attributes:
      values: int8 [.., S, H].
      scale: bfloat16 or float32 [.., S], not negative.
    """

    values: Array
    scale: Array


def quantise(x: Array) -> Int8:
    """Numbers [.., S, H] rounded to the nearest of 255, by the largest of each token.

    The scale is the next bfloat16 from a 127th of the largest on: what is rounded are multiples of
    that, so that its few digits cost nothing but steps wider by at most 1 / 128. No number is off
    by more than half a scale: 1 / 252 of the largest of its token.
    """
    x = x.astype(jnp.float32)
    scale = up_to_bfloat16(jnp.max(jnp.abs(x), axis=-1) / LARGEST)
    wide = scale.astype(jnp.float32)
    values = jnp.round(x / jnp.where(wide == 0, 1.0, wide)[..., None])
    return Int8(values.astype(jnp.int8), scale)
