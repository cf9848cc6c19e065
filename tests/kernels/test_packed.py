# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Every op over keys and values of int8 and int4: the same as over what they stand for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hopper import ON_HOPPER, PARAMETERS, quiet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pallas_kernels import (
    attention_mass,
    decode_attention,
    pool_attention,
    prefill_attention,
    quantise,
    quantise4,
)
from pallas_kernels.decode import mosaic_gpu as decode_gpu
from pallas_kernels.decode import mosaic_tpu as decode_tpu
from pallas_kernels.decode import xla as decode_xla
from pallas_kernels.mass import mosaic_gpu as mass_gpu
from pallas_kernels.mass import mosaic_tpu as mass_tpu
from pallas_kernels.mass import xla as mass_xla
from pallas_kernels.pool import mosaic_gpu as pool_gpu
from pallas_kernels.pool import mosaic_tpu as pool_tpu
from pallas_kernels.prefill import mosaic_gpu as prefill_gpu
from pallas_kernels.prefill import mosaic_tpu as prefill_tpu
from pallas_kernels.prefill import xla as prefill_xla
from pallas_kernels.slots import answered, asked, is_packed, widen
from pallas_kernels.tpu_layout import Order, stored_order

TOLERANCE = {"float32": 5e-6, "bfloat16": 2e-2}
GPU = ON_HOPPER or PARAMETERS is not None  # whether there is one, or it can be interpreted
SLOPES = jnp.array([0.5, 0.25, 0.125, 0.0625, 0.5, 0.25])


pytestmark = quiet

PACKED = {"int8": quantise, "int4": quantise4}
each_form = pytest.mark.parametrize("form", PACKED)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decode_tpu, mass_tpu, prefill_tpu):
        monkeypatch.setattr(module, "MAX_BLOCK", 128)
    for module in (decode_xla, mass_xla, prefill_xla):
        monkeypatch.setattr(module, "BLOCK", 100)


@settings(deadline=None)
@given(exponent=st.integers(-30, 30), seed=st.integers(0, 1000))
def test_no_number_is_off_by_more_than_half_a_scale(exponent: int, seed: int) -> None:
    x = (np.random.default_rng(seed).normal(size=(3, 4)) * 10.0**exponent).astype(np.float32)
    small = quantise(jnp.asarray(x))
    assert small.values.dtype == jnp.int8 and small.scale.dtype == jnp.bfloat16
    largest = np.abs(x).max(axis=1, keepdims=True)
    assert np.all(np.abs(np.asarray(widen(small)) - x) <= largest / 252 * 1.001)


@settings(deadline=None)
@given(exponent=st.integers(-30, 30), seed=st.integers(0, 1000))
def test_bit_by_bit_as_in_float64(exponent: int, seed: int) -> None:
    """The scale is the least bfloat16, of 8 digits, that 127 of reach the largest."""
    x = np.random.default_rng(seed).normal(size=(5, 4)) * 10.0**exponent
    x = x.astype(np.float32).astype(np.float64)
    least = (np.abs(x).max(axis=1).astype(np.float32) / np.float32(127)).astype(np.float64)
    digits = 2.0 ** (7 - np.floor(np.log2(least)))
    scale = np.ceil(least * digits) / digits
    small = quantise(jnp.asarray(x, jnp.float32))
    np.testing.assert_array_equal(np.asarray(small.scale, np.float64), scale)
    exact = x / scale[:, None]
    assert np.abs(exact).max() <= 127.01
    # Where float32's division lies on the other side of a half, either neighbour is as near.
    near = np.abs(exact - np.floor(exact) - 0.5) < 1e-4
    values = np.asarray(small.values, np.float64)
    np.testing.assert_array_equal(values[~near], np.round(exact)[~near])
    assert np.all(np.abs(values - exact) < 0.5001)


def test_a_token_of_zeros_stays_zeros() -> None:
    assert not np.any(np.asarray(widen(quantise(jnp.zeros((2, 8))))))


