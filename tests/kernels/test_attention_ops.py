# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The attention ops against plain float64 loops, over shapes, fills and dtypes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pallas_kernels import decode_attention, prefill_attention
from pallas_kernels.dispatch import dispatch
from pallas_kernels.prefill import xla


def oracle(q, k, v, q_pos, k_pos, scale, window, sinks, q_sink=None):
    """One query head after the other, one key after the other."""
    b, t, n, h = q.shape
    group = n // k.shape[1]
    out, lse = np.zeros((b, t, n, h)), np.full((b, t, n), -np.inf)
    for r, i, head in np.ndindex(b, t, n):
        scores, values = [], []
        for s in range(k.shape[2]):
            at = k_pos[r, head // group if k_pos.shape[1] > 1 else 0, s]
            reach = window is None or q_pos[r, i] - at <= window or at < sinks
            if at >= 0 and at <= q_pos[r, i] and reach:
                query = q_sink if q_sink is not None and s < sinks else q
                scores.append(scale * np.dot(query[r, i, head], k[r, head // group, s]))
                values.append(v[r, head // group, s])
        if scores:
            weights = np.exp(np.array(scores) - max(scores))
            out[r, i, head] = weights @ np.array(values) / weights.sum()
            lse[r, i, head] = np.log(weights.sum()) + max(scores)
    return out, lse


PREFILL = jax.jit(prefill_attention, static_argnames=("scale", "window", "sinks", "implementation"))
DECODE = jax.jit(decode_attention, static_argnames=("scale", "window", "sinks"))


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shapes in several blocks, the last of them ragged."""
    monkeypatch.setattr(xla, "BLOCK", 7)


def arrays(rng, b, t, kv, group, s, h, dtype, pos_heads):
    shapes = (b, t, kv * group, h), (b, kv, s, h), (b, kv, s, h)
    q, k, v = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    k_pos = rng.integers(-1, 20, (b, kv if pos_heads else 1, s))
    q_pos = rng.integers(-1, 25, (b, t))
    # What an empty slot holds must never be seen.
    k = jnp.where(jnp.asarray(k_pos < 0)[..., None], jnp.asarray(1e4, dtype), k)
    v = jnp.where(jnp.asarray(k_pos < 0)[..., None], jnp.asarray(1e4, dtype), v)
    return q, k, v, jnp.asarray(q_pos, jnp.int32), jnp.asarray(k_pos, jnp.int32)


def wide(*xs):
    return tuple(np.asarray(x, np.float64) for x in xs)


SHAPES = {
    "b": st.integers(1, 3),
    "t": st.integers(1, 6),
    "kv": st.integers(1, 3),
    "group": st.integers(1, 4),
    "s": st.integers(1, 40),
    "h": st.sampled_from([4, 8]),
    "seed": st.integers(0, 1000),
    "window": st.none() | st.integers(0, 30),
    "sinks": st.integers(0, 4),
    "pos_heads": st.booleans(),
    "bf16": st.booleans(),
}


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@settings(
    deadline=None,
    max_examples=10,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(**SHAPES)
def test_prefill(implementation, b, t, kv, group, s, h, seed, window, sinks, pos_heads, bf16):
    dtype, tolerance = (jnp.bfloat16, 2e-2) if bf16 else (jnp.float32, 4e-6)
    q, k, v, q_pos, k_pos = arrays(
        np.random.default_rng(seed), b, t, kv, group, s, h, dtype, pos_heads
    )
    out, lse = PREFILL(
        q, k, v, q_pos, k_pos,
        scale=0.3, window=window, sinks=sinks, implementation=implementation,
    )  # fmt: skip
    expected, expected_lse = oracle(*wide(q, k, v), q_pos, k_pos, 0.3, window, sinks)
    assert out.dtype == dtype and lse.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=tolerance * 4)
    np.testing.assert_allclose(lse, expected_lse, atol=tolerance * 4, rtol=tolerance)


@settings(
    deadline=None,
    max_examples=10,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(**SHAPES)
def test_decode(b, t, kv, group, s, h, seed, window, sinks, pos_heads, bf16):
    del t
    dtype, tolerance = (jnp.bfloat16, 2e-2) if bf16 else (jnp.float32, 4e-6)
    rng = np.random.default_rng(seed)
    q, k, v, q_pos, k_pos = arrays(rng, b, 1, kv, group, s, h, dtype, pos_heads)
    sinks = min(sinks, s)
    k_pos = k_pos.at[:, :, :sinks].set(jnp.arange(sinks))  # the op's contract
    k, v = (x.at[:, :, :sinks].set(jnp.ones((), dtype)) for x in (k, v))
    q_sink = jnp.asarray(rng.normal(size=q.shape), dtype)
    out, lse = DECODE(
        q[:, 0], k, v, q_pos[:, 0], k_pos,
        scale=0.3, window=window, sinks=sinks, q_sink=q_sink[:, 0],
    )  # fmt: skip
    expected, expected_lse = oracle(
        *wide(q, k, v), q_pos, k_pos, 0.3, window, sinks, np.asarray(q_sink, np.float64)
    )
    np.testing.assert_allclose(np.asarray(out, np.float32), expected[:, 0], atol=tolerance * 4)
    np.testing.assert_allclose(lse, expected_lse[:, 0], atol=tolerance * 4, rtol=tolerance)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_slots_beyond_the_count_are_not_seen(implementation: str) -> None:
    q, k, v, _, _ = arrays(np.random.default_rng(0), 1, 2, 1, 2, 32, 4, jnp.float32, False)
    q_pos, all_pos = jnp.asarray([[20, 21]], jnp.int32), jnp.arange(32, dtype=jnp.int32)[None, None]
    filled = jnp.where(all_pos < 9, all_pos, -1)
    options = dict(scale=1.0, implementation=implementation)
    expected = PREFILL(q, k, v, q_pos, filled, **options)
    dirty = k.at[:, :, 20:].set(jnp.nan)
    for k_pos in (filled, all_pos):  # the count alone is enough
        actual = PREFILL(q, dirty, v, q_pos, k_pos, num_slots=jnp.int32(9), **options)
        np.testing.assert_allclose(expected[0], actual[0], atol=1e-6)
        np.testing.assert_allclose(expected[1], actual[1], atol=1e-6)


class TestDispatch:
    """One name never falls back; several do, in order."""

    @staticmethod
    def refuse():
        raise NotImplementedError("not here")

    def test_falls_through_to_the_next(self) -> None:
        table = {"a": self.refuse, "b": lambda: "b"}
        assert dispatch(table, ("a", "b")) == "b"
        assert dispatch({"mosaic_tpu": self.refuse, "xla": lambda: "xla"}, None) == "xla"

    def test_one_name_does_not(self) -> None:
        with pytest.raises(NotImplementedError, match="not here"):
            dispatch({"a": self.refuse, "b": lambda: "b"}, "a")

    def test_unknown_names_are_named(self) -> None:
        with pytest.raises(ValueError, match="'c'"):
            dispatch({"a": self.refuse}, "c")

    def test_all_failures_are_shown(self) -> None:
        with pytest.raises(ExceptionGroup) as caught:
            dispatch({"a": self.refuse, "b": self.refuse}, ("a", "b"))
        assert len(caught.value.exceptions) == 2
