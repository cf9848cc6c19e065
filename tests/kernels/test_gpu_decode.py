# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The GPU decode kernel, on a Hopper GPU or else interpreted, against the op as XLA runs it."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_cases import OPTIONS, STATIC, XLA, arrays, check, zeros
from hopper import ON_HOPPER, PARAMETERS, needs_hopper, quiet, runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxkv.core.scoring import alibi_slopes
from pallas_kernels import decode_attention, gpu
from pallas_kernels.decode import gpu_kernel, mosaic_gpu
from pallas_kernels.decode.gpu_kernel import split_count
from pallas_kernels.softmax import merge_along

TWIN = jax.jit(
    functools.partial(mosaic_gpu.decode_attention, interpret=PARAMETERS), static_argnames=STATIC
)
# K, S, H: heads that begin with a tile, and some that begin inside one; ragged last blocks.
SLABS = [(1, 64, 64), (1, 504, 64), (2, 264, 128), (8, 133, 64), (4, 330, 80), (1, 104, 256)]

pytestmark = quiet


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, few stages and few splits: a small slab goes round the stages twice."""
    monkeypatch.setattr(mosaic_gpu, "MAX_BLOCK", 64)
    monkeypatch.setattr(gpu_kernel, "MAX_STAGES", 2)
    monkeypatch.setattr(gpu_kernel, "split_count", lambda lanes, blocks, room: min(blocks, 2))


@runs
@settings(
    deadline=None,
    max_examples=16,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    slab=st.sampled_from(SLABS),
    rows=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3, 9]),
    places=st.booleans(),
    sinks=st.integers(0, 4),
    window=st.none() | st.integers(0, 40),
    seed=st.integers(0, 1000),
    two=st.booleans(),
    mass=st.booleans(),
    alibi=st.booleans(),
    soft_cap=st.sampled_from([None, 2.0]),
)
def test_equals_xla(
    few, slab, rows, group, places, sinks, window, seed, two, mass, alibi, soft_cap
) -> None:
    slopes = jnp.asarray(alibi_slopes(slab[0] * group), jnp.float32) if alibi else None
    check(
        TWIN, slab, rows, group, "bfloat16", places, sinks, window, seed, two=two, mass=mass,
        slopes=slopes, soft_cap=soft_cap,
    )  # fmt: skip


@runs
@pytest.mark.parametrize("slab", [(1, 504, 64), (8, 133, 64)])
def test_nothing_leaks_and_a_row_may_see_nothing(few, slab) -> None:
    """Infinities in hidden slots, which are other heads' where a head begins inside a tile."""
    out, lse, mass = check(
        TWIN, slab, 2, 2, "bfloat16", True, 3, 30, 4, two=True, mass=True, hidden=math.inf
    )
    assert not np.any(out[0]) and np.all(np.isneginf(lse[0])) and not np.any(mass[0])
    assert np.all(np.isfinite(lse[1]))
    assert np.all(np.sum(mass[1] > 0, axis=-1) > 10), "more than sinks are visible"
    np.testing.assert_allclose(np.sum(mass[1], axis=-1), 1, rtol=1e-2)


@runs
def test_a_nan_that_is_seen_shows(few) -> None:
    q, _, (k, v), _, q_pos, k_pos = arrays((1, 64, 64), 1, 2, "bfloat16", False, 4, None, 0)
    v = v.at[0, 0, 1, 5].set(jnp.nan)
    out, _ = TWIN(q, k, v, q_pos, k_pos, **{**OPTIONS, "sinks": 4}, with_mass=False)
    assert np.all(np.isnan(out[..., 5])) and np.sum(np.isnan(out)) == 2


@runs
def test_blocks_that_nobody_sees(few) -> None:
    """Before, between and after those that someone does."""
    heads, slots, h = 1, 576, 64
    q, _, (k, v), _, _, _ = arrays((heads, slots, h), 1, 2, "bfloat16", False, 0, None, 0)
    at = np.arange(slots)
    there = (at >= 64) & (at < 128) | (at >= 200) & (at < 450)
    k_pos = jnp.asarray(np.where(there, at, -1).astype(np.int32)[None, None])
    q_pos = jnp.full(1, slots, jnp.int32)
    expected = XLA(q, k, v, q_pos, k_pos, **OPTIONS, with_mass=False)
    hidden = (k_pos < 0)[..., None]
    k, v = (jnp.where(hidden, jnp.asarray(jnp.nan, x.dtype), x) for x in (k, v))
    actual = TWIN(q, k, v, q_pos, k_pos, **OPTIONS, with_mass=False)
    for one, other in zip(actual, expected, strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=2e-2, rtol=2e-2)


def test_parts_merge() -> None:
    rng = np.random.default_rng(0)
    scores, v = rng.normal(size=(2, 9)), rng.normal(size=(9, 4))
    parts, sums = [], []
    for at in (slice(0, 2), slice(2, 9), slice(9, 9)):
        weights = np.exp(scores[:, at])
        total = weights.sum(-1, keepdims=True)
        parts.append(np.divide(weights @ v[at], total, where=total > 0, out=np.zeros((2, 4))))
        sums.append(np.log(total[:, 0], where=total[:, 0] > 0, out=np.full(2, -np.inf)))
    parts, sums = (jnp.asarray(np.stack(x), jnp.float32) for x in (parts, sums))
    out, lse = merge_along(parts, sums, axis=0)
    np.testing.assert_allclose(lse, np.log(np.exp(scores).sum(-1)), rtol=1e-6)
    weights = np.exp(scores - np.asarray(lse)[:, None])
    np.testing.assert_allclose(out, weights @ v, rtol=1e-5, atol=1e-6)
    out, lse = merge_along(parts[2:], sums[2:], axis=0)
    assert not np.any(out) and np.all(np.isneginf(lse))


