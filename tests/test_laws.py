# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What must hold of every policy, whatever it keeps.

`make laws-packed` runs the same laws over caches of int8 and of int4. There, what is read at once
may be attended to before it is rounded: a prompt equals its tokens one by one, and a ring a
full cache, only nearly.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from policy_cases import CASES, KNOWN_CASES, SLAB_CASES, UNIFORM_CASES, law

from jaxkv import (
    H2O,
    TOVA,
    AdaKV,
    DuoAttention,
    Full,
    Geometry,
    HeadKV,
    PyramidKV,
    RecycledAttention,
    Rope,
    SnapKV,
    StreamingLLM,
    Window,
    make_policy,
    nbytes,
)  # fmt: skip
from jaxkv.cache.bytes import kept_tokens
from jaxkv.cache.packed import token_bytes
from jaxkv.generate.running import forward, running
from jaxkv.layers.api import prefill, step
from jaxkv.layers.base import Policy
from jaxkv.models.plan import plan
from jaxkv.policies.registry import describe
from jaxkv.policies.streaming_plus import StreamingLLMPlus

ROPE = Rope(8)
FORM = os.environ.get("JAXKV_LAWS_FORM", "float32")
# How far a token that was attended to before it was rounded is from one that was after.
ROUNDED = {"float32": 0.0, "int8": 0.02, "int4": 0.3}[FORM]  # seen: 0.015, 0.24
# Of a chunk and of a batch: the same for all laws, as every other is another program to compile.
WIDTH, ROWS = 13, 4
SHIPPED = str(Path(__file__).parents[1] / "configs/patterns/smollm2-135m-instruct.")
EXACT_CASES = {name: case for name, case in CASES.items() if case.token_exact}
every = functools.partial(law, cases=CASES)
every_slab = functools.partial(law, cases=SLAB_CASES)
run = jax.jit(forward, static_argnums=(1, 2))
empty = jax.jit(toys.begun, static_argnums=(0, 1, 2, 3, 4))
jit_step = jax.jit(step, static_argnums=0, static_argnames="rope")
jit_prefill = jax.jit(prefill, static_argnums=0, static_argnames="rope")


def geometry(batch: int = 1, **shapes: int) -> Geometry:
    """Of the toy, in the form that the laws are tried in."""
    return dataclasses.replace(toys.geometry(batch, **shapes), dtype=FORM)


@pytest.fixture(scope="module")
def params():
    return toys.params()


def padded(rows: list[np.ndarray], width: int) -> np.ndarray:
    """Rows of at most `width` tokens, [B, width]; what is behind them must not matter."""
    return np.stack([np.pad(row, (0, width - row.size), constant_values=7) for row in rows])


def feed(params, policy, rows, chunk: int = WIDTH, max_length: int = 64):
    """Logits [T, V] of every row, and the cache, in chunks whose last one is padded."""
    cache = empty(toys.CONFIG, policy, len(rows), max_length, FORM)
    logits = [[] for _ in rows]
    for begin in range(0, max(row.size for row in rows), chunk):
        parts = [row[begin : begin + chunk] for row in rows]
        lengths = np.array([part.size for part in parts], np.int32)
        out, cache = run(params, toys.CONFIG, policy, padded(parts, chunk), cache, lengths)
        for row, mine, length in zip(logits, np.asarray(out), lengths, strict=True):
            row.append(mine[:length])
    return [np.concatenate(row) for row in logits], cache


@functools.cache
def of_full(length: int) -> list[np.ndarray]:
    """Logits with a full cache, which most laws compare with."""
    return feed(toys.params(), Full(), toys.tokens(ROWS, length))[0]


@every("roomy")
def test_a_budget_that_is_never_reached_equals_full(name, params) -> None:
    got, _ = feed(params, CASES[name].roomy, toys.tokens(ROWS, 30))
    np.testing.assert_allclose(got, of_full(30), atol=2e-5 + ROUNDED)


@law("exact", EXACT_CASES)
def test_a_prompt_equals_its_tokens_one_by_one(name, params) -> None:
    case, tokens = CASES[name], toys.tokens(ROWS, 30)
    expected, one = feed(params, case.policy, tokens, 1)
    for chunk in (4, WIDTH):
        got, many = feed(params, case.policy, tokens, chunk)
        np.testing.assert_allclose(got, expected, atol=2e-5 + ROUNDED)
        if not ROUNDED:
            chex.assert_trees_all_close(many, one, atol=1e-5)


