# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The TPU prefill kernel, interpreted on a CPU, against the op's definition in float32."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import Array
from prefill_cases import OPTIONS, STATIC, TOLERANCE, arrays, check
from seen import seen

from pallas_kernels import prefill_attention, visits
from pallas_kernels.prefill import mosaic_tpu

# K, S, H: as XLA stores them by slot and by dimension; one block and several with a ragged last.
SLABS = [
    (1, 40, 128), (2, 264, 256), (3, 136, 128),
    (3, 100, 64), (1, 250, 80), (2, 300, 96),
    (4, 13, 128), (8, 133, 128),
]  # fmt: skip
TWIN = jax.jit(
    functools.partial(mosaic_tpu.prefill_attention, interpret=True), static_argnames=STATIC
)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest blocks there can be."""
    monkeypatch.setattr(mosaic_tpu, "MAX_BLOCK", 128)
    monkeypatch.setattr(mosaic_tpu, "MAX_ROWS", 128)


@settings(
    deadline=None,
    max_examples=12,
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
    sinks=st.integers(0, 4),
    window=st.none() | st.integers(0, 40),
    ordered=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_definition(
    slab, rows, count, group, dtype, places, sinks, window, ordered, seed
):
    check(TWIN, slab, rows, count, group, dtype, places, sinks, window, ordered, seed)


@pytest.mark.parametrize("slab", [SLABS[1], SLABS[3]])
def test_nothing_leaks_and_a_query_may_see_nothing(slab) -> None:
    """Infinities in hidden slots and beyond the last; queries that are padding."""
    (out, lse), q_pos = check(
        TWIN, slab, 2, 40, 2, "float32", True, 3, 30, False, 0, hidden=math.inf
    )  # fmt: skip
    padding = np.asarray(q_pos) < 0
    assert padding.any() and not padding.all()
    assert not np.any(np.asarray(out)[padding]) and np.all(np.isneginf(lse[padding]))


def test_a_nan_that_is_seen_shows() -> None:
    q, (k, v), _, _, k_pos, _ = arrays(
        (1, 40, 128), 1, 8, 2, "float32", False, 0, None, True, 0
    )  # fmt: skip
    v = v.at[0, 0, 0, 5].set(jnp.nan)
    out, _ = TWIN(q, k, v, jnp.arange(8)[None], k_pos, num_slots=None, **OPTIONS)
    assert np.all(np.isnan(out[..., 5])) and np.sum(np.isnan(out)) == 16


@given(
    count=st.integers(1, 40),
    places=st.integers(1, 2),
    slots=st.integers(1, 60),
    sinks=st.integers(0, 4),
    window=st.none() | st.integers(0, 20),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=10)
def test_what_is_seen_is_visited(count, places, slots, sinks, window, seed) -> None:
    """And nothing else: chunks without a gap, over slots in any order."""
    rng = np.random.default_rng(seed)
    tall, wide = 16, 10
    q_pos = np.full((2, -(-count // tall) * tall), -1, np.int32)
    for row in range(2):
        length = rng.integers(0, count + 1)
        q_pos[row, :length] = np.arange(length) + rng.integers(0, 50)
    k_pos = rng.permuted(np.tile(np.arange(-2, slots - 2), (2, places, 1)), axis=2)
    k_pos = np.pad(k_pos, [(0, 0), (0, 0), (0, -slots % wide)], constant_values=-1)
    k_pos = k_pos.astype(np.int32)
    sees = seen(q_pos[:, None, :, None], k_pos[:, :, None], sinks, window)
    sees = sees.reshape(2, places, -1, tall, k_pos.shape[2] // wide, wide).swapaxes(3, 4)
    there = (q_pos >= 0).reshape(2, 1, -1, 1, tall, 1)
    found = jax.jit(visits.seen_blocks, static_argnums=(2, 3, 4, 5))
    both = found(q_pos, k_pos, tall, wide, sinks, window)
    order, whole, number = jax.jit(visits.visits)(*both)
    with pytest.MonkeyPatch.context() as patched:  # as where there are many blocks
        patched.setattr(visits, "MANY", 0)
        for mine, same in zip(
            jax.jit(lambda *x: visits.visits(*x))(*both), (order, whole, number), strict=True
        ):
            np.testing.assert_array_equal(mine, same)
    for at in np.ndindex(whole.shape):
        visited = np.asarray(order[at])
        full, some = np.asarray(whole[at]), np.asarray(number[at])
        any_seen = sees[at].any((1, 2))
        all_seen = (sees[at] | ~there[at[0], 0, at[2]]).all((1, 2)) & any_seen
        np.testing.assert_array_equal(visited[:full], np.flatnonzero(all_seen))
        np.testing.assert_array_equal(visited[full:some], np.flatnonzero(any_seen & ~all_seen))
        assert some == 0 or np.all(visited[some:] == visited[some - 1])


@pytest.mark.parametrize(
    ("queries", "slots", "group", "head_dim", "itemsize"),
    [(512, 8192, 4, 128, 2), (5, 5, 1, 64, 2), (130, 1029, 71, 256, 4), (4096, 700, 8, 128, 2)],
)
def test_blocks_cover_and_fit(queries, slots, group, head_dim, itemsize, monkeypatch) -> None:
    monkeypatch.setattr(mosaic_tpu, "MAX_BLOCK", 1024)
    monkeypatch.setattr(mosaic_tpu, "MAX_ROWS", 512)
    block, tall, together = mosaic_tpu.block_shape(queries, slots, group, head_dim, itemsize, 1024)
    assert block == slots or block % 128 == 0
    assert group % together == 0 and tall % 16 == 0
    assert tall >= queries or tall % 128 == 0
    assert tall * together <= 512


def zeros(slots: int, count: int = 4, places: int = 1, dtype: type = jnp.float32):
    slab = jnp.zeros((1, 2, slots, 64), dtype)
    q_pos, k_pos = jnp.zeros((1, count), jnp.int32), jnp.zeros((1, places, slots), jnp.int32)
    return jnp.zeros((1, count, 2, 64), dtype), slab, slab, q_pos, k_pos


def test_what_it_refuses() -> None:
    refuse = functools.partial(mosaic_tpu.prefill_attention, interpret=True, num_slots=None)
    with pytest.raises(NotImplementedError, match="float16"):
        refuse(*zeros(16, dtype=jnp.float16), **OPTIONS)
    with pytest.raises(NotImplementedError, match="more blocks than can be listed"):
        jax.eval_shape(functools.partial(refuse, **OPTIONS), *zeros(1 << 17, 1 << 13))


def test_a_cpu_does_not_run_it() -> None:
    if jax.default_backend() == "tpu":
        pytest.skip("there is a TPU")
    with pytest.raises(NotImplementedError, match="needs a TPU"):
        prefill_attention(*zeros(16), scale=1.0, implementation="mosaic_tpu")
    assert len(prefill_attention(*zeros(16), scale=1.0, implementation=("mosaic_tpu", "xla"))) == 2


def test_what_is_differentiated_is_computed_as_xla_does() -> None:
    """In a loop over chunks that are computed again on the way back, as gates are trained."""
    q, (k, v), _, q_pos, k_pos, used = arrays(
        (2, 100, 64), 1, 16, 2, "float32", False, 2, 30, True, 3
    )  # fmt: skip

    def loss(attend, share: Array) -> Array:
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def chunk(total: Array, q: Array) -> tuple[Array, None]:
            still, _ = attend(
                q, k, v, q_pos, k_pos, num_slots=used, scale=1.0, window=None, sinks=0
            )
            out, lse = attend(
                q * share, k, v, q_pos, k_pos, num_slots=None, scale=0.3, window=30, sinks=2
            )
            lse = jnp.where(jnp.isneginf(lse), 0.0, lse)
            return total + jnp.sum((out - still) ** 2) + jnp.sum(lse), None

        return jax.lax.scan(chunk, jnp.float32(0), jnp.stack([q, q + 1]))[0]

    kernel = functools.partial(mosaic_tpu.prefill_attention, interpret=True)
    xla = functools.partial(prefill_attention, implementation="xla")
    actual, expected = (
        jax.jit(jax.value_and_grad(functools.partial(loss, attend)))(jnp.float32(0.7))
        for attend in (kernel, xla)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("slab", [(8, 8192, 128), (8, 1029, 64), (8, 1029, 128)])
def test_on_a_tpu(slab, monkeypatch: pytest.MonkeyPatch) -> None:
    if jax.default_backend() != "tpu":
        pytest.skip("no TPU here")
    monkeypatch.setattr(mosaic_tpu, "MAX_BLOCK", 1024)
    monkeypatch.setattr(mosaic_tpu, "MAX_ROWS", 512)
    q, clean, dirty, q_pos, k_pos, _ = arrays(
        slab, 2, 512, 4, "bfloat16", False, 4, 700, True, 0
    )  # fmt: skip
    options = dict(scale=slab[2] ** -0.5, sinks=4, window=700)
    expected = prefill_attention(q, *clean, q_pos, k_pos, implementation="xla", **options)
    actual = prefill_attention(q, *dirty, q_pos, k_pos, implementation="mosaic_tpu", **options)
    for one, other in zip(actual, expected, strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=2e-2, rtol=2e-2)
