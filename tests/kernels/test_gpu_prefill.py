# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The GPU prefill kernel, on a Hopper GPU or else interpreted, against the op's definition."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hopper import ON_HOPPER, PARAMETERS, needs_hopper, quiet, runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefill_cases import DEFINITION, OPTIONS, STATIC, arrays, check

from jaxkv.core.scoring import alibi_slopes
from pallas_kernels import prefill_attention
from pallas_kernels.prefill import mosaic_gpu

TWIN = jax.jit(
    functools.partial(mosaic_gpu.prefill_attention, interpret=PARAMETERS), static_argnames=STATIC
)
# K, S, H: heads that begin with a tile and inside one; ragged last blocks; less than a block, and
# no whole tiles in all.
SLABS = [(2, 264, 64), (2, 132, 64), (1, 40, 128), (3, 101, 80), (1, 136, 256)]

pytestmark = quiet


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks and few stages: a small slab goes round the stages twice."""
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
    count=st.sampled_from([1, 5, 40]),
    group=st.sampled_from([1, 3, 4]),
    places=st.booleans(),
    sinks=st.integers(0, 4),
    window=st.none() | st.integers(0, 40),
    ordered=st.booleans(),
    seed=st.integers(0, 1000),
    alibi=st.booleans(),
    soft_cap=st.sampled_from([None, 2.0]),
)
def test_equals_the_definition(
    few, slab, rows, count, group, places, sinks, window, ordered, seed, alibi, soft_cap
) -> None:
    slopes = jnp.asarray(alibi_slopes(slab[0] * group), jnp.float32) if alibi else None
    check(
        TWIN, slab, rows, count, group, "bfloat16", places, sinks, window, ordered, seed,
        slopes=slopes, soft_cap=soft_cap,
    )  # fmt: skip


@runs
def test_nothing_leaks_and_a_query_may_see_nothing(few) -> None:
    """Infinities in hidden slots, which are other heads' too; queries that are padding."""
    (out, lse), q_pos = check(
        TWIN, (2, 132, 64), 2, 40, 2, "bfloat16", True, 3, 30, False, 0, hidden=math.inf
    )
    padding = np.asarray(q_pos) < 0
    assert padding.any() and not padding.all()
    assert not np.any(np.asarray(out)[padding]) and np.all(np.isneginf(lse[padding]))


@runs
def test_blocks_seen_whole_and_in_part_and_not_at_all(few) -> None:
    """Queries within a long cache, of which a window hides the beginning and causality the end."""
    q, (k, v), _, _, _, _ = arrays(
        (1, 448, 64), 1, 30, 3, "bfloat16", False, 0, None, True, 0
    )  # fmt: skip
    q_pos = jnp.where(jnp.arange(30) < 25, jnp.arange(30) + 320, -1)[None].astype(jnp.int32)
    k_pos = jnp.arange(448, dtype=jnp.int32)[None, None]
    options = dict(scale=0.1, window=200, sinks=2)
    expected = DEFINITION(q, k, v, q_pos, k_pos, **options)
    hidden = ((k_pos >= 2) & (k_pos < 120) | (k_pos > 344))[..., None]
    k, v = (jnp.where(hidden, jnp.asarray(jnp.nan, x.dtype), x) for x in (k, v))
    actual = TWIN(q, k, v, q_pos, k_pos, num_slots=None, **options)
    for one, other in zip(actual, expected, strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=2e-2, rtol=2e-2)


@runs
def test_a_nan_that_is_seen_shows(few) -> None:
    q, (k, v), _, _, k_pos, _ = arrays(
        (1, 64, 64), 1, 8, 2, "bfloat16", False, 0, None, True, 0
    )  # fmt: skip
    v = v.at[0, 0, 0, 5].set(jnp.nan)
    out, _ = TWIN(q, k, v, jnp.arange(8)[None], k_pos, num_slots=None, **OPTIONS)
    assert np.all(np.isnan(out[..., 5])) and np.sum(np.isnan(out)) == 16


