# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Recycled Attention, H2O and TOVA against the papers, in NumPy, over many steps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from test_selected import rotated, softmax

from jaxkv import H2O, TOVA, Full, RecycledAttention, Rope, StreamingLLM
from jaxkv.layers.api import prefill, step
from jaxkv.policies.streaming_plus import StreamingLLMPlus

ROPE = Rope(8)
jit_prefill = jax.jit(functools.partial(prefill, rope=ROPE), static_argnums=0)
jit_step = jax.jit(functools.partial(step, rope=ROPE), static_argnums=0)
STEPS = 200
LONGEST = 23 + STEPS  # one size for all: every other is more programs


class Stream:
    """One row of one layer: q, k, v for all positions, and attention over any sets of them."""

    def __init__(self, q, k, v):
        self.raw, self.v = q.astype(float), v.astype(float)
        positions = np.arange(len(q))
        self.q, self.k = (rotated(x.astype(float), positions) for x in (q, k))
        self.heads, self.group = k.shape[1], q.shape[1] // k.shape[1]

    def weights(self, t: int, read: list[list[int]]) -> list[np.ndarray]:
        """[G, n] of each KV head over its own list of positions."""
        return [
            softmax(self.q[t, h * self.group : (h + 1) * self.group] @ self.k[read[h], h].T
                    / np.sqrt(8))
            for h in range(self.heads)
        ]  # fmt: skip

    def out(self, t: int, read: list[list[int]]) -> np.ndarray:
        parts = [w @ self.v[read[h], h] for h, w in enumerate(self.weights(t, read))]
        return np.concatenate(parts)


def top_k(stream: Stream, t: int, k: int, kernel: int) -> list[list[int]]:
    """Section 5.2: pooled maximum over the group, the best k positions, lowest score first."""
    chosen = []
    for weights in stream.weights(t, [list(range(t + 1))] * stream.heads):
        best, reach = weights.max(axis=0), kernel // 2
        pooled = [best[max(0, j - reach) : j + reach + 1].max() for j in range(t + 1)]
        chosen.append(np.argsort(-np.asarray(pooled), kind="stable")[:k][::-1].tolist())
    return chosen


def cosine(stream: Stream, t: int, before: int) -> float:
    a, b = (stream.raw[x].mean(axis=0) for x in (t, before))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def recycled(stream: Stream, policy: RecycledAttention, k: int, length: int, total: int):
    """Outputs of the decode steps, what the small cache holds after each, and the full steps."""
    part, before = top_k(stream, length - 1, k, policy.kernel), length - 1
    outs, held, full = [], [], []
    for i, t in enumerate(range(length, total), 1):
        moved = policy.threshold is None or cosine(stream, t, before) <= policy.threshold
        if i % policy.stride == 0 and moved:
            outs.append(stream.out(t, [list(range(t + 1))] * stream.heads))
            part, before = top_k(stream, t, k, policy.kernel), t
            full.append(i)
        else:
            part = [positions + [t] for positions in part]
            outs.append(stream.out(t, part))
            part = [positions[1:] if len(positions) > k else positions for positions in part]
        held.append([set(positions) for positions in part])
    return outs, held, full


def correlated(length: int, seed: int):
    """Queries that drift, so that their cosine to an earlier one means something."""
    q, k, v = toys.qkv(1, length, seed=seed)
    drift = np.cumsum(q * 0.35, axis=1) + 1.0
    return (drift / drift.std()).astype(np.float32), k, v


POLICIES = {
    "version 2": RecycledAttention(9, 5),
    "version 1": RecycledAttention(7, 8, kernel=1),
    "dynamic": RecycledAttention(9, 4, 0.8),
    "dynamic version 1": RecycledAttention(6, 3, 0.9, kernel=1),
    "one key": RecycledAttention(1, 6),
    "never": RecycledAttention(8, 4, -1.0),
}


