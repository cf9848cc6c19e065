# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The end of int32 is told: refused in time by what generates, and NaN from what cannot refuse."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from policy_cases import CASES

import jaxkv
from jaxkv.cache.slab import LAST_POSITION, Slab
from jaxkv.checkpoints import toy
from jaxkv.core.errors import InputError
from jaxkv.generate.session import MARGIN, Session, Settings
from jaxkv.models.decoder import forward, init_cache
from jaxkv.models.plan import plan
from jaxkv.policies.streaming import StreamingLLM

# Of each kind of layer; other policies are these with other sizes.
LAYERS = [
    "full",
    "streaming",
    "duo",
    "snapkv",
    "adakv",
    "recycled",
    "streaming-plus",
    "h2o",
    "tova",
]
run = jax.jit(forward, static_argnums=(1, 2))


def later(cache, by: int):
    """The same cache so many tokens later: nothing but counters and positions is moved."""

    def move(part):
        if not isinstance(part, Slab):
            return part
        moved = jnp.where(part.pos >= 0, part.pos + by, -1)
        return dataclasses.replace(part, pos=moved, seen=part.seen + by)

    return jax.tree.map(move, cache, is_leaf=lambda x: isinstance(x, Slab))


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_logits_are_nan_from_the_last_position_on(name: str) -> None:
    policy = CASES[name].policy
    cache = init_cache(toys.CONFIG, policy, 2, 64)
    _, cache = run(toys.params(), toys.CONFIG, policy, toys.tokens(2, 20), cache)
    cache = later(cache, LAST_POSITION - 2 - 20)  # two more tokens have a position
    for step in range(6):
        logits, cache = run(toys.params(), toys.CONFIG, policy, toys.tokens(2, 1, step), cache)
        # What keeps everything is full long before, and says so in the same way.
        in_time = step < 2 and not plan(policy, toys.geometry()).grows
        assert np.isfinite(logits).all() if in_time else np.isnan(logits).all()


def test_a_prompt_over_the_end_and_far_beyond_it() -> None:
    policy = StreamingLLM(2, 7)
    for by, count, good in ((-9, 8, True), (-7, 8, False), (0, 8, False)):
        cache = later(init_cache(toys.CONFIG, policy, 1, 64), 0)
        _, cache = run(toys.params(), toys.CONFIG, policy, toys.tokens(1, 20), cache)
        cache = later(cache, LAST_POSITION - 20 + by)
        logits, cache = run(toys.params(), toys.CONFIG, policy, toys.tokens(1, count), cache)
        assert np.isfinite(logits).all() if good else np.isnan(logits).all()
    for step in range(2000):
        logits, cache = run(toys.params(), toys.CONFIG, policy, toys.tokens(1, 1, step), cache)
    assert np.isnan(logits).all()


def test_one_layer_elsewhere_says_so_too() -> None:
    layer = StreamingLLM(2, 7).at(0, toys.geometry())
    q, k, v = map(jnp.asarray, toys.qkv(1, 1))
    cache, _ = jaxkv.step(layer, layer.init(), q, k, v)
    for by, good in ((LAST_POSITION - 2, True), (LAST_POSITION - 1, False)):
        _, out = jaxkv.step(layer, later(cache, by), q, k, v)
        assert np.isfinite(out).all() if good else np.isnan(out).all()


def test_a_session_refuses_long_before() -> None:
    model = toy.load()
    session = Session.begin(model, Settings(StreamingLLM(2, 7), max_new_tokens=50), 1, 20)
    session.feed([[5] * 20])
    cache = later(session.state.cache, LAST_POSITION - MARGIN - 40)
    state = dataclasses.replace(session.state, cache=cache)
    again = Session.begin(model, session.settings, 1, 20, state)
    with pytest.raises(InputError, match="positions end at 2147483647; begin a new one"):
        for _ in again.run(50):
            pass
    assert int(again.longest) <= LAST_POSITION - MARGIN
    with pytest.raises(InputError, match="positions end at"):
        again.feed([[5] * 64])


def test_numbers_that_no_machine_can_hold() -> None:
    model = toy.load()
    with pytest.raises(InputError, match="a cache of window .* would take .* GB, and this device"):
        jaxkv.generate(model, "a", policy=jaxkv.Window(1_000_000_000))
    with pytest.raises(InputError, match="prefill in chunks of 1000000000 tokens would take"):
        jaxkv.generate(model, "a", prefill_chunk=10**9)
    for name in ("max_length", "max_new_tokens", "prefill_chunk"):
        with pytest.raises(InputError, match="at most 2147483647"):
            jaxkv.generate(model, "a", **{name: 10**12})
    with pytest.raises(InputError, match="must be int"):
        jaxkv.make_policy("window", {"window": 10**12})


def test_a_kernel_wider_than_the_prompt_is_the_prompts() -> None:
    model = toy.load()
    policies = (jaxkv.SnapKV(32, window=8, kernel=kernel) for kernel in (100_001, 401))
    wide, whole = (jaxkv.generate(model, "hello there " * 8, policy=x) for x in policies)
    assert wide.token_ids == whole.token_ids
