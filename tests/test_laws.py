# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What must hold of every policy, whatever it keeps."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from policy_cases import CASES, KNOWN_CASES, SLAB_CASES, UNIFORM_CASES

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
    StreamingLLMPlus,
    Window,
    forward,
    init_cache,
    make_policy,
    nbytes,
)  # fmt: skip
from jaxkv.cache.accounting import kept_tokens
from jaxkv.layer import prefill, step
from jaxkv.policies.base import Policy
from jaxkv.policies.layers import init, nominal_bytes
from jaxkv.policies.registry import describe

ROPE = Rope(8)
WIDTH = 13  # of a chunk: one for all tests, as every other is another program to compile
SHIPPED = str(Path(__file__).parents[1] / "configs/patterns/smollm2-135m-instruct.")
every = pytest.mark.parametrize("name", CASES)
every_slab = pytest.mark.parametrize("name", SLAB_CASES)
every_uniform = pytest.mark.parametrize("name", UNIFORM_CASES)
every_known = pytest.mark.parametrize("name", KNOWN_CASES)
every_exact = pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.token_exact])
run = jax.jit(forward, static_argnums=(1, 2))
jit_step = jax.jit(step, static_argnums=0, static_argnames="rope")
jit_prefill = jax.jit(prefill, static_argnums=0, static_argnames="rope")


@pytest.fixture(scope="module")
def params():
    return toys.params()


def feed(params, policy, tokens, chunk: int = WIDTH, max_length: int = 64):
    """Logits [B, T, V] and the cache, in chunks whose last one is padded."""
    cache = init_cache(toys.CONFIG, policy, tokens.shape[0], max_length)
    logits = []
    for begin in range(0, tokens.shape[1], chunk):
        part = tokens[:, begin : begin + chunk]
        count = part.shape[1]
        padded = jnp.pad(part, ((0, 0), (0, chunk - count)), constant_values=5)
        lengths = jnp.full((tokens.shape[0],), count, jnp.int32)
        out, cache = run(params, toys.CONFIG, policy, padded, cache, lengths)
        logits.append(out[:, :count])
    return jnp.concatenate(logits, axis=1), cache


@every
def test_a_budget_that_is_never_reached_equals_full(name, params) -> None:
    tokens = toys.tokens(2, 30)
    expected, _ = feed(params, Full(), tokens)
    got, _ = feed(params, CASES[name].roomy, tokens)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@every_exact
@pytest.mark.parametrize("chunk", [4, WIDTH])
def test_a_prompt_equals_its_tokens_one_by_one(name, chunk, params) -> None:
    case, tokens = CASES[name], toys.tokens(2, 30)
    expected, one = feed(params, case.policy, tokens, 1)
    got, many = feed(params, case.policy, tokens, chunk)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), many, one)


@every_slab
def test_jit_changes_nothing(name) -> None:
    layer = CASES[name].policy.at(0, toys.geometry(2))
    q, k, v = toys.qkv(2, 6)
    with jax.disable_jit():
        cache, out = step(layer, layer.init(), *(x[:, :1] for x in (q, k, v)), rope=ROPE)
    first = [x[:, :1] for x in (q, k, v)]
    jitted_cache, jitted = jit_step(layer, layer.init(), *first, rope=ROPE)
    np.testing.assert_allclose(jitted, out, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), jitted_cache, cache)


@every
@pytest.mark.parametrize("length", [1, 7])
def test_shapes_never_change(name, length) -> None:
    policy = CASES[name].policy
    cache = jax.eval_shape(lambda: init_cache(toys.CONFIG, policy, 2, 64))
    shapes = jax.eval_shape(lambda: toys.params())
    tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)
    call = functools.partial(forward, config=toys.CONFIG, policy=policy)
    logits, after = jax.eval_shape(
        lambda p, t, c: call(p, tokens=t, cache=c), shapes, tokens, cache
    )
    assert logits.shape == (2, length, toys.CONFIG.vocab_size) and logits.dtype == jnp.float32
    assert jax.tree.map(lambda x: (x.shape, x.dtype), cache) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )


@every
def test_one_trace_for_64_steps_and_the_old_cache_is_gone(name, params) -> None:
    policy, traces = CASES[name].policy, []

    def counted(params, tokens, cache):
        traces.append(1)
        return forward(params, toys.CONFIG, policy, tokens, cache)

    one = jax.jit(counted, donate_argnums=2)
    cache = init_cache(toys.CONFIG, policy, 1, 64)
    for t in range(64):
        before = jax.tree.leaves(cache)
        logits, cache = one(params, toys.tokens(1, 1, seed=t), cache)
        assert all(leaf.is_deleted() for leaf in before)
        assert np.isfinite(np.asarray(logits)).all()
    assert len(traces) == 1


@every
def test_rows_are_independent_and_padding_never_matters(name, params) -> None:
    policy, lengths, width = CASES[name].policy, [17, 1, 26, 9], WIDTH
    rows = [toys.tokens(1, n, seed=n) for n in lengths]
    cache = init_cache(toys.CONFIG, policy, len(rows), 64)
    last = np.zeros((len(rows), toys.CONFIG.vocab_size))
    for begin in range(0, max(lengths), width):
        parts = [row[:, begin : begin + width] for row in rows]
        counts = [part.shape[1] for part in parts]
        batch = jnp.concatenate(
            [
                jnp.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=7)
                for part in parts
            ]
        )
        logits, cache = run(
            params, toys.CONFIG, policy, batch, cache, jnp.asarray(counts, jnp.int32)
        )
        for i, count in enumerate(counts):
            if count:
                last[i] = logits[i, count - 1]
    for i, row in enumerate(rows):
        alone, _ = feed(params, policy, row)
        np.testing.assert_allclose(last[i], alone[0, -1], atol=2e-5)
    # A row that has ended stays as it is while the others go on.
    active = jnp.asarray([1, 0, 1, 0], jnp.int32)
    _, after = run(params, toys.CONFIG, policy, toys.tokens(4, 1), cache, active)
    for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(np.asarray(old)[[1, 3]], np.asarray(new)[[1, 3]])


