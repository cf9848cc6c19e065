# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Every policy over keys and values as int8 and int4, forms that no policy knows of.

Numbers that it holds exactly must give what plain arrays give, choices included; others may be off
by what the form itself is off.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax import Array
from policy_cases import SLAB_CASES, law

from jaxkv import (
    Full,
    Geometry,
    Rope,
    SnapKV,
    StreamingLLM,
    forward,
    generate,
    init_cache,
    load_cache,
    save_cache,
)
from jaxkv.cache import store as stores
from jaxkv.cache.bytes import bytes_read, kept_tokens, nbytes
from jaxkv.cache.packed import Int4Store, Int8Store, zeros
from jaxkv.cache.pool import Pool
from jaxkv.cache.slab import Slab
from jaxkv.checkpoints import toy
from jaxkv.core.errors import InputError
from jaxkv.layers.api import prefill, step
from jaxkv.layers.base import Policy
from jaxkv.models.plan import plan
from pallas_kernels.int4 import hadamard

PROMPT, STEPS = 17, 6
LENGTHS = jnp.asarray([17, 11], jnp.int32)
jit_prefill = jax.jit(prefill, static_argnums=0, static_argnames="rope")
jit_step = jax.jit(step, static_argnums=0, static_argnames="rope", donate_argnums=1)


def both(policy: Policy, form: str):
    """The policy's layer over plain arrays, and over packed ones."""
    plain = toys.geometry(2)
    return [policy.at(0, g) for g in (plain, dataclasses.replace(plain, dtype=form))]


def run(layer, cache, qkv, rope):
    """A ragged prompt, steps, a second prompt and a step more: (cache, valid outs [T, N, H])."""
    kinds, outs = jax.tree.map(lambda x: (x.shape, x.dtype), cache), []
    ends = [PROMPT, *range(PROMPT + 1, PROMPT + STEPS + 1), 2 * PROMPT, 2 * PROMPT + 1]
    for begin, end in zip([0, *ends], ends, strict=False):
        part = [jnp.asarray(x[:, begin:end]) for x in qkv]
        if end - begin == 1:
            cache, out = jit_step(layer, cache, *part, rope=rope)
            outs += [out[0], out[1]]
        else:
            lengths = LENGTHS if begin == 0 else jnp.asarray([end - begin, 5], jnp.int32)
            cache, out = jit_prefill(layer, cache, *part, rope=rope, lengths=lengths)
            outs += [out[row, : int(lengths[row])] for row in range(2)]
        assert jax.tree.map(lambda x: (x.shape, x.dtype), cache) == kinds
    return cache, np.concatenate(outs)


def positions(cache) -> list[np.ndarray]:
    """Of every slab and pool in it."""
    leaves = jax.tree.leaves(cache, is_leaf=lambda x: isinstance(x, Slab | Pool))
    return [np.asarray(part.pos) for part in leaves if isinstance(part, Slab | Pool)]


# Of each kind of layer; other policies are these with other sizes.
LAYERS = ("full", "streaming", "snapkv", "adakv", "recycled", "h2o")


