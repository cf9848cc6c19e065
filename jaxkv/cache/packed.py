# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The forms in which keys and values may be held, by name."""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp
from jax import Array

from jaxkv.cache.exported import exportable
from jaxkv.cache.store import Packed
from jaxkv.core.errors import InputError
from pallas_kernels.int4 import Int4, quantise4
from pallas_kernels.int8 import Int8, quantise

NUMBERS = ("float32", "bfloat16")
PACKED = ("int8", "int4")
FORMS = NUMBERS + PACKED


@exportable
@flax.struct.dataclass
class Int8Store(Packed):
    """Whole multiples of a scale that each token of each head has for itself.

    Attributes:
      values: int8 [B, K, S, H].
      scale: bfloat16 [B, K, S].
    """

    values: Array
    scale: Array

    def pack(self, numbers: Array) -> Int8Store:
        """New keys or values; no number is off by more than 1 / 252 of its token's largest."""
        return Int8Store(*quantise(numbers))

    def slots(self) -> Int8:
        """As the ops read it."""
        return Int8(self.values, self.scale)


@exportable
@flax.struct.dataclass
class Int4Store(Packed):
    """Sums of a head's numbers as whole multiples of its token's own scale, two in a byte.

    Attributes:
      values: uint8 [B, K, S, H / 2]; see `pallas_kernels.Int4`.
      scale: bfloat16 [B, K, S].
    """

    values: Array
    scale: Array

    def pack(self, numbers: Array) -> Int4Store:
        """New keys or values; no sum is off by more than 1 / 13.9 of its token's largest."""
        return Int4Store(*quantise4(numbers))

    def slots(self) -> Int4:
        """As the ops read it."""
        return Int4(self.values, self.scale)


def zeros(shape: Sequence[int], form: str) -> Array | Packed:
    """Keys or values of no tokens, [.., S, H], in one of `FORMS`.

    Raises:
      InputError: two numbers of an odd H do not fill a byte.
    """
    *lead, width = shape
    scale = jnp.zeros(lead, jnp.bfloat16)
    if form == "int8":
        return Int8Store(jnp.zeros(shape, jnp.int8), scale)
    if form == "int4":
        if width % 2:
            raise InputError(
                f"heads of {width} dimensions; keys and values of int4 need an even number"
            )
        # Of bytes, zeros stand for the least number: with a scale of 0 they are zeros all the same.
        return Int4Store(jnp.zeros((*lead, width // 2), jnp.uint8), scale)
    return jnp.zeros(shape, form)


def token_bytes(head_dim: int, form: str) -> int:
    """Of the key or the value of a token of one head, with its scale."""
    scale = jnp.dtype(jnp.bfloat16).itemsize
    if form in PACKED:
        return {"int8": head_dim, "int4": -(-head_dim // 2)}[form] + scale
    return head_dim * jnp.dtype(form).itemsize


def plain(form: str) -> str:
    """In what numbers are held that are in no store: such as the queries of a window."""
    return form if form in NUMBERS else "float32"
