# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Samplers against NumPy: which tokens they may draw, and how often they draw them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv import InputError
from jaxkv.generate.sampling import Greedy, Sample, make_sampler
from jaxkv.generate.state import row_keys

VOCAB = 11


def allowed(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float) -> set[int]:
    """Ids that may be drawn: the k likeliest, of them the fewest whose probability reaches p."""
    order = np.argsort(-logits, kind="stable")[:top_k]
    weights = np.exp((logits[order] - logits.max()) / temperature)
    weights /= weights.sum()
    kept, total = set(), 0.0
    for index, weight in zip(order, weights, strict=True):
        if total >= top_p:
            break
        kept.add(int(index))
        total += weight
    return kept


def draw(sampler, logits, count: int, seed: int = 0) -> np.ndarray:
    """Ids [count], each with its own key, from the same logits."""
    logits = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits)))
    return np.asarray(jax.jit(sampler.__call__)(row_keys(seed, count), logits))


@settings(deadline=None, max_examples=15)
@given(
    st.permutations(range(VOCAB)),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from([None, 1, 3, 99]),
    st.sampled_from([1e-6, 0.31, 0.77, 1.0]),
)
def test_only_the_kept_set_is_drawn_and_all_of_it(ranks, temperature, top_k, top_p) -> None:
    logits = 0.1 * np.asarray(ranks, np.float64)
    drawn = draw(Sample(temperature, top_k, top_p), logits, 600)
    assert set(drawn.tolist()) == allowed(logits, temperature, top_k, top_p)


@pytest.mark.parametrize("sampler", [Sample(0.7), Sample(2.0), Sample(1.0, 4), Sample(1.0, 8, 0.8)])
def test_draws_follow_the_softmax(sampler) -> None:
    logits = np.random.default_rng(1).normal(size=VOCAB)
    kept = sorted(allowed(logits, sampler.temperature, sampler.top_k, sampler.top_p))
    weights = np.exp(logits[kept] / sampler.temperature)
    expected = 4000 * weights / weights.sum()
    counts = np.bincount(draw(sampler, logits, 4000, seed=9), minlength=VOCAB)[kept]
    assert counts.sum() == 4000
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 30  # of at most 10 degrees of freedom: one in a thousand


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = jnp.asarray([[0.0, 3.0, 3.0], [1.0, 1.0, 1.0], [-5.0, -6.0, -4.0]])
    assert Greedy()(row_keys(0, 3), logits).tolist() == [1, 0, 2]


def test_a_tiny_temperature_is_greedy() -> None:
    """And not a draw among infinities."""
    logits = [5.0, 90.0, 80.0, -3.0]
    assert set(draw(Sample(1e-38), logits, 20).tolist()) == {1}
    assert set(draw(Sample(1e-38, 3, 0.9), logits, 20).tolist()) == {1}


def test_rows_draw_by_their_own_seed() -> None:
    assert jnp.array_equal(
        jax.random.key_data(row_keys(7, 3))[2], jax.random.key_data(row_keys(9, 1))[0]
    )
    for seed in (-1, 2**31 - 1, 10**30):
        assert row_keys(seed, 2).shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((-0.1,), "temperature is -0.1"),
        ((float("nan"),), "temperature is nan"),
        ((float("inf"),), "temperature is inf"),
        ((1.0, 0), "top-k is 0"),
        ((1.0, None, 0.0), "top-p is 0.0"),
        ((1.0, None, 1.5), "top-p is 1.5"),
        ((0.0, 5), "need a temperature above 0"),
        ((0.0, None, 0.5), "need a temperature above 0"),
    ],
)
def test_impossible_settings_are_refused(arguments, told) -> None:
    with pytest.raises(InputError, match=told):
        make_sampler(*arguments)
