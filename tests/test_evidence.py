# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What scores are made from, against NumPy over the whole prompt, however it came."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import policy_cases
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from own_policies import Expected, KeyDiff, Outputs
from test_selected import Oracle, positions_held, rotated

import jaxkv
from jaxkv import InputError, Rope, SnapKV, forward, init_cache
from jaxkv.layers.api import prefill
from jaxkv.layers.base import NEEDS, Chunk, Constants
from jaxkv.layers.moments import joined, moments_of, no_moments
from jaxkv.layers.prompt import Prompt
from jaxkv.layers.selected import SelectedLayer
from jaxkv.models import decoder

LENGTH, WIDTH = 48, 6  # of a prompt, and of a hidden state
ROPE = Rope(8)
jit_prefill = jax.jit(functools.partial(prefill, rope=ROPE), static_argnums=0)
EXPECTED = Expected(12, sinks=1, window=3, decode_room=4)
OUTPUTS = Outputs(12, sinks=1, window=3, decode_room=4)


def beside(batch: int, length: int, width: int = WIDTH):
    """Hidden states [B, T, D] and an output projection [4, 8, D]."""
    rng = np.random.default_rng(9)
    shapes = (batch, length, width), (4, 8, width)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def moments(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of [T, N, H]: [N, H] and [N, H, H]."""
    q = q.astype(np.float64)
    off = q - q.mean(axis=0)
    return q.mean(axis=0), np.einsum("tnh,tni->nhi", off, off) / len(q)


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=6), seed=st.integers(0, 99),
    far=st.sampled_from([0.0, 30.0, -3000.0]),
)  # fmt: skip
def test_moments_of_parts_are_those_of_the_whole(sizes, seed, far) -> None:
    """Of ragged rows, one of them empty, and where the mean is far from zero."""
    rng = np.random.default_rng(seed)
    parts = [(rng.normal(size=(3, 4, 2, 5)) + far).astype(np.float32) for _ in sizes]
    valid = [np.arange(4)[None] < np.array([[size], [rng.integers(0, 5)], [0]]) for size in sizes]
    found = no_moments(3, 2, 5)
    for part, there in zip(parts, valid, strict=True):
        hidden = np.where(there[:, :, None, None], part, np.nan).astype(np.float32)
        found = joined(found, moments_of(jnp.asarray(hidden), jnp.asarray(there)))
    for row in range(3):
        rows = np.concatenate([p[row][t[row]] for p, t in zip(parts, valid, strict=True)])
        assert int(found.count[row]) == len(rows)
        mean, covariance = moments(rows) if len(rows) else (np.zeros((2, 5)), np.zeros((2, 5, 5)))
        np.testing.assert_allclose(found.mean[row], mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.covariance[row], covariance, atol=1e-5 + 1e-6 * abs(far))


@pytest.mark.parametrize("size", [64, 512, 40_000])
def test_moments_of_long_prompts_are_sound(size) -> None:
    """The mean of squares less the square of the mean would have no digit left here."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(1, 40_000, 1, 4)) + 1000).astype(np.float32)
    found, one = no_moments(1, 1, 4), jax.jit(lambda m, x, v: joined(m, moments_of(x, v)))
    for begin in range(0, x.shape[1], size):
        part = x[:, begin : begin + size]
        there = np.arange(size)[None] < part.shape[1]
        padded = np.pad(part, ((0, 0), (0, size - part.shape[1]), (0, 0), (0, 0)))
        found = one(found, padded, there)
    mean, covariance = moments(x[0])
    np.testing.assert_allclose(found.mean[0], mean, rtol=1e-6)
    np.testing.assert_allclose(found.covariance[0], covariance, atol=2e-4)


# A row that ends within a chunk, one that fills all, and one that takes nothing.
LENGTHS = [29, LENGTH, 0]


def drafted(layer: SelectedLayer, size: int, qkv, hidden, wo):
    """The draft of a ragged prompt that comes in chunks of one size."""
    draft = layer.open(layer.init(), LENGTH)
    draft = layer.provide(draft, jnp.asarray(hidden), Constants(jnp.asarray(wo)))
    feed = jax.jit(layer.feed, static_argnums=2)
    for start in range(0, LENGTH, size):
        parts = [jnp.asarray(x[:, start : start + size]) for x in (*qkv, hidden)]
        valid = jnp.clip(jnp.asarray(LENGTHS, jnp.int32) - start, 0, size)
        chunk = Chunk(*parts[:3], valid, ROPE, False, parts[3])
        draft, _ = feed(draft, jnp.int32(start), LENGTH, chunk)
    return draft


@pytest.mark.parametrize("caps", [(9, 9), (4, 14)], ids=["even", "heads reordered"])
@pytest.mark.parametrize("size", [3, 16, LENGTH])
def test_evidence_is_that_of_the_whole_prompt(size, caps) -> None:
    layer = SelectedLayer(toys.geometry(3), caps, 3, KeyDiff(), 4, needs=NEEDS)
    qkv = toys.qkv(3, LENGTH)
    hidden, wo = beside(3, LENGTH)
    draft = drafted(layer, size, qkv, hidden, wo)
    prompt = Prompt(draft, ROPE, 3, NEEDS)
    order = [0, 1, 2, 3] if caps[0] == caps[1] else [2, 3, 0, 1]  # the head that keeps more first
    np.testing.assert_array_equal(prompt.wo(), wo[order])
    np.testing.assert_array_equal(prompt.new, prompt.positions >= 0)
    for row, length in enumerate(LENGTHS):
        q, k, v = (x[row, :length] for x in qkv)
        mean, covariance = moments(q[4:, order]) if length > 4 else (0.0, 0.0)
        np.testing.assert_allclose(prompt.query_mean()[row], mean, atol=1e-6)
        np.testing.assert_allclose(prompt.query_covariance()[row], covariance, atol=1e-5)
        np.testing.assert_array_equal(prompt.hidden()[row, :length], hidden[row, :length])
        at, heads = np.arange(length), [0, 1] if order[0] == 0 else [1, 0]
        queries, keys = prompt.queries()[row], prompt.unrotated_keys()[row]
        expected = rotated(q[:, order].astype(float), at).swapaxes(0, 1)
        np.testing.assert_allclose(queries[:, :length], expected, atol=1e-5)
        np.testing.assert_array_equal(keys[:, :length], k[:, heads].swapaxes(0, 1))
        assert not np.any(queries[:, length:]) and not np.any(keys[:, length:])
        assert not np.any(prompt.hidden()[row, length:])
        oracle = Oracle(q, k, v, 3, 1, 1)
        whole = np.ones((2, length), bool)
        mass = np.zeros((4, length))
        for n in range(4):
            for t in range(max(0, length - 3), length):
                mass[n, : t + 1] += oracle.weights(t, n, whole[:, : t + 1])
        np.testing.assert_allclose(prompt.mass()[row, :, :length], mass[order], atol=1e-5)


def test_what_is_not_needed_is_not_there() -> None:
    """No buffer is made, and asking for one is told, with what to write."""
    qkv = toys.qkv(3, LENGTH)
    hidden, wo = beside(3, LENGTH)
    layer = KeyDiff(12, window=3).at(0, toys.geometry(3))
    draft = drafted(layer, LENGTH, qkv, hidden, wo)
    more = draft.last, draft.moments, draft.hidden, draft.constants, draft.queries
    assert {*more, draft.unrotated} == {None}
    few = drafted(dataclasses.replace(layer, needs=("moments",)), LENGTH, qkv, hidden, wo)
    assert few.moments is not None and {few.last, few.hidden, few.constants} == {None}
    asked = {
        "mass": "mass", "query_mean": "moments", "query_covariance": "moments",
        "hidden": "hidden", "wo": "constants", "queries": "queries",
        "unrotated_keys": "unrotated_keys",
    }  # fmt: skip
    for method, name in asked.items():
        for declared in ((), ("other",)):
            prompt = Prompt(draft, ROPE, 3, declared)
            with pytest.raises(InputError) as error:
                getattr(prompt, method)()
            assert f"prompt.{method}() is of what the policy did not say that it needs" in str(
                error.value
            )
            assert str(error.value).endswith(f"write needs = {(*declared, name)} in its class")


@dataclasses.dataclass(frozen=True)
class Undeclared(jaxkv.ScoredPolicy):
    """Asks for what it did not name."""

    def score(self, prompt):
        return prompt.hidden()[:, None, :, 0]


def test_mistakes_of_a_policy_are_one_line() -> None:
    with pytest.raises(InputError, match=r"prompt.hidden\(\) .* write needs = \('hidden',\) in"):
        jaxkv.generate(jaxkv.load("tiny-random"), "hello", policy=Undeclared(16), max_new_tokens=1)
    for wrong in ("mass", ("mass", "colour")):
        cls = type("Wrong", (KeyDiff,), {"needs": wrong})
        with pytest.raises(InputError, match="needs of Wrong is .*; it must be a tuple of some of"):
            cls(budget=16)


def test_a_layer_elsewhere_is_given_what_it_needs() -> None:
    q, k, v, hidden, wo = (jnp.asarray(x) for x in (*toys.qkv(2, 20), *beside(2, 20)))
    layer = OUTPUTS.at(0, toys.geometry(2))
    call = functools.partial(jit_prefill, layer, layer.init(), q, k, v)
    with pytest.raises(InputError, match=r"hidden is not given; .* as in prefill\(..., hidden=x\)"):
        call(wo=wo)
    with pytest.raises(InputError, match=r"wo is not given; .* as in prefill\(..., wo=w\)"):
        call(hidden=hidden)
    cache, out = call(hidden=hidden, wo=wo)
    plain = KeyDiff(12).at(0, toys.geometry(2))
    _, expected = jit_prefill(plain, plain.init(), q, k, v)
    np.testing.assert_allclose(out, expected, atol=1e-5)  # the prompt is read alike
    _, after = jit_prefill(plain, plain.init(), q, k, v, hidden=hidden, wo=wo)
    np.testing.assert_array_equal(after, expected)  # and what is not needed is not looked at
    assert all(len(held) == 12 for held in positions_held(cache))


def scores_by_hand(policy, q, k, v, hidden, wo) -> np.ndarray:
    """[K, P] of one row's tokens before the window, from the formulas."""
    length, window = len(q), policy.window
    k_at = rotated(k.astype(float), np.arange(length))
    scores = np.zeros((2, 2, length))
    # Without the first queries, which are attention's sinks.
    mean, covariance = moments(q[4:] if length > 4 else np.zeros((1, *q.shape[1:])))
    oracle = Oracle(q, k, v, window, 1, 1)
    whole = np.ones((2, length), bool)
    for n in range(4):
        keys, values = k_at[:, n // 2], v[:, n // 2].astype(float)
        if isinstance(policy, Expected):
            second = np.einsum("sh,hi,si->s", keys, covariance[n], keys) / 2 / 8
            mine = keys @ mean[n] / np.sqrt(8) + second
        else:
            mine = np.zeros(length)
            for t in range(max(0, length - window), length):
                mine[: t + 1] += oracle.weights(t, n, whole[:, : t + 1])
            mine *= np.abs(np.sum((values @ wo[n].astype(float)) * hidden, axis=-1))
        scores[n // 2, n % 2] = mine
    return scores.mean(axis=1)[:, : max(0, length - window)]


def kept_by_hand(policy, caps, *rows) -> list[set[int]]:
    scores, length = scores_by_hand(policy, *rows), len(rows[0])
    scores[:, : policy.sinks] = np.inf
    recent = set(range(max(0, length - policy.window), length))
    return [
        recent | set(np.argsort(-mine, kind="stable")[:cap].tolist())
        for mine, cap in zip(scores, caps, strict=True)
    ]


@pytest.mark.parametrize("allocation", ["uniform", "table"])
@pytest.mark.parametrize("policy", [EXPECTED, OUTPUTS], ids=lambda p: type(p).__name__)
def test_what_is_kept_is_the_formulas(policy, allocation) -> None:
    """With heads of other sizes in another order too."""
    table = policy_cases.SHARES if allocation == "table" else None
    layer = dataclasses.replace(policy, allocation=allocation, table=table).at(0, toys.geometry())
    assert (len(set(layer.caps)) == 2) == (allocation == "table")
    for length in (2, 9, 40):
        qkv = toys.qkv(1, 40, seed=length)
        hidden, wo = beside(1, 40)
        lengths = jnp.asarray([length], jnp.int32)
        cache, _ = jit_prefill(layer, layer.init(), *qkv, lengths=lengths, hidden=hidden, wo=wo)
        rows = [x[0, :length] for x in (*qkv, hidden)]
        assert positions_held(cache) == kept_by_hand(policy, layer.caps, *rows, wo)


def first_layer(params, tokens: np.ndarray):
    """q, k, v, hidden [T, ..] and wo of the toy's first layer, in NumPy."""
    c = toys.CONFIG
    layer = {name: np.asarray(x, np.float64) for name, x in params["layers"][0].items()}
    x = np.asarray(params["embed"], np.float64)[tokens]
    hidden = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + c.norm_eps) * layer["attn_norm"]
    qkv = (hidden @ layer["wqkv"]).reshape(len(tokens), c.num_kv_heads, -1, c.head_dim)
    q = qkv[:, :, :-2].reshape(len(tokens), c.num_heads, c.head_dim)
    wo = layer["wo"].reshape(c.num_heads, c.head_dim, c.hidden_size)
    return q, qkv[:, :, -2], qkv[:, :, -1], hidden, wo


@pytest.mark.parametrize("chunk", [8, 512])
@pytest.mark.parametrize("policy", [EXPECTED, OUTPUTS], ids=lambda p: type(p).__name__)
def test_a_model_hands_over_what_its_layers_need(policy, chunk, monkeypatch) -> None:
    monkeypatch.setattr(decoder, "CHUNK", chunk)
    params, tokens = toys.params(), toys.tokens(2, 30)
    run = jax.jit(forward, static_argnums=(1, 2))
    # Of another width for each size of chunks: what is traced is kept by its shapes.
    wide = np.pad(tokens, ((0, 0), (0, 600 // chunk)), constant_values=3)
    cache = init_cache(toys.CONFIG, policy, 2, 64)
    lengths = jnp.asarray([30, 21], jnp.int32)
    _, cache = run(params, toys.CONFIG, policy, wide, cache, lengths)
    caps = (policy.budget - policy.window,) * 2
    for row, length in ((0, 30), (1, 21)):
        rows = first_layer(params, tokens[row, :length])
        first = jax.tree.map(lambda x, row=row: x[row : row + 1], cache.layers[0])
        assert positions_held(first) == kept_by_hand(policy, caps, *rows)


def test_states_of_an_earlier_prompt_are_gone_and_that_is_told() -> None:
    """They are zero where `new` is not; the moments are of the later prompt alone."""
    layer = OUTPUTS.at(0, toys.geometry())
    layer = dataclasses.replace(layer, needs=NEEDS)
    qkv = toys.qkv(1, 40)
    hidden, wo = beside(1, 40)
    cache, _ = jit_prefill(
        layer, layer.init(), *(x[:, :25] for x in qkv), hidden=hidden[:, :25], wo=wo
    )
    held = positions_held(cache)
    parts = [jnp.asarray(x[:, 25:]) for x in (*qkv, hidden)]
    draft = layer.open(cache, 15)
    draft = layer.provide(draft, parts[3], Constants(jnp.asarray(wo)))
    chunk = Chunk(*parts[:3], None, ROPE, False, parts[3])
    draft, _ = jax.jit(layer.feed, static_argnums=2)(draft, jnp.int32(0), 15, chunk)
    prompt = Prompt(draft, ROPE, 3, NEEDS)
    np.testing.assert_array_equal(prompt.hidden()[:, :15], parts[3])
    assert not np.any(prompt.hidden()[:, 15:])
    mean, _ = moments(qkv[0][0, 25:])
    np.testing.assert_allclose(prompt.query_mean()[0], mean, atol=1e-6)
    for head in range(2):
        at, new = np.asarray(prompt.positions[0, head]), np.asarray(prompt.new[0, head])
        assert set(at[new].tolist()) == set(range(25, 40))
        assert {int(p) for p in at[~new] if p >= 0} == held[head]


def test_a_pool_has_evidence_too() -> None:
    """The heads of a pool are in the model's order; what is chosen is as without one."""
    qkv = toys.qkv(2, 40)
    hidden, wo = beside(2, 40)
    for policy in (EXPECTED, OUTPUTS, SnapKV(12, window=3, sinks=1, kernel=3, decode_room=4)):
        held = []
        for allocation, floor in (("uniform", 0.2), ("ada", 1.0)):
            same = dataclasses.replace(policy, allocation=allocation, floor=floor)
            layer = same.at(0, toys.geometry(2))
            cache, _ = jit_prefill(layer, layer.init(), *qkv, hidden=hidden, wo=wo)
            held.append(positions_held(cache))
        assert held[0] == held[1]