@every_slab("jit")
def test_jit_changes_nothing(name) -> None:
    """Over a prompt that is longer than what is kept, and steps that evict."""
    layer = CASES[name].policy.at(0, geometry(2))
    qkv, places = toys.qkv(2, 16), ((0, 14), (14, 15), (15, 16))
    parts = [[jnp.asarray(x[:, begin:end]) for x in qkv] for begin, end in places]
    lengths = jnp.asarray([14, 9], jnp.int32)

    def outputs(prefill, step):
        cache, out = prefill(layer, layer.init(), *parts[0], rope=ROPE, lengths=lengths)
        outs = [out[0], out[1, :9]]
        for part in parts[1:]:
            cache, out = step(layer, cache, *part, rope=ROPE)
            outs.append(out)
        return cache, outs

    jitted = outputs(jit_prefill, jit_step)
    with jax.disable_jit():
        chex.assert_trees_all_close(jitted, outputs(prefill, step), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [1, 7])
def test_shapes_never_change(name, length) -> None:
    policy = CASES[name].policy
    cache = jax.eval_shape(lambda: toys.begun(toys.CONFIG, policy, 2, 64, FORM))
    shapes = jax.eval_shape(lambda: toys.params())
    tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)
    call = functools.partial(forward, config=toys.CONFIG, policy=policy)
    logits, after = jax.eval_shape(lambda p, t, c: call(p, tokens=t, held=c), shapes, tokens, cache)
    assert logits.shape == (2, length, toys.CONFIG.vocab_size) and logits.dtype == jnp.float32
    assert jax.tree.map(lambda x: (x.shape, x.dtype), cache) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )


@every("trace")
def test_one_trace_for_64_steps_and_the_old_cache_is_gone(name, params) -> None:
    policy = CASES[name].policy

    def take(params, tokens, cache):
        return forward(params, toys.CONFIG, policy, tokens, cache)

    chex.clear_trace_counter()  # which knows functions by their names
    one = jax.jit(chex.assert_max_traces(take, n=1), donate_argnums=2)
    cache = empty(toys.CONFIG, policy, 1, 64, FORM)
    for t in range(64):
        before = jax.tree.leaves(cache)
        logits, cache = one(params, toys.tokens(1, 1, seed=t), cache)
        assert all(leaf.is_deleted() for leaf in before)
        assert np.isfinite(np.asarray(logits)).all()


@every("rows")
def test_rows_are_independent_and_padding_never_matters(name, params) -> None:
    policy = CASES[name].policy
    rows = [toys.tokens(1, n, seed=n)[0] for n in (17, 1, 26, 9)]
    together, cache = feed(params, policy, rows)
    for mine, row in zip(together, rows, strict=True):
        (alone,), _ = feed(params, policy, [row])
        np.testing.assert_allclose(mine[-1], alone[-1], atol=2e-5)
    # A row that has ended stays as it is while the others go on.
    active = np.array([1, 0, 1, 0], np.int32)
    _, after = run(params, toys.CONFIG, policy, toys.tokens(4, 1), cache, active)
    for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(np.asarray(old)[[1, 3]], np.asarray(new)[[1, 3]])


@law("heads", UNIFORM_CASES)
def test_kv_heads_may_be_reordered(name) -> None:
    layer = CASES[name].policy.at(0, geometry(1, kv_heads=4, heads=8))
    q, k, v = toys.qkv(1, 20, heads=8, kv_heads=4)
    order = np.array([2, 0, 3, 1])
    queries = (order[:, None] * 2 + np.arange(2)).reshape(-1)
    _, out = jit_prefill(layer, layer.init(), q, k, v, rope=ROPE)
    _, moved = jit_prefill(
        layer, layer.init(), q[:, :, queries], k[:, :, order], v[:, :, order], rope=ROPE
    )
    np.testing.assert_allclose(moved, np.asarray(out)[:, :, queries], atol=1e-6)


