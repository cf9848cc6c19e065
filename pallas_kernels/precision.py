# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Products that mean the dtype they are given."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def einsum(subscripts: str, *operands: Array) -> Array:
    """`jnp.einsum` that accumulates in float32, and is real float32 for float32 operands.

    Accelerators take float32 products in bfloat16 or TF32 passes unless told otherwise: whoever
    asks for float32 would get a few digits. On a CPU this changes nothing.
    """
    exact = all(x.dtype == jnp.float32 for x in operands)
    precision = jax.lax.Precision.HIGHEST if exact else None
    return jnp.einsum(
        subscripts, *operands, precision=precision, preferred_element_type=jnp.float32
    )
