# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Cases of decode attention for kernels, and what they are compared with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from seen import seen

from pallas_kernels import decode_attention

TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}
OPTIONS = dict(scale=1.0, window=None, sinks=0, q_sink=None)
STATIC = ("scale", "window", "sinks", "with_mass", "soft_cap")
XLA = jax.jit(functools.partial(decode_attention, implementation="xla"), static_argnames=STATIC)

Slab = tuple[int, int, int]  # K, S, H


def arrays(
    slab: Slab, rows: int, group: int, dtype: str, places: bool, sinks: int, window: int | None,
    seed: int, hidden: float = math.nan,
) -> tuple[Any, ...]:  # fmt: skip
    """Arguments of the op, and K and V with and without `hidden` in the slots no query may see."""
    heads, slots, h = slab
    rng = np.random.default_rng(seed)
    shapes = [(rows, heads * group, h)] * 2 + [(rows, heads, slots, h)] * 2
    # In numpy: hundreds of small programs would take longer than the kernel.
    q, q_sink, k, v = (rng.normal(size=shape).astype(jnp.dtype(dtype)) for shape in shapes)
    k_pos = rng.integers(-1, slots, (rows, heads if places else 1, slots)).astype(np.int32)
    k_pos[:, :, rng.integers(1, slots + 1) :] = -1  # what is not filled yet
    k_pos[:, :, :sinks] = np.arange(sinks)
    q_pos = rng.integers(slots // 2, slots, rows).astype(np.int32)
    q_pos[0] = -1 if rows > 1 else q_pos[0]  # a row that sees nothing
    there = seen(q_pos[:, None, None], k_pos, sinks, window)[..., None]
    clean, dirty = (
        tuple(jnp.asarray(np.where(there, x, np.asarray(fill, x.dtype))) for x in (k, v))
        for fill in (0, hidden)
    )
    q, q_sink, q_pos, k_pos = (jnp.asarray(x) for x in (q, q_sink, q_pos, k_pos))
    return q, q_sink, clean, dirty, q_pos, k_pos


def check(
    kernel: Callable[..., tuple[Array, ...]], slab: Slab, rows: int, group: int, dtype: str,
    places: bool, sinks: int, window: int | None, seed: int,
    *, two: bool, mass: bool, hidden: float = math.nan, **bends: Any,
) -> tuple[Array, ...]:  # fmt: skip
    """Asserts that a kernel gives what XLA gives, whatever hidden slots hold; gives its results."""
    q, q_sink, clean, dirty, q_pos, k_pos = arrays(
        slab, rows, group, dtype, places, sinks, window, seed, hidden
    )
    options = dict(
        scale=slab[2] ** -0.5, window=window, sinks=sinks, with_mass=mass,
        q_sink=q_sink if two else None, **bends,
    )  # fmt: skip
    expected = XLA(q, *clean, q_pos, k_pos, **options)
    actual = kernel(q, *dirty, q_pos, k_pos, **options)
    assert [(x.dtype, x.shape) for x in actual] == [(x.dtype, x.shape) for x in expected]
    for one, other in zip(actual, expected, strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(one, other, atol=tolerance, rtol=tolerance)
    return actual


def zeros(heads: int, slots: int, h: int, dtype: Any, group: int = 1) -> tuple[Array, ...]:
    """Arguments of the op for one row."""
    slab = jnp.zeros((1, heads, slots, h), dtype)
    q_pos, k_pos = jnp.zeros(1, jnp.int32), jnp.zeros((1, 1, slots), jnp.int32)
    return jnp.zeros((1, heads * group, h), dtype), slab, slab, q_pos, k_pos
