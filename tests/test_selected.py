# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""SnapKV, PyramidKV, HeadKV and Ada-KV against the papers, in NumPy, with masks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import policy_cases
import pytest
import query_heads
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv import (
    AdaKV,
    Full,
    HeadKV,
    PyramidKV,
    RecycledAttention,
    Rope,
    SnapKV,
    StreamingLLM,
    forward,
    init_cache,
)
from jaxkv.cache.bytes import kept_tokens
from jaxkv.layers.api import prefill, step
from jaxkv.models import decoder

ROPE = Rope(8)
jit_prefill = jax.jit(functools.partial(prefill, rope=ROPE), static_argnums=0)
jit_step = jax.jit(functools.partial(step, rope=ROPE), static_argnums=0)
empty = jax.jit(init_cache, static_argnums=(0, 1, 2, 3))
SNAPKV = SnapKV(9, window=3, kernel=3, decode_room=4)
PYRAMID = PyramidKV(9, window=2, kernel=5, beta=4, decode_room=3)
HEADKV = HeadKV(10, scores=policy_cases.SCORES, window=2, kernel=3, decode_room=5)
ADAKV = AdaKV(11, window=3, kernel=3, floor=0.25, decode_room=4)


def rotated(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """x [T, N, 8] as complex pairs (first half, second half), times e^(i position frequency)."""
    z = x[..., :4] + 1j * x[..., 4:]
    z = z * np.exp(1j * positions[:, None, None] * 10000.0 ** (-np.arange(4) / 4))
    return np.concatenate([z.real, z.imag], axis=-1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Oracle:
    """One row of one layer, which never frees anything: it has masks of what would be there."""

    def __init__(self, q, k, v, window: int, kernel: int, ring: int):
        self.v, self.window, self.kernel, self.ring = v.astype(float), window, kernel, ring
        positions = np.arange(len(q))
        self.q, self.k = (rotated(x.astype(float), positions) for x in (q, k))
        self.group = q.shape[1] // k.shape[1]

    def attend(self, t: int, visible: np.ndarray) -> np.ndarray:
        """[N, H] of the query at t, where visible is bool [K, t + 1]."""
        return np.stack([self.weights(t, n, visible) @ self.v[: t + 1, n // self.group]
                         for n in range(self.q.shape[1])])  # fmt: skip

    def weights(self, t: int, n: int, visible: np.ndarray) -> np.ndarray:
        scores = self.k[: t + 1, n // self.group] @ self.q[t, n] / np.sqrt(8)
        return softmax(np.where(visible[n // self.group], scores, -np.inf))

    def scores(self, length: int) -> np.ndarray:
        """SnapKV's of the prompt without its window: [K, length - window]."""
        heads, past = self.k.shape[1], max(length - self.window, 0)
        pooled = np.zeros((heads, self.group, past))
        for n in range(self.q.shape[1]):
            seen = np.ones((heads, length), bool)
            rows = [self.weights(t, n, seen[:, : t + 1])[:past] for t in range(past, length)]
            mean = np.mean(rows, axis=0)
            for j in range(past):
                near = mean[max(0, j - self.kernel // 2) : j + self.kernel // 2 + 1]
                pooled[n // self.group, n % self.group, j] = near.max()
        return pooled.mean(axis=1)

    def run(self, length: int, caps) -> tuple[np.ndarray, list[list[set[int]]]]:
        """Outputs [T, N, H], and what each head holds after the prompt and after every step."""
        total, heads = len(self.q), self.k.shape[1]
        full = np.ones((heads, total), bool)
        out = [self.attend(t, full[:, : t + 1]) for t in range(length)]
        scores = self.scores(length)
        chosen = [set(np.argsort(-scores[h], kind="stable")[: caps(scores)[h]].tolist())
                  for h in range(heads)]  # fmt: skip
        held = [[c | set(range(max(0, length - self.window), length)) for c in chosen]]
        for t in range(length, total):
            first = max(t - self.ring, length - self.window, 0)
            held.append([c | set(range(first, t + 1)) for c in chosen])
            visible = np.array([[j in of_head for j in range(t + 1)] for of_head in held[-1]])
            out.append(self.attend(t, visible))
        return np.stack(out), held


def ada_caps(policy: AdaKV, scores: np.ndarray) -> list[int]:
    """Section 6.5: the flat best K x cap, then the floor."""
    cap, heads = policy.budget - policy.window, scores.shape[0]
    best = np.argsort(-scores.reshape(-1), kind="stable")[: heads * cap]
    won = [(best // max(scores.shape[1], 1) == h).sum() for h in range(heads)]
    return [int(np.round(n * (1 - policy.floor) + int(policy.floor * cap))) for n in won]


def positions_held(cache) -> list[set[int]]:
    """Positions in the slots of each KV head of row 0, in the model's order."""
    if hasattr(cache, "pool"):
        pos, owner = np.asarray(cache.pool.pos[0]), np.asarray(cache.pool.owner[0])
        pos = pos.reshape(len(owner), -1)
        ring = np.asarray(cache.ring.pos[0, 0])
        found = [[*pos[owner == head].reshape(-1), *ring] for head in range(cache.pool.heads)]
    else:
        by_head = {}
        for slab, heads in zip(cache.slabs, cache.heads, strict=True):
            by_head |= {head: np.asarray(slab.pos[0, i]) for i, head in enumerate(heads)}
        found = [by_head[head] for head in sorted(by_head)]
    assert all(len([p for p in x if p >= 0]) == len({p for p in x if p >= 0}) for x in found)
    return [{int(p) for p in x if p >= 0} for x in found]


@pytest.mark.parametrize("layer_index", [0, 1])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 12, 40])
@pytest.mark.parametrize("policy", [SNAPKV, PYRAMID, HEADKV, ADAKV], ids=lambda p: type(p).__name__)
def test_equals_a_masked_oracle(policy, length, layer_index) -> None:
    """Also with prompts shorter than a budget, and decoded until the ring has gone round."""
    layer = policy.at(layer_index, toys.geometry())
    q, k, v = toys.qkv(1, length + 12, seed=length)
    oracle = Oracle(
        *(x[0] for x in (q, k, v)), policy.window, policy.kernel,
        policy.window + policy.decode_room,
    )  # fmt: skip
    adaptive = isinstance(policy, AdaKV)
    caps = functools.partial(ada_caps, policy) if adaptive else lambda scores: layer.caps
    expected, held = oracle.run(length, caps)
    padded = [np.pad(x[:, :length], ((0, 0), (0, 3), (0, 0), (0, 0))) for x in (q, k, v)]
    lengths = jnp.asarray([length], jnp.int32)
    cache, out = jit_prefill(layer, layer.init(), *padded, lengths=lengths)
    np.testing.assert_allclose(np.asarray(out)[0, :length], expected[:length], atol=2e-5)
    assert positions_held(cache) == held[0]
    for t in range(length, length + 12):
        cache, out = jit_step(layer, cache, *(x[:, t : t + 1] for x in (q, k, v)))
        np.testing.assert_allclose(np.asarray(out)[0, 0], expected[t], atol=2e-5)
        assert positions_held(cache) == held[t - length + 1]


def run_model(params, policy, tokens, lengths=None, steps: int = 6):
    """Logits of a prompt in one call and of some steps after it."""
    run = jax.jit(forward, static_argnums=(1, 2))  # its own: what it compiles depends on a CHUNK
    cache = empty(toys.CONFIG, policy, tokens.shape[0], 64)
    logits, cache = run(params, toys.CONFIG, policy, tokens, cache, lengths)
    outs = [np.asarray(logits)]
    for t in range(steps):
        one = toys.tokens(tokens.shape[0], 1, seed=100 + t)
        logits, cache = run(params, toys.CONFIG, policy, one, cache)
        outs.append(np.asarray(logits))
    return np.concatenate(outs, axis=1), cache


@pytest.mark.parametrize("policy", [SNAPKV, HEADKV, ADAKV], ids=lambda p: type(p).__name__)
def test_chunks_within_a_layer_change_nothing(policy, monkeypatch) -> None:
    """Nor does padding beyond the longest row, which no chunk visits."""
    params, tokens = toys.params(), toys.tokens(2, 30)
    lengths = jnp.asarray([30, 17], jnp.int32)
    expected, cache = run_model(params, policy, tokens, lengths)
    monkeypatch.setattr(decoder, "CHUNK", 8)
    wide = np.pad(tokens, ((0, 0), (0, 27)), constant_values=3)
    got, again = run_model(params, policy, wide, lengths)
    np.testing.assert_allclose(np.asarray(got)[0, :30], expected[0, :30], atol=3e-5)
    np.testing.assert_allclose(np.asarray(got)[1, :17], expected[1, :17], atol=3e-5)
    np.testing.assert_allclose(np.asarray(got)[:, 57:], expected[:, 30:], atol=3e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again, cache)


@pytest.mark.parametrize("policy", [SNAPKV, HEADKV, ADAKV], ids=lambda p: type(p).__name__)
def test_a_second_turn_sees_what_was_kept_and_itself(policy) -> None:
    """Against an oracle whose mask hides what the first turn gave up."""
    layer = policy.at(0, toys.geometry())
    q, k, v = toys.qkv(1, 37, seed=2)
    oracle = Oracle(*(x[0] for x in (q, k, v)), 1, 1, 1)
    cache, _ = jit_prefill(layer, layer.init(), *(x[:, :20] for x in (q, k, v)))
    for t in (20, 21, 22):
        cache, _ = jit_step(layer, cache, *(x[:, t : t + 1] for x in (q, k, v)))
    held = positions_held(cache)
    cache, out = jit_prefill(layer, cache, *(x[:, 23:] for x in (q, k, v)))
    for t in range(23, 37):
        visible = np.array([[j in h or j >= 23 for j in range(t + 1)] for h in held])
        np.testing.assert_allclose(np.asarray(out)[0, t - 23], oracle.attend(t, visible), atol=2e-5)
    assert all(set(range(37 - policy.window, 37)) <= of_head for of_head in positions_held(cache))


@pytest.mark.parametrize(
    "policy", [SNAPKV, RecycledAttention(5, 3), StreamingLLM(2, 7)], ids=lambda p: type(p).__name__
)
def test_a_prompt_of_one_token_is_a_prompt(policy) -> None:
    """However wide the chunk that it comes in; what follows it is chosen or counted anew."""
    params, ends = toys.params(), []
    read = jax.jit(decoder.advance, static_argnums=(1, 2))
    _, cache = run_model(params, policy, toys.tokens(2, 20))
    for width in (1, 4):
        token = np.pad(toys.tokens(2, 1), ((0, 0), (0, width - 1)))
        ends.append(read(params, toys.CONFIG, policy, token, cache, jnp.asarray([1, 1], jnp.int32)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *ends)
    (_, after), _ = ends
    if isinstance(policy, RecycledAttention):
        assert after.layers[0].steps.tolist() == [0, 0]


def test_uniform_scores_make_headkv_snapkv(tmp_path) -> None:
    path = tmp_path / "even.json"
    path.write_text('{"format": "jaxkv.headkv", "scores": [[1, 1, 1, 1], [1, 1, 1, 1]]}')
    params, tokens = toys.params(), toys.tokens(1, 40)
    same = {"window": 4, "kernel": 3, "decode_room": 4}
    expected, _ = run_model(params, SnapKV(12, **same), tokens)
    got, _ = run_model(params, HeadKV(12, scores=str(path), beta=2.0, **same), tokens)
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_a_floor_of_one_makes_adakv_snapkv() -> None:
    params, tokens = toys.params(), toys.tokens(1, 40)
    same = {"window": 4, "kernel": 3, "decode_room": 4}
    expected, _ = run_model(params, SnapKV(12, **same), tokens)
    got, _ = run_model(params, AdaKV(12, floor=1.0, **same), tokens)
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_query_heads_of_one_each_are_kv_heads() -> None:
    """With as many KV heads as query heads both forms of HeadKV are one."""
    geometry = toys.geometry(heads=4, kv_heads=4)
    q, k, v = toys.qkv(1, 30, heads=4, kv_heads=4)
    outs = []
    for layer in (HEADKV.at(0, geometry), query_heads.layer_of(HEADKV, 0, geometry)):
        outs.append(jit_prefill(layer, layer.init(), q, k, v)[1])
    np.testing.assert_array_equal(*outs)


def test_a_query_head_cache_chooses_for_each_query_head() -> None:
    """Against the same layer with its keys repeated by hand."""
    q, k, v = toys.qkv(1, 30)
    layer = query_heads.layer_of(HEADKV, 0, toys.geometry())
    wide = query_heads.selected(HEADKV, toys.geometry(heads=4, kv_heads=4), layer.layer.caps)
    cache, _ = jit_prefill(layer, layer.init(), q, k, v)
    other, _ = jit_prefill(wide, wide.init(), q, np.repeat(k, 2, 2), np.repeat(v, 2, 2))
    assert kept_tokens((cache,)) == kept_tokens((other,))
    assert len(kept_tokens((cache,))[0]) == 4


def test_budgets_follow_the_prompt_without_a_new_program() -> None:
    """Ada-KV's are data: two prompts, other budgets, one trace."""
    policy, traces = AdaKV(12, window=3, kernel=3, floor=0.0, decode_room=4), []
    layer = policy.at(0, toys.geometry())

    def counted(cache, q, k, v):
        traces.append(1)
        return prefill(layer, cache, q, k, v, rope=ROPE)

    call, kept = jax.jit(counted), []
    for seed in range(4):
        q, k, v = toys.qkv(1, 40, seed=seed)
        cache, _ = call(layer.init(), q * np.float32(1 + 4 * seed), k, v)
        kept.append(tuple(kept_tokens((cache,))[0]))
    assert len(traces) == 1
    assert len(set(kept)) > 1
    assert {sum(heads) for heads in kept} == {2 * 12}


def test_an_even_start_is_full_until_the_prompt_ends() -> None:
    """The prompt itself is read with full attention, whatever is kept of it."""
    params, tokens = toys.params(), toys.tokens(1, 40)
    expected, _ = run_model(params, Full(), tokens, steps=0)
    for policy in (SNAPKV, PYRAMID, HEADKV, ADAKV):
        got, _ = run_model(params, policy, tokens, steps=0)
        # From the second layer on, keys come from outputs that saw everything.
        np.testing.assert_allclose(got, expected, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 48), budget=st.integers(3, 40), floor=st.floats(0, 1),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_pool_holds_the_best_of_every_head(length, budget, floor, seed) -> None:
    """Whatever the budgets come to, the blocks suffice and no token is lost or doubled."""
    policy = AdaKV(budget, window=3, kernel=3, floor=floor, decode_room=0)
    layer = policy.at(0, toys.geometry())
    q, k, v = toys.qkv(1, 48, seed=seed)
    cache, _ = jit_prefill(layer, layer.init(), q, k, v, lengths=jnp.asarray([length], jnp.int32))
    oracle = Oracle(*(x[0] for x in (q, k, v)), 3, 3, 3)
    scores = oracle.scores(length)
    caps = ada_caps(policy, scores)
    for head, held in enumerate(positions_held(cache)):
        recent = set(range(max(0, length - 3), length))
        assert recent <= held
        assert len(held) == min(caps[head], max(length - 3, 0)) + len(recent)