@pytest.mark.parametrize("slots", [64, 13])
def test_heads_that_begin_inside_a_tile(slots: int) -> None:
    """All heads' slots make one row, from which the kernel's count goes by whole tiles."""
    seen = np.random.default_rng(0).random((2, 4, slots)) < 0.5
    counted = np.asarray(gpu.from_tile(jnp.asarray(seen), 8)).reshape(8, -1)
    row = seen.reshape(-1)
    for lane in range(8):
        begin = lane * slots // 8 * 8
        within = row[begin : begin + counted.shape[1]].copy()
        within[: lane * slots - begin] = False  # another head's
        within[(lane + 1) * slots - begin :] = False
        np.testing.assert_array_equal(counted[lane, : len(within)], within)
    scores = jnp.asarray(counted, jnp.float32)[:, None]
    back = gpu.to_slots(scores, slots)
    np.testing.assert_array_equal(back.reshape(seen.shape), seen)


@pytest.mark.parametrize("lanes", [1, 3, 8, 40, 200, 300, 4096])
@pytest.mark.parametrize("blocks", [1, 17, 128, 2048])
def test_splits_fill_the_gpu_and_no_more(lanes: int, blocks: int) -> None:
    room = 264
    splits = split_count(lanes, blocks, room)
    assert 1 <= splits <= blocks
    assert splits == 1 or lanes * splits <= max(room, 4 * lanes)
    used = lanes * splits / room
    if blocks > room:
        assert used / math.ceil(used) > 0.75
    elif splits == blocks:
        assert used <= 4 or lanes > room


@pytest.mark.parametrize("mass", [False, True])
@pytest.mark.parametrize("form", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("h", [16, 64, 80, 96, 128, 256])
def test_plans_fit_shared_memory(h: int, form: str, mass: bool) -> None:
    packed, held = form != "bfloat16", h // 2 if form == "int4" else h
    case = gpu_kernel.plan(
        lanes=8, heads=8, slots=8192, group=4, head_dim=h, places=1, with_mass=mass,
        packed=packed, held=held, scale_type=jnp.float32 if packed else None,
        soft_cap=None, alibi=False, mixed=1, most=128,
    )  # fmt: skip
    assert case.stages >= 2
    each = 2 * held + 12 if packed else 4 * h + 4
    used = case.stages * case.block * each + 2 * 64 * (h + case.block) + 4 * case.block * h * packed
    assert used + 4 * 64 * case.block * mass + 4096 <= 226 << 10


@pytest.mark.parametrize(
    ("heads", "slots", "h", "group", "dtype", "says"),
    [
        (1, 64, 64, 1, jnp.float32, "float32"),
        (1, 64, 72, 1, jnp.bfloat16, "heads of 72"),
        (1, 64, 192, 1, jnp.bfloat16, "heads of 192"),
        (1, 64, 64, 65, jnp.bfloat16, "65 query heads"),
        (3, 133, 64, 1, jnp.bfloat16, "no multiple of 8"),
        (1, 32, 64, 1, jnp.bfloat16, "32 slots"),
    ],
)
def test_what_it_refuses(heads, slots, h, group, dtype, says) -> None:
    with pytest.raises(NotImplementedError, match=says):
        mosaic_gpu.decode_attention(
            *zeros(heads, slots, h, dtype, group), **OPTIONS, with_mass=False
        )


@pytest.mark.skipif(ON_HOPPER, reason="there is a GPU that runs it")
def test_elsewhere_it_does_not_run() -> None:
    case = zeros(1, 64, 64, jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="mosaic_gpu needs"):
        decode_attention(*case, scale=1.0, implementation="mosaic_gpu")
    assert len(decode_attention(*case, scale=1.0, implementation=("mosaic_gpu", "xla"))) == 2


@needs_hopper
@pytest.mark.parametrize("mass", [False, True])
@pytest.mark.parametrize("slots", [1029, 8192])
@pytest.mark.parametrize(("heads", "h"), [(8, 64), (8, 80), (8, 96), (8, 128), (8, 256)])
def test_on_a_gpu(heads: int, h: int, slots: int, mass: bool) -> None:
    """Whole plans: every head size, with heads that begin inside a tile, a window and sinks."""
    kernel = jax.jit(
        functools.partial(decode_attention, implementation="mosaic_gpu"), static_argnames=STATIC
    )
    slopes = jnp.asarray(alibi_slopes(4 * heads), jnp.float32)
    for places, window, two, bends in (
        (False, None, False, {}),
        (True, slots // 3, True, {"slopes": slopes, "soft_cap": 30.0}),
    ):
        check(
            kernel, (heads, slots, h), 2, 4, "bfloat16", places, 4, window, 0, two=two, mass=mass,
            **bends,
        )  # fmt: skip


@needs_hopper
def test_on_a_gpu_it_comes_first_and_others_take_what_it_refuses() -> None:
    q, k, v, q_pos, k_pos = zeros(1, 64, 64, jnp.bfloat16)
    text = jax.jit(functools.partial(decode_attention, scale=1.0)).lower(q, k, v, q_pos, k_pos)
    assert "mosaic_gpu" in text.as_text()
    assert len(decode_attention(*zeros(1, 64, 64, jnp.float32), scale=1.0)) == 2
