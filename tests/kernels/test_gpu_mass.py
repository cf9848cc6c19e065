# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The GPU kernel of attention mass, on a Hopper GPU or else interpreted, against its definition."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hopper import ON_HOPPER, PARAMETERS, needs_hopper, quiet, runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mass_cases import STATIC, arrays, check

from jaxkv.core.scoring import alibi_slopes
from pallas_kernels import attention_mass
from pallas_kernels.mass import mosaic_gpu

TWIN = jax.jit(
    functools.partial(mosaic_gpu.attention_mass, interpret=PARAMETERS), static_argnames=STATIC
)
# K, S, H: heads that begin with a tile and inside one; ragged last blocks; less than a block, and
# no whole tiles in all.
SLABS = [(2, 264, 64), (2, 132, 64), (1, 40, 128), (3, 101, 80), (1, 136, 256)]

pytestmark = quiet


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks and few stages: some queries go round the stages twice."""
    monkeypatch.setattr(mosaic_gpu, "MAX_BLOCK", 64)
    monkeypatch.setattr(mosaic_gpu, "MAX_STAGES", 2)


@runs
@settings(
    deadline=None,
    max_examples=8,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    slab=st.sampled_from(SLABS),
    rows=st.sampled_from([1, 2]),
    count=st.sampled_from([1, 5, 64, 200]),
    group=st.sampled_from([1, 3]),
    places=st.booleans(),
    ordered=st.booleans(),
    seed=st.integers(0, 1000),
    alibi=st.booleans(),
    soft_cap=st.sampled_from([None, 2.0]),
)
def test_equals_the_definition(
    few, slab, rows, count, group, places, ordered, seed, alibi, soft_cap
) -> None:
    slopes = jnp.asarray(alibi_slopes(slab[0] * group), jnp.float32) if alibi else None
    check(
        TWIN, slab, rows, count, group, "bfloat16", places, ordered, seed,
        slopes=slopes, soft_cap=soft_cap,
    )  # fmt: skip


@runs
def test_rounds_of_the_stages_and_more_slots_than_a_product_has_rows() -> None:
    check(TWIN, (1, 264, 64), 1, 300, 2, "bfloat16", False, True, 1)


@runs
def test_nothing_is_seen() -> None:
    q, k, _, q_pos, k_pos, _ = arrays(SLABS[2], 1, 5, 2, "bfloat16", False, True, 0)
    lse = jnp.full(q.shape[:3], -jnp.inf)
    mass = TWIN(q, lse, k, jnp.full_like(q_pos, -1), k_pos, num_slots=None, scale=1.0)
    assert not np.any(mass)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("h", [16, 64, 80, 96, 128, 256])
def test_blocks_fit_shared_memory(h: int, int8: bool) -> None:
    block, stages = mosaic_gpu.block_shape(h, int8, 128)
    assert stages >= 2 and block % 64 == 0
    keys = 3 * h + 12 if int8 else 2 * h + 8
    assert stages * 64 * (2 * h + 8) + block * keys + 4096 <= 226 << 10


def zeros(slots: int = 64, h: int = 64, count: int = 4, dtype=jnp.bfloat16):
    q, k = jnp.zeros((1, count, 2, h), dtype), jnp.zeros((1, 2, slots, h), dtype)
    q_pos, k_pos = jnp.zeros((1, count), jnp.int32), jnp.zeros((1, 1, slots), jnp.int32)
    return q, jnp.zeros((1, count, 2)), k, q_pos, k_pos


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (dict(dtype=jnp.float32), "keys of float32"),
        (dict(h=72), "heads of 72"),
        (dict(slots=1 << 19, count=1 << 19), "more blocks than can be listed"),
    ],
)
def test_what_it_refuses(case, says) -> None:
    refuse = functools.partial(mosaic_gpu.attention_mass, scale=1.0, num_slots=None)
    with pytest.raises(NotImplementedError, match=says):
        jax.eval_shape(refuse, *jax.eval_shape(functools.partial(zeros, **case)))


@pytest.mark.skipif(ON_HOPPER, reason="there is a GPU that runs it")
def test_elsewhere_it_does_not_run() -> None:
    with pytest.raises(NotImplementedError, match="mosaic_gpu needs"):
        attention_mass(*zeros(), scale=1.0, implementation="mosaic_gpu")
    mass = attention_mass(*zeros(), scale=1.0, implementation=("mosaic_gpu", "xla"))
    assert mass.shape == (1, 2, 64)


@needs_hopper
@pytest.mark.parametrize("slots", [1029, 8192])
@pytest.mark.parametrize(("heads", "h"), [(8, 64), (8, 80), (8, 96), (8, 128), (3, 128), (8, 256)])
def test_on_a_gpu(heads: int, h: int, slots: int) -> None:
    """Whole plans: every head size, and heads that begin inside a tile."""
    kernel = jax.jit(
        functools.partial(attention_mass, implementation="mosaic_gpu"), static_argnames=STATIC
    )
    slopes = jnp.asarray(alibi_slopes(4 * heads), jnp.float32)
    check(kernel, (heads, slots, h), 2, 300, 4, "bfloat16", False, True, 0)
    check(
        kernel, (heads, slots, h), 2, 300, 4, "bfloat16", True, False, 0,
        slopes=slopes, soft_cap=30.0,
    )  # fmt: skip
