# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The TPU kernel of attention mass, interpreted on a CPU, against the op's definition."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mass_cases import STATIC, TOLERANCE, arrays, check

from pallas_kernels import attention_mass, prefill_attention
from pallas_kernels.mass import mosaic_tpu

# K, S, H: as XLA stores them by slot and by dimension; one block and several with a ragged last.
SLABS = [(2, 40, 128), (1, 264, 256), (3, 100, 64), (1, 250, 80), (4, 133, 128)]
TWIN = jax.jit(functools.partial(mosaic_tpu.attention_mass, interpret=True), static_argnames=STATIC)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest blocks there can be."""
    monkeypatch.setattr(mosaic_tpu, "MAX_BLOCK", 128)
    monkeypatch.setattr(mosaic_tpu, "MAX_ROWS", 128)


@settings(
    deadline=None,
    max_examples=8,
    derandomize=True,  # float32 on both sides: one seed in thousands may round past the tolerance
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    slab=st.sampled_from(SLABS),
    rows=st.integers(1, 2),
    count=st.sampled_from([1, 5, 32, 140]),
    group=st.sampled_from([1, 3, 4, 9]),
    dtype=st.sampled_from(sorted(TOLERANCE)),
    places=st.booleans(),
    ordered=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_definition(slab, rows, count, group, dtype, places, ordered, seed):
    check(TWIN, slab, rows, count, group, dtype, places, ordered, seed)


def test_nothing_is_seen() -> None:
    q, k, _, q_pos, k_pos, _ = arrays(SLABS[0], 1, 5, 2, "float32", False, True, 0)
    lse = jnp.full(q.shape[:3], -jnp.inf)
    mass = TWIN(q, lse, k, jnp.full_like(q_pos, -1), k_pos, num_slots=None, scale=1.0)
    assert not np.any(mass)


def zeros(slots: int, count: int, dtype: type = jnp.float32):
    q, k = jnp.zeros((1, count, 2, 64), dtype), jnp.zeros((1, 2, slots, 64), dtype)
    q_pos, k_pos = jnp.zeros((1, count), jnp.int32), jnp.zeros((1, 1, slots), jnp.int32)
    return q, jnp.zeros((1, count, 2)), k, q_pos, k_pos


def test_what_it_refuses() -> None:
    refuse = functools.partial(mosaic_tpu.attention_mass, scale=1.0, num_slots=None, interpret=True)
    with pytest.raises(NotImplementedError, match="float16"):
        refuse(*zeros(16, 4, jnp.float16))
    with pytest.raises(NotImplementedError, match="more blocks than can be listed"):
        jax.eval_shape(refuse, *zeros(1 << 17, 1 << 13))


def test_a_cpu_does_not_run_it() -> None:
    if jax.default_backend() == "tpu":
        pytest.skip("there is a TPU")
    with pytest.raises(NotImplementedError, match="needs a TPU"):
        attention_mass(*zeros(16, 4), scale=1.0, implementation="mosaic_tpu")
    mass = attention_mass(*zeros(16, 4), scale=1.0, implementation=("mosaic_tpu", "xla"))
    assert mass.shape == (1, 2, 16)


@pytest.mark.parametrize("slab", [(8, 8192, 128), (8, 1029, 64)])
def test_on_a_tpu(slab, monkeypatch: pytest.MonkeyPatch) -> None:
    if jax.default_backend() != "tpu":
        pytest.skip("no TPU here")
    monkeypatch.setattr(mosaic_tpu, "MAX_BLOCK", 1024)
    monkeypatch.setattr(mosaic_tpu, "MAX_ROWS", 512)
    q, clean, dirty, q_pos, k_pos, _ = arrays(slab, 2, 512, 4, "bfloat16", False, True, 0)
    _, lse = prefill_attention(q, clean, clean, q_pos, k_pos, scale=0.1, implementation="xla")
    expected = attention_mass(q, lse, clean, q_pos, k_pos, scale=0.1, implementation="xla")
    actual = attention_mass(q, lse, dirty, q_pos, k_pos, scale=0.1, implementation="mosaic_tpu")
    np.testing.assert_allclose(actual, expected, atol=2e-2, rtol=2e-2)
