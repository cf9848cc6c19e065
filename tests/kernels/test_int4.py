# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys and values of 4 bits: what they hold, and ops over them against those over numbers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import (
    Int4,
    attention_mass,
    decode_attention,
    pool_attention,
    prefill_attention,
    quantise4,
)
from pallas_kernels.decode import xla as decode_xla
from pallas_kernels.int4 import hadamard, part_size, unpacked
from pallas_kernels.mass import xla as mass_xla
from pallas_kernels.prefill import xla as prefill_xla
from pallas_kernels.slots import scaled, widen

ROWS, HEADS, SLOTS, H, T = 2, 2, 133, 16, 5
SCALE = H**-0.5


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decode_xla, mass_xla, prefill_xla):
        monkeypatch.setattr(module, "BLOCK", 50)


@settings(deadline=None)
@given(exponent=st.integers(-30, 30), seed=st.integers(0, 1000))
def test_bit_by_bit_as_in_float64(exponent: int, seed: int) -> None:
    """The scale is the least bfloat16, of 8 digits, that 7 of reach the largest sum."""
    x = (np.random.default_rng(seed).normal(size=(5, 6)) * 10.0**exponent).astype(np.float32)
    pairs = x.reshape(5, 3, 2)  # 2 is the largest power of 2 that divides 6
    sums = np.stack([pairs[..., 0] + pairs[..., 1], pairs[..., 0] - pairs[..., 1]], axis=-1)
    numbers, x = x, sums.reshape(5, 6).astype(np.float64)
    least = (np.abs(x).max(axis=1).astype(np.float32) / np.float32(7)).astype(np.float64)
    digits = 2.0 ** (7 - np.floor(np.log2(least)))
    scale = np.ceil(least * digits) / digits
    small = quantise4(jnp.asarray(numbers))
    assert small.values.dtype == jnp.uint8 and small.values.shape == (5, 3)
    np.testing.assert_array_equal(np.asarray(small.scale, np.float64), scale)
    bits = np.asarray(small.values)
    values = np.concatenate([bits & 15, bits >> 4], axis=1).astype(np.float64) - 8
    exact = x / scale[:, None]
    near = np.abs(exact - np.floor(exact) - 0.5) < 1e-4
    np.testing.assert_array_equal(values[~near], np.round(exact)[~near])
    assert np.abs(values).max() == 7 and np.all(np.abs(values - exact) < 0.5001)
    np.testing.assert_array_equal(np.asarray(scaled(small), np.float64), values * scale[:, None])
    back = (values * scale[:, None]).reshape(5, 3, 2)
    back = np.stack([back[..., 0] + back[..., 1], back[..., 0] - back[..., 1]], axis=-1) / 2
    np.testing.assert_allclose(np.asarray(widen(small)), back.reshape(5, 6), rtol=1e-6)


@pytest.mark.parametrize("h", [1, 6, 8, 80, 128])
def test_sums_are_hadamards_and_undone_by_themselves(h) -> None:
    """By scipy's matrix, of the largest power of 2 that divides the dimensions."""
    size = part_size(h)
    assert h % size == 0 and (h // size) % 2 == 1
    x = np.random.default_rng(0).integers(-9, 9, (3, h)).astype(np.float32)
    signs = scipy.linalg.hadamard(size)
    sums = np.einsum("npi,ij->npj", x.reshape(3, -1, size), signs).reshape(3, h)
    got = hadamard(jnp.asarray(x))
    np.testing.assert_array_equal(got, sums)
    np.testing.assert_array_equal(hadamard(got), size * x)


def test_what_stands_out_in_every_token_costs_the_others_less() -> None:
    """As in the keys of a model: a few dimensions are large, and all alike."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 64))
    x[:, [3, 40]] += 20.0
    off = np.asarray(widen(quantise4(jnp.asarray(x, jnp.float32)))) - x
    plain = np.abs(x).max(axis=1, keepdims=True) / 7
    by_token = np.round(x / plain) * plain - x
    assert np.sqrt(np.mean(off**2)) < 0.6 * np.sqrt(np.mean(by_token**2))


def test_every_byte_is_two_numbers() -> None:
    every = jnp.arange(256, dtype=jnp.int32).astype(jnp.uint8)[:, None]
    for dtype in (jnp.float32, jnp.bfloat16):
        found = np.asarray(unpacked(every, dtype), np.int32)
        assert (found[:, 0] + 8 + 16 * (found[:, 1] + 8) == np.arange(256)).all()


def test_a_token_of_zeros_stays_zeros() -> None:
    assert not np.any(np.asarray(widen(quantise4(jnp.zeros((2, 8))))))
    empty = Int4(jnp.zeros((2, 4), jnp.uint8), jnp.zeros(2, jnp.bfloat16))
    assert not np.any(np.asarray(widen(empty)))


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)

    def made(*shape: int):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    k_pos = rng.integers(-1, SLOTS, (ROWS, HEADS, SLOTS)).astype(np.int32)
    k_pos[:, :, :4] = np.arange(4)
    q_pos = np.sort(rng.integers(SLOTS // 2, SLOTS, (ROWS, T)).astype(np.int32), axis=1)
    small = [quantise4(made(ROWS, HEADS, SLOTS, H)) for _ in range(2)]
    return made(ROWS, T, 2 * HEADS, H), small, jnp.asarray(q_pos), jnp.asarray(k_pos)


def same(function, small, *args, **options) -> None:
    """Over 4 bits, and over the numbers that they stand for."""
    run = jax.jit(functools.partial(function, scale=SCALE, implementation="xla", **options))
    got, expected = run(*args, *small), run(*args, *map(widen, small))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("bent", [{}, {"soft_cap": 5.0}, {"slopes": True}])
@pytest.mark.parametrize("window, sunk", [(None, False), (60, False), (60, True)])
def test_decode(case, window, sunk, bent) -> None:
    q, small, q_pos, k_pos = case
    bent = {"slopes": jnp.asarray([0.5, 0.1, 0.02, 0.3])} if "slopes" in bent else bent

    def run(q, q_sink, k, v, **options):
        return decode_attention(
            q, k, v, q_pos[:, 4], k_pos, q_sink=q_sink if sunk else None, with_mass=True,
            window=window, sinks=4 if window else 0, **bent, **options,
        )  # fmt: skip

    same(run, small, q[:, 4], q[:, 3])


@pytest.mark.parametrize("window", [None, 60])
def test_prefill(case, window) -> None:
    q, small, q_pos, k_pos = case

    def run(q, k, v, **options):
        return prefill_attention(q, k, v, q_pos, k_pos, window=window, sinks=4, **options)

    same(run, small, q)


def test_mass(case) -> None:
    q, (small, _), q_pos, k_pos = case

    def run(q, k, **options):
        return attention_mass(q, jnp.zeros(q.shape[:3]), k, q_pos, k_pos, **options)

    same(run, [small], q)


def test_pool(case) -> None:
    q, small, q_pos, _ = case
    small = [jax.tree.map(lambda x: x[:, 0, :128], x) for x in small]
    rng = np.random.default_rng(1)
    owner = jnp.asarray(rng.integers(0, HEADS, (ROWS, 8)), jnp.int32)
    at = jnp.asarray(rng.integers(-1, SLOTS, (ROWS, 128)), jnp.int32)
    span = jnp.asarray([1, 0]), jnp.asarray([6, 8])

    def run(q, k, v, **options):
        return pool_attention(
            q, k, v, q_pos[:, 4], at, owner, num_kv_heads=HEADS, **options
        )  # fmt: skip

    same(run, small, q[:, 4])
    same(functools.partial(run, span=span), small, q[:, 4])
