# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Cases of attention mass for kernels, and what they are compared with."""

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

from pallas_kernels import attention_mass, prefill_attention

TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}
STATIC = ("scale", "soft_cap")
DEFINITION = jax.jit(
    functools.partial(attention_mass, implementation="reference"), static_argnames=STATIC
)
PREFILL = jax.jit(
    functools.partial(prefill_attention, implementation="reference"), static_argnames=STATIC
)

Slab = tuple[int, int, int]  # K, S, H


def arrays(
    slab: Slab, rows: int, count: int, group: int, dtype: str, places: bool, ordered: bool,
    seed: int,
) -> tuple[Any, ...]:  # fmt: skip
    """Arguments of the op, and its keys with NaN in the slots that no query may see."""
    heads, slots, h = slab
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(rows, count, heads * group, h)).astype(jnp.dtype(dtype))
    k = rng.normal(size=(rows, heads, slots, h)).astype(jnp.dtype(dtype))
    k_pos = np.tile(np.arange(slots, dtype=np.int32), (rows, heads if places else 1, 1))
    if not ordered:
        k_pos = rng.permuted(k_pos, axis=-1)
        k_pos[rng.random(k_pos.shape) < 0.2] = -1
    used = rng.integers(1, slots + 1)
    k_pos[:, :, used:] = -1
    q_pos = np.arange(count, dtype=np.int32) + rng.integers(0, slots, (rows, 1), np.int32)
    q_pos[np.arange(count) >= rng.integers(0, count + 1, (rows, 1))] = -1
    there = np.any(seen(q_pos[:, None, :, None], k_pos[:, :, None], 0, None), axis=2)
    dirty = np.where(there[..., None], k, np.asarray(math.nan, k.dtype))
    clean = np.where(there[..., None], k, np.zeros((), k.dtype))
    return *(jnp.asarray(x) for x in (q, clean, dirty, q_pos, k_pos)), jnp.int32(used)


def check(
    kernel: Callable[..., Array], slab: Slab, rows: int, count: int, group: int, dtype: str,
    places: bool, ordered: bool, seed: int, **bends: Any,
) -> None:  # fmt: skip
    """Asserts that a kernel gives what it is to, whatever hidden slots hold."""
    q, clean, dirty, q_pos, k_pos, used = arrays(
        slab, rows, count, group, dtype, places, ordered, seed
    )
    options = dict(scale=slab[2] ** -0.5, **bends)
    wide = q.astype(jnp.float32), clean.astype(jnp.float32)
    _, lse = PREFILL(*wide, wide[1], q_pos, k_pos, **options)
    expected = DEFINITION(wide[0], lse, wide[1], q_pos, k_pos, **options)
    actual = kernel(q, lse, dirty, q_pos, k_pos, num_slots=used, **options)
    assert actual.dtype == jnp.float32 and actual.shape == expected.shape
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=tolerance)
    total = np.sum(np.isfinite(lse), axis=1)
    np.testing.assert_allclose(np.sum(actual, axis=2), total, rtol=tolerance, atol=1e-4)