@law("kept", KNOWN_CASES)
@pytest.mark.parametrize("chunk", [1, 5, 40])
def test_what_is_kept_is_what_the_paper_keeps(name, chunk) -> None:
    case = KNOWN_CASES[name]
    layer = case.policy.at(0, geometry())
    q, k, v = toys.qkv(1, 40)
    cache, seen = layer.init(), 0
    while seen < 40:
        part = [x[:, seen : seen + chunk] for x in (q, k, v)]
        call = jit_step if chunk == 1 else jit_prefill
        cache, _ = call(layer, cache, *part, rope=ROPE)
        seen += chunk
        held = [int(p) for p in np.asarray(cache.pos)[0, 0] if p >= 0]
        assert len(held) == len(set(held)) and set(held) == case.kept(seen)
    assert kept_tokens((cache,)) == [[len(case.kept(40) or ())] * 2]


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_the_papers_and_the_compilers(name) -> None:
    """What a policy says it keeps, beside its paper; what a cache is said to take, beside XLA."""
    policy, rows = CASES[name].policy, 3
    cache = empty(toys.CONFIG, policy, rows, 64, FORM)
    same = jax.jit(lambda cache: jax.tree.map(lambda x: x, cache)).lower(cache).compile()
    memory = same.memory_analysis()
    assert nbytes(cache) == memory.argument_size_in_bytes
    assert nbytes(jax.eval_shape(lambda: cache)) == nbytes(cache)
    keys_and_values = CASES[name].tokens * 2 * token_bytes(8, FORM)
    if name == "recompute":  # which keeps the ids of its window
        keys_and_values = 9 * 4
    assert running(policy, cache.geometry).nominal_bytes == rows * keys_and_values
    assert running(policy, cache.geometry).physical_bytes == nbytes(cache)


def budgeted(budget: int) -> dict[str, Policy]:
    """Every policy that evicts at one budget, with nothing on top for decoded tokens."""
    return {
        "full": Full(),
        "window": Window(budget),
        "streaming": StreamingLLM(4, budget - 4),
        "duo": DuoAttention(SHIPPED + "duo.json", sparsity=0.5, sinks=4, recent=budget - 4),
        "duo-streaming": DuoAttention(
            SHIPPED + "duo.json", sparsity=1.0, sinks=4, recent=budget - 4
        ),
        "headkv": HeadKV(budget, scores=SHIPPED + "headkv.json", decode_room=0),
        "snapkv": SnapKV(budget, window=8, decode_room=0),
        "pyramidkv": PyramidKV(budget, decode_room=0),
        "adakv": AdaKV(budget, window=8, decode_room=0),
        "recycled": RecycledAttention(budget),
        "streaming-plus": StreamingLLMPlus(4, budget - 4),
        "h2o": H2O(budget),
        "tova": TOVA(budget),
    }


@pytest.mark.parametrize(("budget", "most"), [(128, 1.2), (1024, 1.08), (4096, 1.08)])
@pytest.mark.parametrize("name", budgeted(8))
def test_physical_bytes_stay_near_the_budget(name, budget, most) -> None:
    """In bfloat16, where positions and scores weigh most, at the shapes of SmolLM2-135M."""
    policy, longest = budgeted(budget)[name], 8192
    geometry = Geometry(30, 9, 3, 64, 2, longest, "bfloat16")
    of_head = {
        "full": longest,
        "duo": (longest + budget) / 2,
        "recycled": longest + budget,
        "streaming-plus": longest + budget,
    }
    asked = of_head.get(name, budget) * 30 * 3 * 2 * 64 * 2 * 2
    planned = plan(policy, geometry)
    assert 1 <= planned.physical_bytes / asked <= most
    assert planned.nominal_bytes == pytest.approx(asked, rel=0.002)


@pytest.mark.parametrize("name", CASES)
def test_settings_survive_a_round_trip(name) -> None:
    policy = CASES[name].policy
    fields = describe(policy)
    again = make_policy(fields.pop("name"), fields)
    assert again == policy and hash(again) == hash(policy)


@every("finite")
@pytest.mark.parametrize("length", [1, 8, 9, 10, 11, 12])
def test_finite_around_the_budget(name, length, params) -> None:
    policy = CASES[name].policy
    logits, cache = feed(params, policy, toys.tokens(1, length))
    assert np.isfinite(logits).all()
    logits, _ = run(params, toys.CONFIG, policy, toys.tokens(1, 1), cache)
    assert np.isfinite(np.asarray(logits)).all()


@every("again")
def test_nothing_is_left_of_the_sample_before(name, params) -> None:
    policy, tokens = CASES[name].policy, toys.tokens(1, 25, seed=4)
    first, _ = feed(params, policy, tokens)
    feed(params, policy, toys.tokens(1, 31, seed=5))
    again, _ = feed(params, policy, tokens)
    np.testing.assert_array_equal(first, again)


def test_a_full_cache_that_overflows_says_so(params) -> None:
    """Rather than going on with a token lost."""
    tokens = toys.tokens(1, 12)
    (logits,), _ = feed(params, Full(), tokens, 1, max_length=10)
    assert np.isfinite(logits[:10]).all()
    assert np.isnan(logits[10:]).all()
    (prefilled,), _ = feed(params, Full(), tokens, 12, max_length=10)
    assert np.isnan(prefilled[10:]).all()