def slab(
    form: str, rows: int, heads: int, slots: int, h: int, dtype: str, seed: int
) -> tuple[Any, ...]:
    """Queries [B, 5, 2 K, H], K and V packed and wide, q_pos [B, 5], k_pos [B, K, S].

    Scales of slots that nobody may see are NaN; what is wide is 0 there.
    """
    rng = np.random.default_rng(seed)
    q = jnp.asarray(rng.normal(size=(rows, 5, 2 * heads, h)), dtype)
    k_pos = rng.integers(-1, slots, (rows, heads, slots)).astype(np.int32)
    q_pos = np.sort(rng.integers(slots // 2, slots - 1, (rows, 5)).astype(np.int32), axis=1)
    if rows > 1:
        q_pos[0] = -1  # a row that sees nothing
    last = q_pos.max(axis=1)[:, None, None]
    hidden = (k_pos < 0) | (k_pos > last)
    small, plain = [], []
    for _ in range(2):
        x = PACKED[form](jnp.asarray(rng.normal(size=(rows, heads, slots, h)), dtype))
        clean = x._replace(scale=jnp.where(hidden, 0.0, x.scale))
        small.append(x._replace(scale=jnp.where(hidden, jnp.nan, x.scale)))
        plain.append((clean, widen(clean)))
    return q, small, plain, jnp.asarray(q_pos), jnp.asarray(k_pos)


def same(actual: Any, expected: Any, dtype: str) -> None:
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


CASES = {
    # K, S, H: the three orders in which a TPU may keep a slab, with a ragged last block.
    "shape": st.sampled_from([(2, 264, 128), (3, 256, 64), (8, 133, 128), (1, 200, 256)]),
    "rows": st.integers(1, 2),
    "dtype": st.sampled_from(["float32", "bfloat16"]),
    "bent": st.booleans(),
    "seed": st.integers(0, 1000),
}
few = settings(
    max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def bends(bent: bool, heads: int) -> dict[str, Any]:
    if not bent:
        return {}
    return {"slopes": jnp.resize(SLOPES, 2 * heads), "soft_cap": 5.0}


def by_the_api(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel with what the api does for it: queries as keys are held, and outputs back."""

    def call(q: Any, *args: Any, q_sink: Any = None, **options: Any) -> Any:
        slabs = [x for x in args if is_packed(x)]
        if not slabs:
            return kernel(q, *args, **options)
        if q_sink is not None:
            options["q_sink"] = asked(q_sink, slabs[0])
        found = kernel(asked(q, slabs[0]), *args, **options)
        return (answered(found[0], slabs[1]), *found[1:]) if len(slabs) > 1 else found

    return call


def compiled(function: Callable[..., Any], **static: Any) -> Callable[..., Any]:
    return jax.jit(functools.partial(function, **static))


@each_form
@few
@given(**CASES, window=st.sampled_from([None, 90]))
def test_decode(form, shape, rows, dtype, bent, seed, window) -> None:
    heads, slots, h = shape
    q, dirty, plain, q_pos, k_pos = slab(form, rows, heads, slots, h, dtype, seed)
    options = dict(scale=h**-0.5, window=window, sinks=4, **bends(bent, heads))
    # Sinks are the tokens of the first slots.
    k_pos = k_pos.at[:, :, :4].set(jnp.arange(4))
    near = lambda x: x._replace(scale=x.scale.at[:, :, :4].set(0.01))  # noqa: E731
    dirty, plain = [near(x) for x in dirty], [near(x) for x, _ in plain]
    mass = stored_order((rows, heads, slots, h), 1) is not Order.SLOTS_HEADS
    args = q[:, 4], q_pos[:, 4], k_pos, q[:, 3]

    def run(function: Callable[..., Any], k: Any, v: Any, **more: Any) -> Any:
        def call(q, q_pos, k_pos, q_sink, k, v):
            return function(q, k, v, q_pos, k_pos, q_sink=q_sink, with_mass=mass, **options, **more)

        return jax.jit(call)(*args, k, v)

    xla = functools.partial(decode_attention, implementation="xla")
    expected = run(xla, *(widen(x) for x in plain))
    same(run(xla, *plain), expected, dtype)
    same(run(by_the_api(decode_tpu.decode_attention), *dirty, interpret=True), expected, dtype)
    if GPU and dtype == "bfloat16":
        same(
            run(by_the_api(decode_gpu.decode_attention), *dirty, interpret=PARAMETERS),
            expected,
            dtype,
        )


@each_form
@few
@given(**CASES, window=st.sampled_from([None, 90]), traced=st.booleans())
def test_prefill(form, shape, rows, dtype, bent, seed, window, traced) -> None:
    heads, slots, h = shape
    q, dirty, plain, q_pos, k_pos = slab(form, rows, heads, slots, h, dtype, seed)
    options = dict(scale=h**-0.5, window=window, sinks=4, **bends(bent, heads))

    def run(function: Callable[..., Any], k: Any, v: Any, **more: Any) -> Any:
        def call(q, k, v, q_pos, k_pos, count):
            count = count if traced else None
            return function(q, k, v, q_pos, k_pos, num_slots=count, **options, **more)

        return jax.jit(call)(q, k, v, q_pos, k_pos, jnp.int32(slots - 3))

    one = functools.partial(prefill_attention, implementation="reference")
    expected = run(one, *(wide for _, wide in plain))
    same(run(one, *(x for x, _ in plain)), expected, dtype)
    xla = functools.partial(prefill_attention, implementation="xla")
    same(run(xla, *(x for x, _ in plain)), expected, dtype)
    same(run(by_the_api(prefill_tpu.prefill_attention), *dirty, interpret=True), expected, dtype)
    if GPU and dtype == "bfloat16":
        same(
            run(by_the_api(prefill_gpu.prefill_attention), *dirty, interpret=PARAMETERS),
            expected,
            dtype,
        )


@each_form
@few
@given(**CASES)
def test_mass(form, shape, rows, dtype, bent, seed) -> None:
    heads, slots, h = shape
    q, (dirty, _), ((plain, wide), _), q_pos, k_pos = slab(form, rows, heads, slots, h, dtype, seed)
    options = dict(scale=h**-0.5, num_slots=None, **bends(bent, heads))
    lse = jnp.full(q.shape[:3], 4.0)

    def run(function: Callable[..., Any], k: Any, **more: Any) -> Any:
        return compiled(function, **options, **more)(q, lse, k, q_pos, k_pos)

    expected = run(functools.partial(attention_mass, implementation="reference"), wide)
    same(run(functools.partial(attention_mass, implementation="xla"), plain), expected, dtype)
    same(run(by_the_api(mass_tpu.attention_mass), dirty, interpret=True), expected, dtype)
    if GPU and dtype == "bfloat16":
        same(run(by_the_api(mass_gpu.attention_mass), dirty, interpret=PARAMETERS), expected, dtype)


@few
@given(
    size=st.sampled_from([16, 32]), rows=st.integers(1, 3), heads=st.sampled_from([1, 3, 8]),
    h=st.sampled_from([64, 128]), form=st.sampled_from([None, *PACKED]),
    dtype=CASES["dtype"], bent=st.booleans(), seed=CASES["seed"],
)  # fmt: skip
def test_pool(size, rows, heads, h, form, dtype, bent, seed) -> None:
    """Blocks of any owner in any order; some heads may have none."""
    rng = np.random.default_rng(seed)
    blocks = 11
    q = jnp.asarray(rng.normal(size=(rows, 2 * heads, h)), dtype)
    owner = jnp.asarray(rng.integers(0, heads, (rows, blocks)), jnp.int32)
    k_pos = rng.integers(-1, 300, (rows, blocks * size)).astype(np.int32)
    q_pos = rng.integers(100, 300, rows).astype(np.int32)
    q_pos[0] = -1 if rows > 1 else q_pos[0]
    hidden = jnp.asarray((k_pos < 0) | (k_pos > q_pos[:, None]))
    clean, dirty = [], []
    for _ in range(2):
        x = jnp.asarray(rng.normal(size=(rows, blocks * size, h)), dtype)
        if form:
            small = PACKED[form](x)
            clean.append(small._replace(scale=jnp.where(hidden, 0.0, small.scale)))
            dirty.append(small._replace(scale=jnp.where(hidden, jnp.nan, small.scale)))
        else:
            clean.append(jnp.where(hidden[..., None], jnp.zeros((), dtype), x))
            dirty.append(jnp.where(hidden[..., None], jnp.full((), jnp.nan, dtype), x))
    options = dict(num_kv_heads=heads, scale=h**-0.5, **bends(bent, heads))

    def run(function: Callable[..., Any], k: Any, v: Any, **more: Any) -> Any:
        return compiled(function, **options, **more)(q, k, v, q_pos, k_pos, owner)

    expected = run(
        functools.partial(pool_attention, implementation="reference"), *(widen(x) for x in clean)
    )
    same(run(functools.partial(pool_attention, implementation="xla"), *clean), expected, dtype)
    same(run(by_the_api(pool_tpu.pool_attention), *dirty, interpret=True), expected, dtype)
    if GPU and dtype == "bfloat16":
        same(
            run(by_the_api(pool_gpu.pool_attention), *dirty, interpret=PARAMETERS), expected, dtype
        )


@pytest.mark.parametrize("kernel", [decode_tpu.decode_attention, prefill_tpu.prefill_attention])
def test_keys_and_values_are_of_one_form(kernel: Callable[..., Any]) -> None:
    q = (
        jnp.zeros((1, 1, 128))
        if kernel is decode_tpu.decode_attention
        else jnp.zeros((1, 1, 1, 128))
    )
    k, positions = jnp.zeros((1, 1, 8, 128)), jnp.zeros((1, 1, 8), jnp.int32)
    more = {"q_sink": None, "with_mass": False} if q.ndim == 3 else {"num_slots": None}
    for other in (k, quantise4(k)):
        with pytest.raises(NotImplementedError, match="int8"):
            kernel(
                q, quantise(k), other, jnp.zeros(q.shape[: q.ndim - 2], jnp.int32), positions,
                scale=1.0, window=None, sinks=0, interpret=True, **more,
            )  # fmt: skip
