# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A part of a pool is read, and no other: every implementation beside a loop in NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hopper import PARAMETERS, quiet, runs
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import pool_attention
from pallas_kernels.pool import mosaic_gpu, mosaic_tpu, xla
from pallas_kernels.softmax import merge

HEADS, GROUP, DIM, SIZE, BLOCKS = 2, 3, 64, 8, 80


def case(seed: int, spans, bent: bool):
    """q, k, v, q_pos, k_pos and owner; the span; and what the op is told."""
    rng = np.random.default_rng(seed)
    rows = len(spans)
    begin, end = np.asarray(spans, np.int32).T
    slots = BLOCKS * SIZE
    q = rng.normal(size=(rows, HEADS * GROUP, DIM)).astype(np.float32)
    k, v = (rng.normal(size=(rows, slots, DIM)).astype(np.float32) for _ in range(2))
    q_pos = np.full(rows, 500, np.int32)
    k_pos = rng.integers(0, 520, (rows, slots)).astype(np.int32)
    k_pos[rng.random((rows, slots)) < 0.2] = -1
    owner = rng.integers(0, HEADS, (rows, BLOCKS)).astype(np.int32)
    how = {"num_kv_heads": HEADS, "scale": 0.125}
    if bent:
        how |= {"slopes": jnp.asarray(rng.random(HEADS * GROUP), jnp.float32), "soft_cap": 5.0}
    args = tuple(jnp.asarray(x) for x in (q, k, v, q_pos, k_pos, owner))
    return args, (jnp.asarray(begin), jnp.asarray(end)), how


def oracle(args, span, how) -> tuple[np.ndarray, np.ndarray]:
    q, k, v, q_pos, k_pos, owner = (np.asarray(x, np.float64) for x in args)
    span = [np.asarray(x) for x in span]
    out, lse = np.zeros_like(q), np.full(q.shape[:2], -np.inf)
    for row in range(len(q)):
        for head in range(q.shape[1]):
            at = [
                slot
                for block in range(span[0][row], span[1][row])
                for slot in range(block * SIZE, (block + 1) * SIZE)
                if owner[row, block] == head // GROUP and 0 <= k_pos[row, slot] <= q_pos[row]
            ]
            if not at:
                continue
            scores = k[row, at] @ q[row, head] * how["scale"]
            if "soft_cap" in how:
                scores = how["soft_cap"] * np.tanh(scores / how["soft_cap"])
                scores -= float(how["slopes"][head]) * (q_pos[row] - k_pos[row, at])
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ v[row, at] / weights.sum()
            lse[row, head] = scores.max() + np.log(weights.sum())
    return out, lse


@settings(max_examples=12)
@given(
    seed=st.integers(0, 99), bent=st.booleans(),
    spans=st.lists(
        st.tuples(st.integers(0, BLOCKS), st.integers(0, BLOCKS)).map(sorted), min_size=2,
        max_size=2,
    ),
)  # fmt: skip
def test_xla_reads_the_span_alone(seed, spans, bent) -> None:
    args, span, how = case(seed, spans, bent)
    out, lse = jax.jit(functools.partial(pool_attention, implementation="xla", **how))(
        *args, span=span
    )
    expected = oracle(args, span, how)
    np.testing.assert_allclose(out, expected[0], atol=1e-5)
    np.testing.assert_allclose(lse, expected[1], atol=1e-5)


@pytest.mark.parametrize("spans", [[(0, 80), (0, 0)], [(3, 41), (79, 80)]])
@pytest.mark.parametrize("bent", [False, True])
def test_every_implementation_reads_the_same(spans, bent) -> None:
    args, span, how = case(7, spans, bent)
    expected = oracle(args, span, how)
    found = {
        "xla": pool_attention(*args, span=span, implementation="xla", **how),
        "reference": pool_attention(*args, span=span, implementation="reference", **how),
        "tpu": mosaic_tpu.pool_attention(*args, span=span, max_block=128, interpret=True, **how),
    }
    for name, (out, lse) in found.items():
        np.testing.assert_allclose(out, expected[0], atol=1e-4, err_msg=name)
        np.testing.assert_allclose(lse, expected[1], atol=1e-4, err_msg=name)


@runs
@quiet
@pytest.mark.parametrize("spans", [[(0, 80), (0, 0)], [(3, 41), (79, 80)]])
def test_a_gpu_reads_the_same(spans) -> None:
    args, span, how = case(7, spans, True)
    small = [jnp.asarray(x, jnp.bfloat16) for x in args[:3]]
    out, lse = mosaic_gpu.pool_attention(*small, *args[3:], span=span, interpret=PARAMETERS, **how)
    expected = oracle((*(np.asarray(x, np.float32) for x in small), *args[3:]), span, how)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected[0], atol=2e-2)
    np.testing.assert_allclose(lse, expected[1], atol=2e-2)


def test_work_is_in_proportion_to_the_span(monkeypatch) -> None:
    """A layer's step takes turns over its own blocks, not over the pool's."""
    args, _, how = case(1, [(0, 0), (0, 0)], False)
    turns = []

    def counted(*parts):
        jax.debug.callback(lambda: turns.append(1))
        return merge(*parts)

    monkeypatch.setattr(xla, "merge", counted)
    run = jax.jit(functools.partial(xla.pool_attention, **how))
    cases = ([(0, 80), (40, 80)], 3 + 2), ([(5, 9), (70, 71)], 2), ([(3, 3)] * 2, 0)
    for spans, most in cases:
        turns.clear()
        begin, end = jnp.asarray(spans, jnp.int32).T
        jax.block_until_ready(run(*args, span=(begin, end)))
        jax.effects_barrier()
        assert len(turns) == most
