# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The merge of partial attention results."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.softmax import merge


def attend(scores: np.ndarray, values: np.ndarray):
    """float64 softmax attention of one query, and its log-sum-exp."""
    if not len(scores):
        return np.zeros(values.shape[1]), -np.inf
    top = scores.max()
    weights = np.exp(scores - top)
    return weights @ values / weights.sum(), np.log(weights.sum()) + top


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 100), st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_parts_merge_to_the_whole(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=sum(sizes)) * 30
    values = rng.normal(size=(sum(sizes), 3))
    cuts = np.cumsum([0, *sizes])
    parts = [attend(scores[a:b], values[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    out, lse = merge(*((jnp.asarray(o, jnp.float32), jnp.float32(n)) for o, n in parts))
    whole, expected = attend(scores, values)
    np.testing.assert_allclose(out, whole, atol=1e-5)
    np.testing.assert_allclose(lse, expected, rtol=1e-5)
