# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys and values as 4 bits with a scale a token: a quarter of the bytes of bfloat16, and a scale.

A few dimensions of a head are much larger than the others, in every token, and would take the range
of 15 numbers for themselves. So what is held are sums and differences of all dimensions, by
Hadamard's matrix, in which no dimension stands out (as in arXiv 2404.00456). Of queries the same
sums are taken, and of outputs: scores and results are those of the numbers that went in.

Two numbers lie in a byte, those of the two halves of a head, so that nothing is interleaved when
they are made wide. Arrays of bytes move, slot by slot, like any others, on every backend.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pallas_kernels.precision import einsum
from pallas_kernels.rounding import up_to_bfloat16

LARGEST = 7
ZERO = 8  # what a half byte holds for 0


class Int4(NamedTuple):
    """Sums as whole multiples of a scale that each token of each head has for itself.

    Attributes:
      values: uint8 [.., S, H / 2]: 8 more than sum i in the low half of byte i, and than sum
        i + H / 2 in the high one; see `hadamard`.
      scale: bfloat16 or float32 [.., S], not negative.
    """

    values: Array
    scale: Array


def quantise4(x: Array) -> Int4:
    """Numbers [.., S, H], H even: their sums rounded to the nearest of 15, by the largest of each.

    The scale is the next bfloat16 from a seventh of the largest sum of a token on. No sum is off by
    more than half a scale: 1 / 13.9 of that.
    """
    x = hadamard(x)
    scale = up_to_bfloat16(jnp.max(jnp.abs(x), axis=-1) / LARGEST)
    wide = scale.astype(jnp.float32)
    values = jnp.round(x / jnp.where(wide == 0, 1.0, wide)[..., None]).astype(jnp.int32) + ZERO
    half = x.shape[-1] // 2
    both = values[..., :half] | (values[..., half:] << 4)
    return Int4(both.astype(jnp.uint8), scale)


def hadamard(x: Array) -> Array:
    """Sums of the numbers [.., H] of a head, each number with one sign or the other: float32.

    They are H / P parts of P, the largest power of 2 that divides H. Done twice it is the numbers
    again, P times.
    """
    size = part_size(x.shape[-1])
    matrix = jnp.asarray(_matrix(size), jnp.float32)
    split = x.astype(jnp.float32).reshape(-1, size)
    return einsum("ri,io->ro", split, matrix).reshape(x.shape)


def part_size(head_dim: int) -> int:
    """P: see `hadamard`."""
    return head_dim & -head_dim


@functools.cache
def _matrix(size: int) -> tuple[tuple[int, ...], ...]:
    """Minus where the row's and the column's numbers share an odd number of bits."""
    return tuple(
        tuple((-1) ** (row & column).bit_count() for column in range(size)) for row in range(size)
    )


def unpacked(values: Array, dtype: DTypeLike) -> Array:
    """What the bytes [.., H / 2] hold: whole numbers [.., H]."""
    wide = values.astype(jnp.int32)
    halves = [(wide & 15) - ZERO, (wide >> 4) - ZERO]
    return jnp.concatenate(halves, axis=-1).astype(dtype)