@pytest.mark.parametrize("length", [4, 23])
@pytest.mark.parametrize("name", POLICIES)
def test_recycled_equals_the_oracle(name, length) -> None:
    policy = POLICIES[name]
    total = length + STEPS
    q, k, v = correlated(total, seed=length)
    layer = policy.at(0, toys.geometry(max_length=LONGEST))
    stream = Stream(*(x[0] for x in (q, k, v)))
    outs, held, full = recycled(stream, policy, policy.k, length, total)
    padded = [np.pad(x[:, :length], ((0, 0), (0, 30 - length), (0, 0), (0, 0))) for x in (q, k, v)]
    cache, _ = jit_prefill(layer, layer.init(), *padded, lengths=jnp.asarray([length], jnp.int32))
    for i in range(STEPS):
        t = length + i
        cache, out = jit_step(layer, cache, *(x[:, t : t + 1] for x in (q, k, v)))
        np.testing.assert_allclose(np.asarray(out)[0, 0], outs[i], atol=3e-5)
        # The slot that goes next is given up, though its token is still in it.
        pos, since = np.asarray(cache.part.pos[0]), int(cache.since[0])
        free = (policy.k + since) % (policy.k + 1)
        got = [{int(p) for j, p in enumerate(row) if p >= 0 and j != free} for row in pos]
        assert got == held[i], (name, i)
    assert int(cache.full_steps[0]) == len(full)
    if name == "never":
        assert not full
    if "dynamic" in name and length > 4:
        assert 0 < len(full) < STEPS // policy.stride, "the schedule is not put to the test"


@pytest.mark.parametrize(
    "policy",
    [RecycledAttention(3, 1), RecycledAttention(1.0, 7), RecycledAttention(3, 1, 1.1)],
    ids=["stride 1", "k of everything", "any threshold above 1"],
)
def test_recycled_that_refreshes_or_keeps_everything_is_full(policy) -> None:
    q, k, v = toys.qkv(1, 50, seed=1)
    layer = policy.at(0, toys.geometry())
    stream = Stream(*(x[0] for x in (q, k, v)))
    cache, _ = jit_prefill(layer, layer.init(), *(x[:, :20] for x in (q, k, v)))
    for t in range(20, 50):
        cache, out = jit_step(layer, cache, *(x[:, t : t + 1] for x in (q, k, v)))
        everything = stream.out(t, [list(range(t + 1))] * 2)
        np.testing.assert_allclose(np.asarray(out)[0, 0], everything, atol=2e-5)


def test_a_threshold_above_one_is_the_fixed_stride() -> None:
    q, k, v = correlated(60, seed=3)
    outs = []
    for policy in (RecycledAttention(8, 5), RecycledAttention(8, 5, 1.5)):
        layer = policy.at(0, toys.geometry())
        cache, _ = jit_prefill(layer, layer.init(), *(x[:, :30] for x in (q, k, v)))
        for t in range(30, 60):
            cache, out = jit_step(layer, cache, *(x[:, t : t + 1] for x in (q, k, v)))
            outs.append(np.asarray(out))
        assert int(cache.full_steps[0]) == 6
    np.testing.assert_array_equal(outs[:30], outs[30:])


def test_a_row_is_what_it_is_alone_while_no_other_asks() -> None:
    """One row's query never moves and the other's does: the layer refreshes for both."""
    policy = RecycledAttention(6, 4, 0.8)
    geometry = toys.geometry(batch=2)
    q, k, v = toys.qkv(2, 40, seed=5)
    q[:] = q[:, :1] + 0.01 * q  # nobody moves
    layer = policy.at(0, geometry)
    alone_layer = policy.at(0, toys.geometry())
    cache, _ = jit_prefill(layer, layer.init(), *(x[:, :20] for x in (q, k, v)))
    alone, _ = jit_prefill(alone_layer, alone_layer.init(), *(x[:1, :20] for x in (q, k, v)))
    for t in range(20, 40):
        cache, out = jit_step(layer, cache, *(x[:, t : t + 1] for x in (q, k, v)))
        alone, one = jit_step(alone_layer, alone, *(x[:1, t : t + 1] for x in (q, k, v)))
        np.testing.assert_allclose(np.asarray(out)[:1], one, atol=1e-5)
    assert int(cache.full_steps[0]) == 0
    moved = q * np.array([1, -1], np.float32)[:, None, None, None]
    for t in range(20, 24):
        cache, _ = jit_step(layer, cache, *(x[:, t : t + 1] for x in (moved, k, v)))
    assert np.asarray(cache.full_steps).tolist() == [1, 1]


