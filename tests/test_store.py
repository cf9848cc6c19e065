# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Every policy over keys and values in a form that no policy knows: int8, a scale a token and head.

The form lives here. Numbers that it holds exactly must give what plain arrays give, choices
included; others may be off by what the form itself is off.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax import Array
from policy_cases import SLAB_CASES, law

from jaxkv import Rope
from jaxkv.cache import store as stores
from jaxkv.cache.bytes import bytes_read, kept_tokens, nbytes
from jaxkv.cache.pool import Pool
from jaxkv.cache.slab import Slab
from jaxkv.cache.store import Packed
from jaxkv.layers.api import prefill, step
from pallas_kernels import Int8

PROMPT, STEPS = 17, 6
LENGTHS = jnp.asarray([17, 11], jnp.int32)
jit_prefill = jax.jit(prefill, static_argnums=0, static_argnames="rope")
jit_step = jax.jit(step, static_argnums=0, static_argnames="rope", donate_argnums=1)


@flax.struct.dataclass
class Int8Store(Packed):
    """Whole multiples of a scale that each token of each head has for itself.

    Attributes:
      values: int8 [B, K, S, H].
      scale: float32 [B, K, S].
    """

    values: Array
    scale: Array

    def pack(self, numbers: Array) -> Int8Store:
        numbers = numbers.astype(jnp.float32)
        scale = jnp.max(jnp.abs(numbers), axis=-1) / 127
        values = jnp.round(numbers / jnp.where(scale == 0, 1.0, scale)[..., None])
        return Int8Store(values.astype(jnp.int8), scale)

    def slots(self) -> Int8:
        return Int8(self.values, self.scale)


def packed(cache):
    """An empty cache whose keys and values are int8."""
    none = Int8Store(jnp.zeros(0, jnp.int8), jnp.zeros(0))

    def in_int8(part):
        if not isinstance(part, Slab | Pool):
            return part
        return dataclasses.replace(part, k=none.pack(part.k), v=none.pack(part.v))

    return jax.tree.map(in_int8, cache, is_leaf=lambda x: isinstance(x, Slab | Pool))


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


@law("store", SLAB_CASES)
def test_what_int8_holds_exactly_is_as_in_plain_arrays(name) -> None:
    """Multiples of a power of two, 127 of it the largest: every choice is the same, and output."""
    layer = SLAB_CASES[name].policy.at(0, toys.geometry(2))
    rng = np.random.default_rng(1)
    q, *kv = toys.qkv(2, 2 * PROMPT + 1)
    for x in kv:
        x[:] = rng.integers(-126, 127, x.shape)
        x[..., 3] = rng.choice([-127, 127], x.shape[:-1])
        x /= rng.choice([32, 64, 128], x.shape[:-1])[..., None]
    plain, expected = run(layer, layer.init(), (q, *kv), None)
    other, got = run(layer, packed(layer.init()), (q, *kv), None)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    for mine, theirs in zip(positions(other), positions(plain), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert kept_tokens((other,)) == kept_tokens((plain,))
    assert bytes_read((other,)) * 32 == bytes_read((plain,)) * 12  # of 8 dimensions, with the scale
    assert nbytes(other) < 0.62 * nbytes(plain)


# Of each kind of layer; other policies are these with other sizes.
@pytest.mark.parametrize("name", ["full", "streaming", "snapkv", "adakv", "recycled", "h2o"])
def test_any_numbers_are_off_by_no_more_than_the_rounding(name) -> None:
    """With room for all, so that no choice depends on it; keys are rotated before they are packed.

    Each number is off by at most half a scale, 1 / 254 of the largest of its token. So a score is
    off by d = |q| |k| / 254 at most, a weight by a factor of exp(2 d), and an output by the sum of
    what that does to the values and what they are off themselves.
    """
    layer = SLAB_CASES[name].roomy.at(0, toys.geometry(2))
    qkv = toys.qkv(2, 2 * PROMPT + 1, seed=2)
    _, expected = run(layer, layer.init(), qkv, Rope(8))
    _, got = run(layer, packed(layer.init()), qkv, Rope(8))
    longest = [np.linalg.norm(x, axis=-1).max() for x in qkv[:2]]
    largest = np.abs(qkv[2]).max()
    bound = largest * (math.exp(2 * longest[0] * longest[1] / 254) - 1 + 1 / 254)
    off = np.abs(got - expected)
    assert 0 < off.max() < bound
    assert np.sqrt(np.mean(off**2)) < largest / 254  # most errors cancel


@pytest.mark.parametrize("wide", [1, 5])
def test_moving_slots_moves_all_of_a_token(wide) -> None:
    """Each function over a packed store, against the same over the numbers that it stands for."""
    rng = np.random.default_rng(wide)
    empty = Int8Store(jnp.zeros((2, 3, 7, 4), jnp.int8), jnp.zeros((2, 3, 7)))
    plain = jnp.asarray(rng.normal(size=(2, 3, 7, 4)), jnp.float32)
    store = empty.pack(plain)

    def numbers(x: Int8Store) -> Array:
        return x.values.astype(jnp.float32) * x.scale[..., None]

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
    return packed_new if isinstance(x, Packed) else plain_new


def first(x: Array) -> Array:
    return x[:, 0]
