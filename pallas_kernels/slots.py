# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The forms in which ops take keys and values: numbers, or whole multiples of scales.

No op makes wide numbers of a whole slab: a scale is the same for all H dimensions of a token, so it
multiplies a score, or a weight, where it would have to multiply H numbers of the slab.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pallas_kernels.int4 import Int4, hadamard, part_size, unpacked
from pallas_kernels.int8 import Int8

Slots = Array | Int8 | Int4
INTEGERS = (jnp.int8, jnp.uint8)  # what `Int8` and `Int4` hold


def is_packed(x: Slots) -> bool:
    """Whether it has scales."""
    return isinstance(x, Int8 | Int4)


def parts_of(x: Slots) -> tuple[Array, Array | None]:
    """What a slab holds [.., S, ..], and its scales [.., S] as they lie, if it has any."""
    return (x.values, x.scale) if isinstance(x, Int8 | Int4) else (x, None)


def split_scale(x: Slots) -> tuple[Array, Array | None]:
    """What a slab holds [.., S, ..], and its scales, float32 [.., S], if it has any."""
    return (x.values, x.scale.astype(jnp.float32)) if isinstance(x, Int8 | Int4) else (x, None)


def numbers(x: Slots, dtype: DTypeLike) -> Array:
    """[.., S, H] without the scales: whole numbers where it has them."""
    if isinstance(x, Int4):
        return unpacked(x.values, dtype)
    return (x.values if isinstance(x, Int8) else x).astype(dtype)


def scaled(x: Slots) -> Array:
    """[.., S, H] as it is held, float32 with the scales where it has them: of `Int4` its sums."""
    if not isinstance(x, Int8 | Int4):
        return x
    return numbers(x, jnp.float32) * x.scale.astype(jnp.float32)[..., None]


def widen(x: Slots) -> Array:
    """What the numbers of a slab stand for: float32 [.., S, H] where it has scales."""
    return answered(scaled(x), x)


def asked(q: Array, k: Slots) -> Array:
    """Queries [.., H] for keys as they are held, whose scores are those of what they stand for."""
    if not isinstance(k, Int4):
        return q
    return (hadamard(q) / part_size(q.shape[-1])).astype(q.dtype)


def answered(out: Array, v: Slots) -> Array:
    """What mixtures [.., H] of values as they are held stand for."""
    if not isinstance(v, Int4):
        return out
    return (hadamard(out) / part_size(out.shape[-1])).astype(out.dtype)


def product_dtype(x: Slots, q: Array) -> jnp.dtype:
    """In what a product takes the numbers of a slab: their own, or the query's where packed.

    Both bfloat16 and float32 hold every int8 exactly.
    """
    return q.dtype if isinstance(x, Int8 | Int4) or x.dtype in INTEGERS else x.dtype