@every_uniform
def test_kv_heads_may_be_reordered(name) -> None:
    layer = CASES[name].policy.at(0, toys.geometry(1, kv_heads=4, heads=8))
    q, k, v = toys.qkv(1, 20, heads=8, kv_heads=4)
    order = np.array([2, 0, 3, 1])
    queries = (order[:, None] * 2 + np.arange(2)).reshape(-1)
    _, out = jit_prefill(layer, layer.init(), q, k, v, rope=ROPE)
    _, moved = jit_prefill(
        layer, layer.init(), q[:, :, queries], k[:, :, order], v[:, :, order], rope=ROPE
    )
    np.testing.assert_allclose(moved, out[:, :, queries], atol=1e-6)


@every_known
@pytest.mark.parametrize("chunk", [1, 5, 40])
def test_what_is_kept_is_what_the_paper_keeps(name, chunk) -> None:
    case = KNOWN_CASES[name]
    layer = case.policy.at(0, toys.geometry())
    q, k, v = toys.qkv(1, 40)
    cache, seen = layer.init(), 0
    while seen < 40:
        part = [x[:, seen : seen + chunk] for x in (q, k, v)]
        call = jit_step if chunk == 1 else jit_prefill
        cache, _ = call(layer, cache, *part, rope=ROPE)
        seen += chunk
        held = [int(p) for p in np.asarray(cache.pos[0, 0]) if p >= 0]
        assert len(held) == len(set(held)) and set(held) == case.kept(seen)
    assert kept_tokens((cache,)) == [[len(case.kept(40) or ())] * 2]


@every
def test_bytes_are_the_formulas(name) -> None:
    policy = CASES[name].policy
    cache = init_cache(toys.CONFIG, policy, 3, 64)
    shapes = jax.eval_shape(lambda: init_cache(toys.CONFIG, policy, 3, 64))
    assert nbytes(cache) == nbytes(shapes) == sum(x.nbytes for x in jax.tree.leaves(cache))
    if name in SLAB_CASES:
        layers = [policy.at(i, cache.geometry) for i in range(2)]
        budget = sum(sum(layer.kept(2**31 - 1)) for layer in layers)
        assert nominal_bytes(policy, cache.geometry) == 3 * budget * 2 * 8 * 4


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
        "headkv": HeadKV(SHIPPED + "headkv.json", budget, decode_room=0),
        "snapkv": SnapKV(budget, 8, 7, 0),
        "pyramidkv": PyramidKV(budget, 8, 7, decode_room=0),
        "adakv": AdaKV(budget, 8, 7, 0.2, 0),
        "recycled": RecycledAttention(budget),
        "streaming-plus": StreamingLLMPlus(4, budget - 4),
        "h2o": H2O(budget),
        "tova": TOVA(budget),
    }


@pytest.mark.parametrize(("budget", "most"), [(128, 1.2), (1024, 1.08), (4096, 1.08)])
@pytest.mark.parametrize("name", budgeted(8))
def test_physical_bytes_stay_near_the_budget(name, budget, most) -> None:
    """In bfloat16, where positions and scores weigh most, at the shapes of SmolLM2-135M."""
    policy = budgeted(budget)[name]
    geometry = Geometry(30, 9, 3, 64, 2, 8192, "bfloat16")
    cache = jax.eval_shape(lambda: init(policy, geometry))
    assert 1 <= nbytes(cache) / nominal_bytes(policy, geometry) <= most


@every
def test_settings_survive_a_round_trip(name) -> None:
    policy = CASES[name].policy
    fields = describe(policy)
    again = make_policy(fields.pop("name"), fields)
    assert again == policy and hash(again) == hash(policy)


@pytest.mark.slow
@every
@pytest.mark.parametrize("length", [1, 8, 9, 10, 11, 12])
def test_finite_around_the_budget(name, length, params) -> None:
    policy = CASES[name].policy
    logits, cache = feed(params, policy, toys.tokens(1, length))
    assert np.isfinite(np.asarray(logits)).all()
    logits, _ = run(params, toys.CONFIG, policy, toys.tokens(1, 1), cache)
    assert np.isfinite(np.asarray(logits)).all()


@every
def test_nothing_is_left_of_the_sample_before(name, params) -> None:
    policy, tokens = CASES[name].policy, toys.tokens(1, 25, seed=4)
    first, _ = feed(params, policy, tokens)
    feed(params, policy, toys.tokens(1, 31, seed=5))
    again, _ = feed(params, policy, tokens)
    np.testing.assert_array_equal(first, again)


def test_a_full_cache_that_overflows_says_so(params) -> None:
    """Rather than going on with a token lost."""
    tokens = toys.tokens(1, 12)
    logits, cache = feed(params, Full(), tokens, 1, max_length=10)
    assert np.isfinite(np.asarray(logits[:, :10])).all()
    assert np.isnan(np.asarray(logits[:, 10:])).all()
    prefilled, _ = feed(params, Full(), tokens, 12, max_length=10)
    assert np.isnan(np.asarray(prefilled[:, 10:])).all()
