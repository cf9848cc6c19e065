# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What is known of a model under a policy before anything runs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from policy_cases import CASES, SLAB_CASES

import jaxkv
from jaxkv.checkpoints import toy
from jaxkv.core.errors import InputError
from jaxkv.layers.declared import as_compiled
from jaxkv.layers.ring import RingLayer
from jaxkv.models.plan import plan

COUPLED = {
    "adakv", "adakv-no-floor", "snapkv-ada-sinks", "own-keydiff-ada", "tova", "recycled-dynamic",
    "compactor", "expected", "chunkkv", "chunkkv-gated",
}  # fmt: skip


@pytest.mark.parametrize("name", SLAB_CASES)
def test_facts_are_declared_and_right(name: str) -> None:
    """Sizes beside what the paper says, and what is there beside what is declared."""
    policy = CASES[name].policy
    planned = plan(policy, toys.geometry())
    held = sum(sum(f.keeps) + f.copies * len(f.keeps) for f in planned.facts)
    assert held == CASES[name].tokens
    assert planned.physical_bytes == jaxkv.nbytes(planned.init())
    assert planned.couples_heads == (name in COUPLED)
    wide = plan(policy, toys.geometry(max_length=128))
    if not planned.grows:
        assert wide.most_kept <= 2 * planned.most_kept
    else:
        assert wide.most_kept == 128


def test_every_kind_of_layer_goes_through_all_laws() -> None:
    """Whatever scores there are: what a layer does with them is tried once."""
    kinds: dict[str, bool] = {}
    for case in SLAB_CASES.values():
        for layer in plan(case.policy, toys.geometry()).layers:
            kind = type(layer).__name__
            kinds[kind] = kinds.get(kind, False) or case.hard_for is None
    assert kinds.keys() >= {"SelectedLayer", "PooledLayer"} and all(kinds.values()), kinds


@pytest.mark.parametrize("name", SLAB_CASES)
def test_a_layer_with_a_window_of_its_own_is_a_ring(name: str) -> None:
    """Whoever asks: the plan, or the policy itself."""
    shapes = dataclasses.replace(toys.geometry(), windows=(0, 6))
    policy = CASES[name].policy
    ring = RingLayer(shapes, sinks=0, window=6, in_cache=False)
    assert policy.at(1, shapes) == plan(policy, shapes).layers[1] == ring
    assert policy.at(0, shapes) != ring


def test_a_window_is_no_longer_than_a_full_cache() -> None:
    shapes = dataclasses.replace(toys.geometry(max_length=16), windows=(0, 100))
    assert jaxkv.Full().at(1, shapes).window == 16


def test_a_cache_of_another_policy_is_refused() -> None:
    params, tokens = toys.params(), jnp.asarray(toys.tokens(1, 1))
    cache = jaxkv.init_cache(toys.CONFIG, jaxkv.Window(9), 1, 64)
    for policy, says in (
        (jaxkv.StreamingLLM(2, 9), r"Slab of int32\[1, 1, 10\], and it should be .*\[1, 1, 12\]"),
        (jaxkv.RecycledAttention(5), "and it should be Recycled of"),
        (jaxkv.Full(), r"another policy than Full: .*it should be Slab of int32\[1, 1, 64\]"),
    ):
        with pytest.raises(InputError, match=says):
            jaxkv.forward(params, toys.CONFIG, policy, tokens, cache)
    with pytest.raises(InputError, match="tokens have 2 rows, and the cache has 1"):
        jaxkv.forward(params, toys.CONFIG, jaxkv.Window(9), jnp.asarray(toys.tokens(2, 1)), cache)
    short = dataclasses.replace(cache, layers=cache.layers[:1])
    with pytest.raises(InputError, match="the cache has 1 layers; Window has 2"):
        jaxkv.forward(params, toys.CONFIG, jaxkv.Window(9), tokens, short)


def test_recompute_has_no_cache() -> None:
    with pytest.raises(InputError, match="keeps tokens and no keys: there is no cache of it"):
        jaxkv.init_cache(toys.CONFIG, jaxkv.SlidingRecompute(9), 1, 64)


def test_a_setting_that_caches_hold_cannot_be_read_in_a_program() -> None:
    one, other = (as_compiled(jaxkv.RecycledAttention(8, stride, 0.5)) for stride in (3, 7))
    assert one == other and hash(one) == hash(other)
    assert one != as_compiled(jaxkv.RecycledAttention(8, 3))  # with no threshold
    assert one.k == 8
    array = jnp.arange(3)
    for read in (
        lambda: one.stride + 1, lambda: 1 - one.stride, lambda: array % one.stride,
        lambda: one.stride > 1, lambda: bool(one.threshold), lambda: range(one.stride),
        lambda: one.at(0, toys.geometry()).init(),
    ):  # fmt: skip
        with pytest.raises((InputError, TypeError)):
            read()
    plain = jaxkv.Window(9)
    assert as_compiled(plain) == plain


def test_what_is_printed_is_short() -> None:
    model = toy.load()
    out = jaxkv.generate(model, ["hello there"] * 20, policy=jaxkv.Window(8), max_new_tokens=2)
    cache = out.state.cache
    assert repr(cache) == f"<Cache: 3 layers, 20 rows, {jaxkv.nbytes(cache):,} bytes, float32>"
    assert repr(jax.eval_shape(lambda: cache)) == repr(cache)
    assert repr(jax.tree.map(np.asarray, cache)) == repr(cache)  # as it lies in a host
    assert len(repr(jax.tree.map(lambda x: None, cache))) < 100
    assert repr(model).startswith("<Model tiny-random: llama, ") and len(repr(model)) < 160
    lines = repr(out).splitlines()
    assert len(lines) == 10 and lines[0].startswith("<Generation under window, ")
    assert max(map(len, lines)) < 100
    assert np.asarray(cache.layers[0].pos).shape[0] == 20
