# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Writing tokens into a slab: what runs on a TPU against what runs elsewhere, and NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv.cache import store

RUNS = jax.jit(store._write_runs)
SCATTER = jax.jit(store._scatter)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([1, 3, 6]),
    places=st.sampled_from([1, 2]),
    size=st.sampled_from([1, 5, 20]),
    slots=st.sampled_from([3, 8, 17]),
    seed=st.integers(0, 2**31),
)
def test_both_ways_of_writing_agree_with_numpy(rows, places, size, slots, seed):
    """Runs that start anywhere, may be empty, and may reach beyond the last slot."""
    rng = np.random.default_rng(seed)
    old = (
        rng.normal(size=(rows, 2, slots, 4)).astype(np.float32),
        rng.normal(size=(rows, 2, slots, 4)).astype(np.float32),
        rng.integers(-1, 99, (rows, places, slots)).astype(np.int32),
    )
    new = (
        rng.normal(size=(rows, size, 2, 4)).astype(np.float32),
        rng.normal(size=(rows, size, 2, 4)).astype(np.float32),
        rng.integers(0, 99, (rows, size, 1)).astype(np.int32),
    )
    first, count = rng.integers(0, slots + 2, rows), rng.integers(0, size + 1, rows)
    index = np.arange(size)[None]
    at = np.where(index < count[:, None], np.minimum(first[:, None] + index, slots), slots)
    expected = [x.copy() for x in old]
    for row in range(rows):
        for token in range(size):
            if at[row, token] < slots:
                for x, y in zip(expected, new, strict=True):
                    x[row, :, at[row, token]] = y[row, token]
    old, new = jax.tree.map(jnp.asarray, (old, new))
    for write in (RUNS, SCATTER):
        for got, wanted in zip(write(old, new, jnp.asarray(at, jnp.int32)), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