@runs
def test_what_is_differentiated_is_computed_as_xla_does(few) -> None:
    q, (k, v), _, q_pos, k_pos, _ = arrays(
        (1, 64, 64), 1, 8, 2, "bfloat16", False, 2, 30, True, 3
    )  # fmt: skip

    def loss(attend, share):
        out, lse = attend(q * share, k, v, q_pos, k_pos, num_slots=None, **OPTIONS)
        return jnp.sum(out.astype(jnp.float32) ** 2) + jnp.sum(jnp.where(lse > -1e9, lse, 0.0))

    kernel = functools.partial(mosaic_gpu.prefill_attention, interpret=PARAMETERS)
    xla = functools.partial(prefill_attention, implementation="xla")
    actual, expected = (
        jax.jit(jax.grad(functools.partial(loss, attend)))(jnp.bfloat16(0.7))
        for attend in (kernel, xla)
    )
    np.testing.assert_array_equal(np.float32(actual), np.float32(expected))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("h", [16, 64, 80, 96, 128, 256])
def test_blocks_fit_shared_memory(h: int, int8: bool) -> None:
    block, stages = mosaic_gpu.block_shape(h, int8, 128)
    assert stages >= 2 and block % 64 == 0
    each = 2 * h + 12 if int8 else 4 * h + 4
    used = stages * block * each + 2 * 64 * (h + block) + 4 * block * h * int8
    assert used + 4096 <= 226 << 10


def zeros(slots: int = 64, h: int = 64, count: int = 4, places: int = 1, dtype=jnp.bfloat16):
    slab = jnp.zeros((1, 2, slots, h), dtype)
    q_pos, k_pos = jnp.zeros((1, count), jnp.int32), jnp.zeros((1, places, slots), jnp.int32)
    return jnp.zeros((1, count, 2, h), dtype), slab, slab, q_pos, k_pos


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (dict(dtype=jnp.float32), "keys of float32"),
        (dict(h=72), "heads of 72"),
        (dict(h=192), "heads of 192"),
        (dict(slots=1 << 19, count=1 << 19), "more blocks than can be listed"),
    ],
)
def test_what_it_refuses(case, says) -> None:
    attend = functools.partial(mosaic_gpu.prefill_attention, num_slots=None, **OPTIONS)
    with pytest.raises(NotImplementedError, match=says):
        jax.eval_shape(attend, *jax.eval_shape(functools.partial(zeros, **case)))


@pytest.mark.skipif(ON_HOPPER, reason="there is a GPU that runs it")
def test_elsewhere_it_does_not_run() -> None:
    with pytest.raises(NotImplementedError, match="mosaic_gpu needs"):
        prefill_attention(*zeros(), scale=1.0, implementation="mosaic_gpu")
    assert len(prefill_attention(*zeros(), scale=1.0, implementation=("mosaic_gpu", "xla"))) == 2


@needs_hopper
@pytest.mark.parametrize("slots", [1029, 8192])
@pytest.mark.parametrize(("heads", "h"), [(8, 64), (8, 80), (8, 96), (8, 128), (3, 128), (8, 256)])
def test_on_a_gpu(heads: int, h: int, slots: int) -> None:
    """Whole plans: every head size, with heads that begin inside a tile, a window and sinks."""
    kernel = jax.jit(
        functools.partial(prefill_attention, implementation="mosaic_gpu"), static_argnames=STATIC
    )
    slopes = jnp.asarray(alibi_slopes(4 * heads), jnp.float32)
    for places, window, ordered, bends in (
        (False, None, True, {}),
        (True, slots // 3, False, {"slopes": slopes, "soft_cap": 30.0}),
    ):
        check(
            kernel, (heads, slots, h), 2, 300, 4, "bfloat16", places, 4, window, ordered, 0,
            **bends,
        )  # fmt: skip
