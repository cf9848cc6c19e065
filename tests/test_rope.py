# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Positions: exact at any length, and the scalings as published."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv.core.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling


def rotated(x: np.ndarray, position: int, freqs: np.ndarray) -> np.ndarray:
    """The textbook rotation of pairs (i, i + half), in float64."""
    angle = np.float64(position) * freqs
    half = len(freqs)
    a, b, rest = x[:half], x[half : 2 * half], x[2 * half :]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31 - 1), st.sampled_from([8, 16]), st.sampled_from([1e4, 1e5, 5e5]))
def test_equals_float64_at_every_int32_position(position: int, rotary: int, theta: float) -> None:
    x = np.random.default_rng(position).normal(size=16)
    rope = Rope(rotary, theta)
    got = rope(jnp.asarray(x, jnp.float32)[None, None, None], jnp.asarray([[position]], jnp.int32))
    freqs = theta ** (-np.arange(0, rotary, 2) / rotary)
    np.testing.assert_allclose(got[0, 0, 0], rotated(x, position, freqs), atol=2e-6)


@pytest.mark.parametrize("start", [0, 10_000, 4_000_000, 2_000_000_000])
@pytest.mark.parametrize("distance", [1, 1000])
def test_scores_depend_on_the_distance_alone(start: int, distance: int) -> None:
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 8, 64)), jnp.float32) for _ in range(2))
    rope = Rope(64, 1e5)

    def score(at: int):
        far = rope(q, jnp.asarray([[at + distance]], jnp.int32))
        return np.sum(np.asarray(far) * np.asarray(rope(k, jnp.asarray([[at]], jnp.int32))), -1)

    np.testing.assert_allclose(score(start), score(0), atol=1e-5)


def test_linear_scaling_divides_positions() -> None:
    plain, scaled = Rope(8).frequencies()[0], Rope(8, scaling=LinearScaling(4.0)).frequencies()[0]
    np.testing.assert_allclose(scaled, plain / 4)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones() -> None:
    # The published settings of Llama 3.1; inverse frequencies by the formula of its model card.
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    got, factor = Rope(128, 5e5, scaling).frequencies()
    assert factor == 1.0
    for i, freq in enumerate(5e5 ** (-np.arange(0, 128, 2) / 128)):
        wave = 2 * np.pi / freq
        if wave < 8192 / 4:
            expected = freq
        elif wave > 8192:
            expected = freq / 8
        else:
            smooth = (8192 / wave - 1) / 3
            expected = (1 - smooth) * freq / 8 + smooth * freq
        np.testing.assert_allclose(got[i], expected, rtol=1e-12)


def test_yarn_scaling_blends_and_warms_the_softmax() -> None:
    got, factor = Rope(64, 1e4, YarnScaling(4.0, 4096)).frequencies()
    plain = 1e4 ** (-np.arange(0, 64, 2) / 64)
    assert factor == pytest.approx(0.1 * np.log(4) + 1)
    np.testing.assert_allclose(got[0], plain[0])  # the fastest wave is kept
    np.testing.assert_allclose(got[-1], plain[-1] / 4)  # the slowest is interpolated
    assert np.all(np.diff(got / plain) <= 1e-12)
