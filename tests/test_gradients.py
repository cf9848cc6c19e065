# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A gradient through every policy: prompts and steps, whatever was evicted on the way."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from policy_cases import CASES
from test_families import for_layers

from jaxkv.cache.slab import Slab
from jaxkv.generate.running import forward
from jaxkv.policies.full import Full
from jaxkv.policies.keydiff import KeyDiff
from pallas_kernels.decode import mosaic_tpu as decode_tpu
from pallas_kernels.decode import xla as decode_xla
from pallas_kernels.loops import loop
from pallas_kernels.pool import mosaic_tpu as pool_tpu
from pallas_kernels.pool import reference
from pallas_kernels.pool.xla import pool_attention as xla_pool
from pallas_kernels.prefill import xla as prefill_xla

PROMPT, STEPS = 22, 6
TOKENS = jnp.asarray(toys.tokens(2, PROMPT + STEPS + 1))
# Of each kind of layer; "global" deals one budget out over the model.
SHARED = {"window": 2, "sinks": 1, "decode_room": 4, "allocation": "global"}
POLICIES = {
    name: (CASES[name].policy, CASES[name].roomy)
    for name in ("full", "streaming", "duo", "snapkv", "adakv", "recycled", "h2o", "tova")
} | {"global": (KeyDiff(10, **SHARED), KeyDiff(60, **SHARED))}


def config_of(policy):
    """One layer is enough where layers do not share what they keep."""
    shared = getattr(policy, "allocation", None) == "global"
    return toys.CONFIG if shared else dataclasses.replace(toys.CONFIG, num_layers=1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def loss(params, policy, prompts: bool = True):
    """Of what is decoded after a ragged prompt, and of the `prompts` too; and the cache."""
    config = config_of(policy)
    policy = for_layers(policy, config)
    cache = toys.begun(config, policy, 2, 64)
    lengths = jnp.asarray([PROMPT, PROMPT - 5], jnp.int32)
    logits, cache = forward(params, config, policy, TOKENS[:, :PROMPT], cache, lengths)

    def step(cache, token):
        logits, cache = forward(params, config, policy, token[:, None], cache)
        return cache, logits[:, 0]

    cache, later = jax.lax.scan(step, cache, TOKENS[:, PROMPT:-1].T)
    both = jnp.concatenate([logits[:, : PROMPT - 5] * float(prompts), later.swapaxes(0, 1)], axis=1)
    wanted = jnp.concatenate([TOKENS[:, 1 : PROMPT - 4], TOKENS[:, PROMPT + 1 :]], axis=1)
    shares = jnp.take_along_axis(jax.nn.log_softmax(both), wanted[..., None], axis=-1)
    return -jnp.sum(shares), cache


gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=(1, 2))


@functools.cache
def params(policy):
    return toys.params(config_of(policy))


def kept(cache) -> list[np.ndarray]:
    parts = jax.tree.leaves(cache, is_leaf=lambda x: isinstance(x, Slab))
    return [np.asarray(getattr(part, "pos", part)) for part in parts if hasattr(part, "pos")]


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_it_is_the_slope(name: str) -> None:
    """Along the steepest way, by differences over a step that changes no choice.

    Of the projections alone, and of what is decoded: what they have to do with each other went
    through what was kept of the prompt.
    """
    policy, _ = POLICIES[name]
    mine = params(policy)
    found, _ = gradient(mine, policy, False)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    found = jax.tree_util.tree_map_with_path(
        lambda path, x: x if "wqkv" in jax.tree_util.keystr(path) else jnp.zeros_like(x), found
    )
    leaves = jax.tree.leaves(found)
    length = float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in leaves)))
    step = 2e-3 / length

    def at(sign: int):
        moved = jax.tree.map(lambda p, g: p + sign * step * g, mine, found)
        value, cache = loss(moved, policy, False)
        return float(value), kept(cache)

    (above, one), (below, other) = at(1), at(-1)
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)
    assert (above - below) / (2 * step) == pytest.approx(length**2, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["streaming", "snapkv", "recycled"])
