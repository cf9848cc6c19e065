# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Rounding that never makes a number smaller."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def up_to_bfloat16(x: Array) -> Array:
    """The least bfloat16 that is not below x, float32 and not negative."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    up = (bits + jnp.uint32(0xFFFF)) >> 16
    finite = jnp.isfinite(x)  # a NaN's bits would be anything's
    above = lax.bitcast_convert_type(up.astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(finite, above, x.astype(jnp.bfloat16))
