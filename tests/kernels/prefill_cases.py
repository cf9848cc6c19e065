# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Cases of prefill attention for kernels, and what they are compared with."""

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

from pallas_kernels import prefill_attention

TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}
OPTIONS = dict(scale=1.0, window=None, sinks=0)
STATIC = (*OPTIONS, "soft_cap")
DEFINITION = jax.jit(
    functools.partial(prefill_attention, implementation="reference"), static_argnames=STATIC
)

Slab = tuple[int, int, int]  # K, S, H


def arrays(
    slab: Slab, rows: int, count: int, group: int, dtype: str, places: bool, sinks: int,
    window: int | None, ordered: bool, seed: int, hidden: float = math.nan,
) -> tuple[Any, ...]:  # fmt: skip
    """Arguments of the op, and K and V with and without `hidden` in the slots no query may see."""
    heads, slots, h = slab
    rng = np.random.default_rng(seed)
    shapes = [(rows, count, heads * group, h)] + [(rows, heads, slots, h)] * 2
    # In numpy: hundreds of small programs would take longer than the kernel.
    q, k, v = (rng.normal(size=shape).astype(jnp.dtype(dtype)) for shape in shapes)
    k_pos = np.tile(np.arange(slots, dtype=np.int32), (rows, heads if places else 1, 1))
    if not ordered:
        k_pos = rng.permuted(k_pos, axis=-1)
        k_pos[rng.random(k_pos.shape) < 0.2] = -1
    used = rng.integers(1, slots + 1)
    k_pos[:, :, used:] = -1  # what is not filled yet
    q_pos = np.arange(count, dtype=np.int32) + rng.integers(0, slots, (rows, 1), np.int32)
    lengths = rng.integers(0, count + 1, (rows, 1))
    q_pos[np.arange(count) >= lengths] = -1  # ragged, and maybe a row that is all padding
    there = seen(q_pos[:, None, :, None], k_pos[:, :, None], sinks, window)
    there = np.any(there, axis=2)[..., None]
    clean, dirty = (
        tuple(jnp.asarray(np.where(there, x, np.asarray(fill, x.dtype))) for x in (k, v))
        for fill in (0, hidden)
    )
    q, q_pos, k_pos, used = (jnp.asarray(x) for x in (q, q_pos, k_pos, np.int32(used)))
    return q, clean, dirty, q_pos, k_pos, used


def check(
    kernel: Callable[..., tuple[Array, ...]], slab: Slab, rows: int, count: int, group: int,
    dtype: str, places: bool, sinks: int, window: int | None, ordered: bool, seed: int,
    *, hidden: float = math.nan, **bends: Any,
) -> tuple[tuple[Array, ...], Array]:  # fmt: skip
    """Asserts that a kernel gives what it is to, whatever hidden slots hold; results and q_pos."""
    q, clean, dirty, q_pos, k_pos, used = arrays(
        slab, rows, count, group, dtype, places, sinks, window, ordered, seed, hidden
    )
    options = dict(scale=slab[2] ** -0.5, window=window, sinks=sinks, **bends)
    wide = (x.astype(jnp.float32) for x in (q, *clean))
    expected = DEFINITION(*wide, q_pos, k_pos, **options)
    actual = kernel(q, *dirty, q_pos, k_pos, num_slots=used, **options)
    assert actual[0].dtype == q.dtype and actual[1].dtype == jnp.float32
    for one, other in zip(actual, expected, strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(one, other, atol=tolerance, rtol=tolerance)
    return actual, q_pos