def h2o(stream: Stream, policy: H2O, length: int, total: int):
    """Section 6.2, per KV head: running sums, heavy and recent."""
    recent = round(policy.budget * policy.recent)
    outs, held = [], []
    for h in range(stream.heads):
        score: dict[int, float] = {}
        outs.append([])
        held.append([])
        for t in range(total):
            everyone = list(range(t + 1)) if t < length else [*sorted(score), t]
            weights = stream.weights(t, [everyone] * stream.heads)[h]
            outs[h].append(weights @ stream.v[everyone, h])
            for j, w in zip(everyone, weights.mean(axis=0), strict=True):
                score[j] = score.get(j, 0.0) + w
            if t >= length - 1:
                new = [j for j in score if j > t - recent]
                old = sorted((j for j in score if j <= t - recent), key=lambda j: -score[j])
                score = {j: score[j] for j in new + old[: policy.budget - len(new)]}
                held[h].append(set(score))
    return np.stack([np.concatenate(x) for x in zip(*outs, strict=True)]), held


def tova(stream: Stream, policy: TOVA, length: int, total: int):
    """Section 6.3: one set for all heads, the newest token competes."""
    kept: list[int] = []
    outs, held = [], []
    for t in range(total):
        read = list(range(t + 1)) if t < length else [*kept, t]
        outs.append(stream.out(t, [read] * stream.heads))
        if t >= length - 1:
            mean = np.concatenate(stream.weights(t, [read] * stream.heads)).mean(axis=0)
            best = np.argsort(-mean, kind="stable")[: policy.budget]
            kept = [read[i] for i in sorted(best)]
            held.append(set(kept))
    return np.stack(outs), [held] * stream.heads


@pytest.mark.parametrize("length", [1, 6, 25])
@pytest.mark.parametrize(
    ("policy", "oracle"),
    [(H2O(8), h2o), (H2O(9, 0.25), h2o), (H2O(5, 0.0), h2o), (TOVA(8), tova), (TOVA(1), tova)],
    ids=["h2o", "h2o-quarter", "h2o-no-recent", "tova", "tova-one"],
)
def test_decode_time_eviction_equals_the_oracle(policy, oracle, length) -> None:
    total = length + 40
    q, k, v = toys.qkv(1, total, seed=length)
    layer = policy.at(0, toys.geometry(max_length=LONGEST))
    outs, held = oracle(Stream(*(x[0] for x in (q, k, v))), policy, length, total)
    padded = [np.pad(x[:, :length], ((0, 0), (0, 30 - length), (0, 0), (0, 0))) for x in (q, k, v)]
    cache, out = jit_prefill(layer, layer.init(), *padded, lengths=jnp.asarray([length], jnp.int32))
    np.testing.assert_allclose(np.asarray(out)[0, :length], outs[:length], atol=2e-5)
    for t in range(length, total + 1):
        slab = getattr(cache, "slab", cache)
        pos = np.broadcast_to(np.asarray(slab.pos[0]), (2, slab.slots))
        got = [{int(p) for p in row if p >= 0} for row in pos]
        assert got == [held[h][t - length] for h in range(2)], t
        if t < total:
            cache, out = jit_step(layer, cache, *(x[:, t : t + 1] for x in (q, k, v)))
            np.testing.assert_allclose(np.asarray(out)[0, 0], outs[t], atol=2e-5)


def test_streaming_plus_is_streaming_with_a_full_step_at_every_stride() -> None:
    q, k, v = toys.qkv(1, LONGEST, seed=5)
    geometry = toys.geometry(max_length=LONGEST)
    layers = [p.at(0, geometry) for p in (StreamingLLMPlus(2, 9, 6), Full(), StreamingLLM(2, 9))]
    fed = [jit_prefill(layer, layer.init(), *(x[:, :23] for x in (q, k, v))) for layer in layers]
    np.testing.assert_array_equal(fed[0][1], fed[1][1])
    caches = [cache for cache, _ in fed]
    for i in range(1, STEPS + 1):
        token = [x[:, 22 + i : 23 + i] for x in (q, k, v)]
        stepped = [jit_step(layer, c, *token) for layer, c in zip(layers, caches, strict=True)]
        caches, (mine, full, streaming) = zip(*stepped, strict=True)
        np.testing.assert_allclose(mine, streaming if i % 6 else full, atol=2e-6)
        assert not np.allclose(streaming, full, atol=1e-3)
    assert int(caches[0].full_steps[0]) == STEPS // 6