def test_where_nothing_is_evicted_it_is_that_of_everything(name: str) -> None:
    roomy = POLICIES[name][1]
    if hasattr(roomy, "decode_room"):
        roomy = dataclasses.replace(roomy, decode_room=STEPS)
    found, expected = (gradient(params(roomy), policy)[0] for policy in (roomy, Full()))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4 * float(np.abs(y).max()) + 1e-6)


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_a_loop_of_any_length_has_that_of_its_turns(count) -> None:
    """Beside the same turns one after the other; with integers among what is carried."""

    def body(index, carry, consts):
        (x, n), (w, b) = carry, consts
        return jnp.tanh(x @ w + b * (index + n).astype(jnp.float32)), n + 1

    def run(x, consts, count):
        return jnp.sum(loop(body, 4, count, (x, jnp.int32(2)), consts)[0] ** 2)

    def turns(x, consts):
        carry = x, jnp.int32(2)
        for index in range(count):
            carry = body(jnp.int32(index), carry, consts)
        return jnp.sum(carry[0] ** 2)

    args = numbers(3, 3), (numbers(3, 3, seed=1), numbers(3, 3, seed=2))
    found = jax.jit(jax.value_and_grad(run, argnums=(0, 1)))(*args, jnp.int32(count))
    expected = jax.value_and_grad(turns, argnums=(0, 1))(*args)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def same_derivatives(plain, kernel, *arrays, **options) -> None:
    """Of q, k and v, which come first; the kernel has it though it has none of its own."""
    floats, others = arrays[:3], arrays[3:]

    def total(function):
        def of(floats):
            found = jax.tree.leaves(function(*floats, *others, **options))
            return sum(jnp.sum(jnp.where(jnp.isfinite(x), x, 0) ** 2) for x in found)

        return jax.jit(jax.grad(of))

    expected = total(plain)(floats)
    for mine, theirs in zip(total(kernel)(floats), expected, strict=True):
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def numbers(*shape: int, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_a_decode_kernel_has_that_of_what_xla_computes() -> None:
    q, k, v = numbers(2, 6, 64), numbers(2, 3, 256, 64, seed=1), numbers(2, 3, 256, 64, seed=2)
    k_pos = jnp.broadcast_to(jnp.arange(256, dtype=jnp.int32), (2, 3, 256))
    same_derivatives(
        decode_xla.decode_attention,
        functools.partial(decode_tpu.decode_attention, interpret=True), q, k, v,
        jnp.asarray([200, 90], jnp.int32), k_pos,
        scale=0.125, window=60, sinks=4, q_sink=numbers(2, 6, 64, seed=3), with_mass=False,
    )  # fmt: skip


@pytest.mark.parametrize("kernel", [False, True])
def test_a_pool_has_that_of_the_definition(kernel) -> None:
    """Of which no loop is a part: the span's too, with blocks of others before it and after."""
    q, k, v = numbers(1, 4, 64), numbers(1, 256, 64, seed=1), numbers(1, 256, 64, seed=2)
    at = jnp.arange(256, dtype=jnp.int32)[None]
    owner = jnp.asarray([[0, 1, 1, 0, 1, 0, 0, 1]], jnp.int32)
    span = jnp.asarray([1], jnp.int32), jnp.asarray([7], jnp.int32)
    plain = functools.partial(pool_tpu.pool_attention, interpret=True)
    same_derivatives(
        reference.pool_attention, plain if kernel else xla_pool, q, k, v,
        jnp.asarray([255], jnp.int32), at, owner, num_kv_heads=2, scale=0.125, span=span,
    )  # fmt: skip


def test_scores_of_all_blocks_are_not_kept() -> None:
    """A derivative holds those of one block at a time, and what is folded between them."""
    count, block, dim = 2048, 128, 16
    q = jax.ShapeDtypeStruct((1, count, 1, dim), jnp.float32)
    k = jax.ShapeDtypeStruct((1, 1, count, dim), jnp.float32)
    at = jnp.arange(count, dtype=jnp.int32)[None]

    def total(q, k, v):
        out, _ = prefill_xla.prefill_attention(
            q, k, v, at, at[:, None], scale=1.0, window=None, sinks=0, num_slots=jnp.int32(count),
            max_block=block,
        )  # fmt: skip
        return jnp.sum(out * out)

    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, k).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < count * count * 4
