# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A part of a pool: blocks that follow one another, as many in each row as it has."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

Span = tuple[Array, Array]  # int32 [B] twice: the first block, and the one after the last


def within(span: Span | None, k_pos: Array, blocks: int) -> Array:
    """Positions int32 [B, S] in the span's blocks of the `blocks` that there are, -1 elsewhere.

    Kernels visit what lies between the first and the last block in which there is something to see.
    """
    if span is None:
        return k_pos
    begin, end = (x[:, None] for x in span)
    block = jnp.arange(k_pos.shape[1], dtype=jnp.int32)[None] // (k_pos.shape[1] // blocks)
    return jnp.where((block >= begin) & (block < end), k_pos, -1)
