# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The TPU decode kernel, interpreted on a CPU, against the op as XLA runs it."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_cases import OPTIONS, STATIC, TOLERANCE, arrays, zeros
from decode_cases import check as compare
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pallas_kernels import decode_attention
from pallas_kernels.decode import mosaic_tpu
from pallas_kernels.decode.blocks import block_range
from pallas_kernels.tpu_layout import Order, stored_order

# K, S, H: for each order of a slab in memory, one block and several with a ragged last one.
SLABS = {
    Order.HEADS_SLOTS: [(1, 40, 128), (2, 264, 256), (3, 136, 128)],
    Order.HEADS_DIMS: [(3, 100, 64), (1, 250, 80), (2, 300, 96)],
    Order.SLOTS_HEADS: [(8, 5, 128), (8, 37, 128)],
}
TWIN = jax.jit(
    functools.partial(mosaic_tpu.decode_attention, interpret=True), static_argnames=STATIC
)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest blocks there can be."""
    monkeypatch.setattr(mosaic_tpu, "MAX_BLOCK", 128)


def check(slab, rows, group, dtype, *args, mass, **kw):
    shape = (rows, *slab)
    mass = mass and stored_order(shape, jnp.dtype(dtype).itemsize) is not Order.SLOTS_HEADS
    return compare(TWIN, slab, rows, group, dtype, *args, mass=mass, **kw)


@settings(
    deadline=None,
    max_examples=8,
    derandomize=True,  # float32 on both sides: one seed in thousands may round past the tolerance
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    slab=st.sampled_from([slab for slabs in SLABS.values() for slab in slabs]),
    rows=st.integers(1, 2),
    group=st.sampled_from([1, 3, 4]),
    dtype=st.sampled_from(sorted(TOLERANCE)),
    places=st.booleans(),
    sinks=st.integers(0, 4),
    window=st.none() | st.integers(0, 40),
    seed=st.integers(0, 1000),
    two=st.booleans(),
    mass=st.booleans(),
)
def test_equals_xla(slab, rows, group, dtype, places, sinks, window, seed, two, mass):
    check(slab, rows, group, dtype, places, sinks, window, seed, two=two, mass=mass)


@pytest.mark.parametrize("order", Order)
def test_nothing_leaks_and_a_row_may_see_nothing(order: Order) -> None:
    """Infinities in hidden slots and beyond the last; a query that is padding."""
    slab = SLABS[order][1]
    assert stored_order((2, *slab), 4) is order
    out, lse, *_ = check(
        slab, 2, 2, "float32", True, 3, 30, 0, two=True, mass=True, hidden=math.inf
    )
    assert not np.any(out[0]) and np.all(np.isneginf(lse[0]))
    assert np.all(np.isfinite(lse[1]))


def test_a_nan_that_is_seen_shows() -> None:
    q, _, (k, v), _, q_pos, k_pos = arrays((1, 40, 128), 1, 2, "float32", False, 4, None, 0)
    v = v.at[0, 0, 1, 5].set(jnp.nan)
    out, _ = TWIN(q, k, v, q_pos, k_pos, **{**OPTIONS, "sinks": 4}, with_mass=False)
    assert np.all(np.isnan(out[..., 5])) and np.sum(np.isnan(out)) == 2


def test_the_range_of_blocks() -> None:
    seen = np.zeros((3, 1, 50), bool)
    seen[0, 0, [11, 39]] = True
    seen[1, 0, 49] = True
    first, last = block_range(jnp.asarray(seen), 10)
    np.testing.assert_array_equal(first, [1, 4, 5])
    np.testing.assert_array_equal(last, [3, 4, 0])


@pytest.mark.parametrize(
    ("slots", "head_dim", "group"), [(1029, 128, 4), (8192, 64, 4), (9999, 256, 71), (5, 128, 1)]
)
def test_blocks_are_whole_or_of_lanes_and_cover(slots, head_dim, group, monkeypatch) -> None:
    monkeypatch.setattr(mosaic_tpu, "MAX_BLOCK", 2048)
    block = mosaic_tpu.block_slots(slots, head_dim, group, 4, 2048)
    assert block == slots or block % 128 == 0
    count = -(-slots // block)
    assert 0 <= count * block - slots < 128 * count, "shares are even"


@pytest.mark.parametrize(
    ("heads", "slots", "h", "dtype", "with_mass", "says"),
    [
        (4, 13, 128, jnp.float32, False, "13 slots"),  # half a tile of heads
        (8, 13, 128, jnp.float32, True, "13 slots"),
        (1, 16, 64, jnp.float16, False, "float16"),
    ],
)
def test_what_it_refuses(heads, slots, h, dtype, with_mass, says) -> None:
    with pytest.raises(NotImplementedError, match=says):
        mosaic_tpu.decode_attention(
            *zeros(heads, slots, h, dtype), **OPTIONS, with_mass=with_mass, interpret=True
        )


def test_a_cpu_neither_runs_nor_imports_it() -> None:
    if jax.default_backend() == "tpu":
        pytest.skip("there is a TPU")
    case = zeros(1, 16, 64, jnp.float32)
    with pytest.raises(NotImplementedError, match="needs a TPU"):
        decode_attention(*case, scale=1.0, implementation="mosaic_tpu")
    assert len(decode_attention(*case, scale=1.0, implementation=("mosaic_tpu", "xla"))) == 2
    script = "import sys, jaxkv; print('jax.experimental.pallas' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("order", Order)
def test_on_a_tpu(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    if jax.default_backend() != "tpu":
        pytest.skip("no TPU here")
    monkeypatch.setattr(mosaic_tpu, "MAX_BLOCK", 2048)
    heads, slots, h = {"B K H S": (8, 1029, 64), "B S K H": (8, 1029, 128)}.get(
        order.value, (8, 8192, 128)
    )
    q, q_sink, clean, dirty, q_pos, k_pos = arrays(
        (heads, slots, h), 2, 4, "bfloat16", False, 4, None, 0
    )
    options = dict(scale=h**-0.5, sinks=4, q_sink=q_sink)
    expected = decode_attention(q, *clean, q_pos, k_pos, implementation="xla", **options)
    actual = decode_attention(q, *dirty, q_pos, k_pos, implementation="mosaic_tpu", **options)
    for one, other in zip(actual, expected, strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=2e-2, rtol=2e-2)