def check_exact(name: str, form: str, largest: int, token_bytes: int) -> None:
    """Multiples of a power of two, `largest` the largest: choices and outputs are the same."""
    layer, small = both(SLAB_CASES[name].policy, form)
    rng = np.random.default_rng(1)
    q, *kv = toys.qkv(2, 2 * PROMPT + 1)
    for x in kv:
        x[:] = rng.integers(1 - largest, largest, x.shape)
        x[..., 3] = rng.choice([-largest, largest], x.shape[:-1])
        x /= rng.choice([32, 64, 128], x.shape[:-1])[..., None]
        if form == "int4":  # whose multiples are sums
            x[:] = np.asarray(hadamard(jnp.asarray(x))) / x.shape[-1]
    plain, expected = run(layer, layer.init(), (q, *kv), None)
    other, got = run(small, small.init(), (q, *kv), None)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    for mine, theirs in zip(positions(other), positions(plain), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert kept_tokens((other,)) == kept_tokens((plain,))
    # Of 8 dimensions, with the scale.
    assert bytes_read((other,)) * 32 == bytes_read((plain,)) * token_bytes
    assert nbytes(other) < (token_bytes + 8.5) / 32 * nbytes(plain)


@law("store", SLAB_CASES)
def test_what_int8_holds_exactly_is_as_in_plain_arrays(name) -> None:
    check_exact(name, "int8", 127, 10)


@pytest.mark.parametrize("name", LAYERS)
def test_what_int4_holds_exactly_is_as_in_plain_arrays(name) -> None:
    check_exact(name, "int4", 7, 6)


@pytest.mark.parametrize(("form", "steps", "spread"), [("int8", 252, 1), ("int4", 13.9, 8)])
@pytest.mark.parametrize("name", LAYERS)
def test_any_numbers_are_off_by_no_more_than_the_rounding(name, form, steps, spread) -> None:
    """With room for all, so that no choice depends on it; keys are rotated before they are packed.

    Each number is off by at most half a scale, one of so many steps of the largest of its token.
    So a score is off by d = |q| |k| / steps at most, a weight by a factor of exp(2 d), and an
    output by the sum of what that does to the values and what they are off themselves. Of int4 it
    is a sum of all dimensions that is rounded, of which each number has a share.
    """
    layer, small = both(SLAB_CASES[name].roomy, form)
    q, *kv = toys.qkv(2, 2 * PROMPT + 1, seed=2)
    qkv = q / 8, *kv
    _, expected = run(layer, layer.init(), qkv, Rope(8))
    _, got = run(small, small.init(), qkv, Rope(8))
    longest = [np.linalg.norm(x, axis=-1).max() for x in qkv[:2]]
    largest = np.abs(qkv[2]).max()
    few = steps / spread
    bound = largest * (math.exp(2 * longest[0] * longest[1] / few) - 1 + 1 / few)
    off = np.abs(got - expected)
    assert 0 < off.max() < bound
    assert np.sqrt(np.mean(off**2)) < largest / steps  # most errors cancel


def test_heads_of_an_odd_width_have_no_int4() -> None:
    with pytest.raises(InputError, match="heads of 5 dimensions"):
        zeros((1, 2, 3, 5), "int4")


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("wide", [1, 5])
def test_moving_slots_moves_all_of_a_token(wide, form) -> None:
    """Each function over a packed store, against the same over the numbers that it stands for."""
    rng = np.random.default_rng(wide)
    plain = jnp.asarray(rng.normal(size=(2, 3, 7, 4)), jnp.float32)
    store = stores.pack(zeros((2, 3, 7, 4), form), plain)

    def numbers(x: Int8Store | Int4Store) -> Array:
        if isinstance(x, Int8Store):
            whole = x.values.astype(jnp.float32)
        else:
            low, high = (x.values & 15).astype(jnp.float32), (x.values >> 4).astype(jnp.float32)
            whole = jnp.concatenate([low, high], axis=-1) - 8
        return whole * x.scale.astype(jnp.float32)[..., None]

    plain = numbers(store)
    new = jnp.asarray(rng.normal(size=(2, wide, 3, 4)), jnp.float32)
    fresh = stores.pack(store, new)
    new = numbers(fresh)
    slots = jnp.asarray([[6, 0, 7, 2, 4], [1, 7, 3, 5, 0]], jnp.int32)[:, :wide]
    index = jnp.asarray(rng.integers(0, 7, (2, 3, 4)), jnp.int32)
    valid = jnp.asarray(rng.integers(0, 2, (2, 3, 4)), bool)
    each = jnp.asarray([[0, 6, 7], [3, 3, 1]], jnp.int32)
    calls = [
        functools.partial(stores.gather, index=index, valid=valid),
        functools.partial(stores.gather, index=index),
        functools.partial(stores.slice, begin=2, end=5),
        functools.partial(stores.slice, begin=1, end=3, axis=stores.HEADS),
        functools.partial(stores.pad, before=2, after=1),
        lambda x: stores.concat([x, x]),
        lambda x: stores.concat([x, x], stores.HEADS),
        stores.as_tokens,
        stores.keep_order,
        lambda x: stores.write(x, pick(x, fresh, new), slots),
        lambda x: stores.write_run(x, pick(x, fresh, new), jnp.int32(2)),
        lambda x: stores.write_per_head(x, jax.tree.map(first, pick(x, fresh, new)), each),
    ]
    for call in calls:
        np.testing.assert_array_equal(numbers(call(store)), call(plain))
    assert stores.num_heads(store) == stores.num_heads(plain) == 3


def pick(x, packed_new, plain_new):
    """The new tokens in the form of `x`."""
    return packed_new if isinstance(x, Int8Store | Int4Store) else plain_new


def first(x: Array) -> Array:
    return x[:, 0]


@pytest.mark.parametrize(("form", "most"), [("int8", 0.53), ("int4", 0.285)])
def test_bytes_are_beside_those_of_bfloat16(form, most) -> None:
    """At the shapes of SmolLM2-135M and of Llama 3, of whole caches: positions too."""
    for heads, kv_heads, dim in ((9, 3, 64), (32, 8, 128)):
        wide = Geometry(2, heads, kv_heads, dim, 1, 8192, "bfloat16")
        small = dataclasses.replace(wide, dtype=form)
        for policy in (Full(), StreamingLLM(4, 1020), SnapKV(1024, decode_room=0)):
            ratio = plan(policy, small).physical_bytes / plan(policy, wide).physical_bytes
            assert ratio <= most, (policy, ratio)
            # Positions of their own, and whole tiles, weigh most where heads are narrow.
            over = plan(policy, small).physical_bytes / plan(policy, small).nominal_bytes
            assert over <= (1.08 if dim == 128 else 1.1)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_it_generates_and_is_saved(form, tmp_path) -> None:
    model, policy = toy.load(), SnapKV(24, window=4, decode_room=8)
    prompt = "one prompt that is longer than what is kept of it, and then some more of it"
    said = [
        generate(model, prompt, policy=policy, max_new_tokens=5, kv_dtype=dtype)
        for dtype in (None, form)
    ]
    bytes_of = [answer.stats["cache"]["physical_bytes"] for answer in said]
    assert len(said[1].token_ids[0]) == 5 and bytes_of[1] < 0.5 * bytes_of[0]
    cache = init_cache(toys.CONFIG, policy, 2, 64, form)
    lengths, tokens = jnp.asarray([40, 23], jnp.int32), jnp.asarray(toys.tokens(2, 40))
    _, cache = forward(toys.params(), toys.CONFIG, policy, tokens, cache, lengths)
    save_cache(tmp_path / "kept", cache, policy)
    again = load_cache(tmp_path / "kept", policy)
    assert jax.tree.structure(again) == jax.tree.structure(cache)
    for mine, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(cache), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_bytes_of_every_type_of_array() -> None:
    """As a device holds them: also of int4, of a PRNG key (two 32-bit words), of shapes alone."""
    arrays = (jnp.zeros((3, 4), jnp.int4), jax.random.key(0), jnp.zeros(5, jnp.bfloat16))
    for tree in (arrays, jax.eval_shape(lambda: arrays)):
        assert nbytes(tree) == 6 + 8 + 10
