# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Writing tokens into a slab: what runs on a TPU against what runs elsewhere, and NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


@pytest.mark.parametrize("rows", [2, store.UNROLLED + 1])
def test_both_ways_of_writing_have_a_derivative(rows) -> None:
    """Of what stays, of what is written over, and of what is new; rows in a loop too."""
    rng = np.random.default_rng(rows)
    old, new = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((rows, 2, 12, 4), (rows, 3, 2, 4))
    )
    first = rng.integers(0, 9, rows)
    slots = jnp.asarray(first[:, None] + np.arange(3), jnp.int32)
    weight = rng.normal(size=old.shape).astype(np.float32)

    def total(old, new, way):
        return jnp.sum(way((old,), (new,), slots)[0] * weight)

    def chosen(old, new, slots):
        return (store.write(old[0], new[0], slots, consecutive=True),)

    for way in (store._write_runs, store._scatter, chosen):
        found = jax.jit(jax.grad(total, argnums=(0, 1)), static_argnums=2)(old, new, way)
        kept, written = weight.copy(), np.empty(new.shape, np.float32)
        for row, begin in enumerate(first):
            kept[row, :, begin : begin + 3] = 0
            written[row] = weight[row, :, begin : begin + 3].swapaxes(0, 1)
        np.testing.assert_allclose(found[0], kept, atol=1e-6)
        np.testing.assert_allclose(found[1], written, atol=1e-6)
