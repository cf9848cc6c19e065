# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores that look at no question, against their formulas in NumPy, in loops and in float64."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from test_selected import Oracle, positions_held, rotated, softmax

from jaxkv.cache.grouped import Grouped
from jaxkv.cache.slab import Slab
from jaxkv.core.errors import InputError
from jaxkv.core.rope import Rope
from jaxkv.layers.api import prefill
from jaxkv.layers.base import Chunk
from jaxkv.layers.draft import Draft
from jaxkv.layers.prompt import Prompt, scores_of
from jaxkv.layers.selected import SelectedLayer
from jaxkv.policies.chunkkv import ChunkKV
from jaxkv.policies.compactor import Compactor
from jaxkv.policies.cur import CUR
from jaxkv.policies.keydiff import KeyDiff
from jaxkv.policies.knorm import KNorm
from jaxkv.policies.lagkv import LagKV
from jaxkv.policies.random import Random
from jaxkv.policies.registry import make_policy
from jaxkv.policies.scored import ScoredPolicy

LENGTH, WINDOW, ROPE = 60, 3, Rope(8)
NEEDS = ("mass", "queries", "unrotated_keys")
KEPT = {"budget": 20, "window": WINDOW, "decode_room": 4}
KNORM = KNorm(**KEPT)
KEYDIFF = KeyDiff(**KEPT)
LAGKV = LagKV(**KEPT, sinks=2, lag=8)
CURKV = CUR(**KEPT, sinks=2, local=4)
COMPACTOR = Compactor(**KEPT, sinks=4, chunk=16, sketch=6, allocation="uniform")
CHUNKS = ChunkKV(**KEPT, chunk=5)
GATED = ChunkKV(**KEPT, chunk=8, sinks=2, gated=True)
RANDOM = Random(**KEPT)
jit_prefill = jax.jit(functools.partial(prefill, rope=ROPE), static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def score(policy: ScoredPolicy, draft: Draft) -> jax.Array:
    return scores_of(policy, Prompt(draft, ROPE, WINDOW, NEEDS))


LAYER = SelectedLayer(toys.geometry(3), (17, 17), WINDOW, KNORM, 4, needs=NEEDS)
feed = jax.jit(LAYER.feed, static_argnums=2)


def read(qkv, lengths, size: int = LENGTH, kept: Grouped | None = None) -> Draft:
    """A ragged prompt of three rows, in chunks of one size; no numbers stand behind a row."""
    draft = LAYER.open(LAYER.init() if kept is None else kept, LENGTH)
    lengths = np.asarray(lengths, np.int32)
    for start in range(0, LENGTH, size):
        there = start + np.arange(size)[None] < lengths[:, None]
        parts = [np.where(there[..., None, None], x[:, start : start + size], np.nan) for x in qkv]
        valid = np.clip(lengths - start, 0, size)
        chunk = Chunk(*map(jnp.asarray, parts), jnp.asarray(valid), ROPE, False)
        draft, _ = feed(draft, jnp.int32(start), LENGTH, chunk)
    return draft


def by_norm(policy, k, v) -> np.ndarray:
    return np.array([-np.sqrt(sum(x * x for x in key)) for key in k])


def by_difference(policy, k, v) -> np.ndarray:
    anchor = np.mean([key / np.linalg.norm(key) for key in k], axis=0)
    return np.array([-key @ anchor / np.linalg.norm(key) / np.linalg.norm(anchor) for key in k])


def by_lag(policy, k, v) -> np.ndarray:
    """Section 3.4: a rank in each partition by the ranges of the next; the rest newest first."""
    scores, sinks, lag = 1.0 + np.arange(len(k)), policy.sinks, policy.lag
    for begin in range(sinks, sinks + ((len(k) - sinks) // lag - 1) * lag, lag):
        both = []
        for x in (k, v):
            mine, following = x[begin : begin + lag], x[begin + lag : begin + 2 * lag]
            low, high = following.min(axis=0), following.max(axis=0)
            ours = np.zeros(mine.shape)
            for c in range(x.shape[1]):
                if high[c] > low[c]:
                    ours[:, c] = (mine[:, c] - low[c]) / (high[c] - low[c])
            both.append(softmax(ours.std(axis=1, ddof=1)))
        scores[begin : begin + lag] = np.argsort(np.argsort(np.mean(both, axis=0))) / lag
    return scores


def by_local_norms(policy, k, v) -> np.ndarray:
    scores = np.ones(len(k))
    for x in (k, v):
        for i in range(len(x)):
            begin = i // policy.local * policy.local
            run = [row @ row for row in x[begin : begin + policy.local]]
            scores[i] *= x[i] @ x[i] / np.mean(run)
    return scores / scores.sum()


BY_HEAD = {
    KNORM: by_norm, KEYDIFF: by_difference, LAGKV: by_lag, CURKV: by_local_norms,
}  # fmt: skip


def standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / max(x.std(ddof=1) if x.size > 1 else 0, 1e-6)


def by_leverage_and_attention(policy, q, k, v) -> np.ndarray:
    """Section 3.7, of the tokens between sinks and window; 0 elsewhere: [K, T]."""
    length, heads = len(k), k.shape[1]
    scores, inner = np.zeros((heads, length)), range(policy.sinks, length - policy.window)
    if not len(inner):
        return scores
    sketch = jax.random.normal(jax.random.key(policy.seed), (k.shape[-1], policy.sketch))
    at = np.arange(length)
    q_at, k_at = rotated(q, at)[list(inner)], rotated(k, at)[list(inner)]
    k, v = k[list(inner)], v[list(inner)]
    leverages, looked_at = np.zeros((2, heads, len(inner)))
    for head in range(heads):
        x = (k[:, head] - k[:, head].mean(axis=0)) @ np.asarray(sketch, float)
        x /= np.sqrt(policy.sketch)
        inverse = np.linalg.inv(x.T @ x + 0.01 * np.eye(policy.sketch))
        leverages[head] = [row @ inverse @ row for row in x]
        sums = np.zeros(len(inner))
        for n in range(2 * head, 2 * head + 2):
            for begin in range(0, len(inner), policy.chunk):
                mine = slice(begin, begin + policy.chunk)
                for query in q_at[mine, n]:
                    sums[mine] += softmax(k_at[mine, head] @ query) / 2
        assert np.isclose(sums.sum(), len(inner)) and leverages[head].sum() <= policy.sketch
        padded = np.pad(sums * np.linalg.norm(v[:, head], axis=-1), 1)
        looked_at[head] = [padded[i : i + 3].sum() / 3 for i in range(len(inner))]
    scores[:, list(inner)] = policy.blend * standard(leverages) + standard(looked_at)
    return scores


def masses(policy, q, k, v) -> np.ndarray:
    """What the last queries look at, mean over the query heads: [K, T]."""
    oracle, length = Oracle(q, k, v, policy.window, 1, 1), len(q)
    seen, mass = np.ones((2, length), bool), np.zeros((2, length))
    for n in range(4):
        for t in range(max(0, length - policy.window), length):
            mass[n // 2, : t + 1] += oracle.weights(t, n, seen[:, : t + 1]) / 2
    return mass


def chunks_kept(policy, token: np.ndarray, budget: int) -> set[int]:
    """Section 5.4: walks chunks by score; `token` is of the positions from the sinks on."""
    size, kept = policy.chunk, set()
    ids = np.arange(policy.sinks, policy.sinks + len(token))
    chunks = [np.flatnonzero(ids // size == c) for c in dict.fromkeys(ids // size)]
    means = np.array([token[c].mean() for c in chunks])
    entropies = []
    for c in chunks:
        share = token[c] / max(token[c].sum(), 1e-30)
        nats = -sum(p * np.log(p) for p in share if p > 0)
        entropies.append(nats / np.log(len(c)) if len(c) > 1 else 0.0)
    middle = (len(chunks) - 1) // 2
    for c in np.argsort(-means, kind="stable"):
        few = means[c] >= np.sort(means)[middle] and entropies[c] < np.sort(entropies)[middle]
        most = min(budget - len(kept), 4 if policy.gated and few else size)
        best = chunks[c][np.argsort(-token[chunks[c]], kind="stable")]
        kept |= {int(ids[i]) for i in best[:most]}
    rest = [i for i in np.argsort(-token, kind="stable") if int(ids[i]) not in kept]
    return kept | {int(ids[i]) for i in rest[: budget - len(kept)]}


RAGGED = st.lists(st.integers(0, LENGTH), min_size=3, max_size=3)
SIZES = st.sampled_from([LENGTH, 20, 12])


@settings(max_examples=12, deadline=None)
@given(lengths=RAGGED, size=SIZES, seed=st.integers(0, 999))
@pytest.mark.parametrize("policy", BY_HEAD, ids=lambda p: type(p).__name__)
def test_a_score_of_a_head_is_the_formulas(policy, lengths, size, seed) -> None:
    """Whatever the other rows are, what is behind a row, and the chunks that a prompt came in."""
    qkv = toys.qkv(3, LENGTH, seed=seed)
    found = np.asarray(score(policy, read(qkv, lengths, size)))
    for row, length in enumerate(lengths):
        free = max(length - WINDOW, 0)
        assert np.isneginf(found[row, :, free:]).all()
        _, k, v = (x[row, :length].astype(float) for x in qkv)
        k = rotated(k, np.arange(length))
        for head in range(2) if free else ():
            expected = BY_HEAD[policy](policy, k[:, head], v[:, head])
            np.testing.assert_allclose(found[row, head, :free], expected[:free], 2e-4, 2e-6)


# Of fewer tokens than dimensions all leverages are near 1, and their differences are rounding.
FEW_OR_MANY = st.lists(st.integers(0, 8) | st.integers(24, LENGTH), min_size=3, max_size=3)


@settings(max_examples=12, deadline=None)
@given(lengths=FEW_OR_MANY, size=SIZES, seed=st.integers(0, 999))
def test_compactors_score_is_the_formula(lengths, size, seed) -> None:
    qkv = toys.qkv(3, LENGTH, seed=seed)
    found = np.asarray(score(COMPACTOR, read(qkv, lengths, size)))
    for row, length in enumerate(lengths):
        free = max(length - WINDOW, 0)
        expected = by_leverage_and_attention(
            COMPACTOR, *(x[row, :length].astype(float) for x in qkv)
        )
        np.testing.assert_allclose(found[row, :, :free], expected[:, :free], atol=5e-3)


@settings(max_examples=12, deadline=None)
@given(lengths=RAGGED, size=SIZES, seed=st.integers(0, 999))
@pytest.mark.parametrize("policy", [CHUNKS, GATED], ids=["whole", "gated"])
def test_whatever_the_budget_the_best_are_the_chunks(policy, lengths, size, seed) -> None:
    qkv = toys.qkv(3, LENGTH, seed=seed)
    found = np.asarray(score(policy, read(qkv, lengths, size)))
    for row, length in enumerate(lengths):
        first, free = policy.sinks, length - WINDOW
        token = masses(policy, *(x[row, :length] for x in qkv)).mean(axis=0)[first : max(free, 0)]
        for budget in range(len(token) + 1):
            expected = chunks_kept(policy, token, budget)
            for head in range(2):
                order = np.argsort(-found[row, head, first : max(free, 0)], kind="stable")
                assert {int(i) + first for i in order[:budget]} == expected


def shuffled(draft: Draft, seed: int) -> tuple[Draft, np.ndarray]:
    """Slots of each head in another order, and some without a token any more."""
    slab, rng = draft.slab, np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(slab.slots), (3, 2, 1)), axis=-1)
    pos = np.where(rng.random(slab.pos.shape) < 0.3, -1, slab.pos)
    k, v = (np.take_along_axis(np.asarray(x), order[..., None], 2) for x in (slab.k, slab.v))
    pos = np.take_along_axis(pos, order, 2).astype(np.int32)
    return dataclasses.replace(draft, slab=Slab(k, v, pos, slab.seen)), pos


@pytest.mark.parametrize("policy", BY_HEAD, ids=lambda p: type(p).__name__)
def test_slots_may_be_in_any_order_and_tokens_be_gone(policy) -> None:
    """As where earlier prompts were chosen from: what a head holds is what its formula is of."""
    draft = read(toys.qkv(3, LENGTH), [LENGTH, 44, 9])
    draft, pos = shuffled(draft, 1)
    found = np.asarray(score(policy, draft))
    for row, seen in enumerate(np.asarray(draft.slab.seen)):
        for head in range(2):
            held = [s for s in np.argsort(pos[row, head]) if pos[row, head, s] >= 0]
            k, v = (np.asarray(x)[row, head, held].astype(float) for x in
                    (draft.slab.k, draft.slab.v))  # fmt: skip
            expected = BY_HEAD[policy](policy, k, v)
            for slot, wanted in zip(held, expected, strict=True):
                if pos[row, head, slot] < seen - WINDOW:
                    np.testing.assert_allclose(found[row, head, slot], wanted, 2e-4, 2e-6)


@pytest.mark.parametrize("policy", [CHUNKS, GATED], ids=["whole", "gated"])
def test_chunks_are_of_positions_wherever_they_lie(policy) -> None:
    """Tokens that one head lost do not hide those of another, nor shift a chunk."""
    draft = read(toys.qkv(3, LENGTH), [LENGTH, 44, 9])
    plain = np.asarray(score(policy, draft))
    order = np.argsort(np.random.default_rng(3).random(draft.slab.slots))
    slab = jax.tree.map(lambda x: x[:, :, order] if x.ndim > 1 else x, draft.slab)
    moved = np.asarray(score(policy, dataclasses.replace(draft, slab=slab)))
    free = np.asarray(slab.pos) >= policy.sinks  # before which all comes, whatever it scores
    np.testing.assert_array_equal(np.where(free, moved, 0), np.where(free, plain[:, :, order], 0))
    if policy.gated:
        return
    few, pos = shuffled(draft, 2)
    found = np.asarray(score(policy, few))
    for row, seen in enumerate(np.asarray(few.slab.seen)):
        walks = []
        for at, mine in zip(pos[row], found[row], strict=True):
            free = np.flatnonzero((at >= policy.sinks) & (at < seen - WINDOW))
            chunks = [int(at[slot]) // policy.chunk for slot in free[np.argsort(-mine[free])]]
            # A head has all of a chunk before any of the next.
            walks.append([a for a, b in zip(chunks, [*chunks[1:], -1], strict=True) if a != b])
            assert len(walks[-1]) == len(set(chunks))
        both = set(walks[0]) & set(walks[1])
        assert [c for c in walks[0] if c in both] == [c for c in walks[1] if c in both]


def test_random_is_random() -> None:
    """Even, other in other heads and by other seeds; and the same wherever a token is."""
    draft = read(toys.qkv(3, LENGTH), [LENGTH, LENGTH, LENGTH])
    draws = []
    for seed in range(8):
        policy = dataclasses.replace(RANDOM, seed=seed)
        draws.append(np.asarray(score(policy, draft))[:, :, : LENGTH - WINDOW])
    draws = np.stack(draws)
    even = np.sort(draws.reshape(-1))
    assert np.abs(even - np.linspace(0, 1, even.size)).max() < 1.63 / np.sqrt(even.size)
    heads = draws.transpose(2, 0, 1, 3).reshape(2, -1)
    seeds = draws.reshape(8, -1)
    assert np.abs(np.corrcoef(heads) - np.eye(2)).max() < 0.1
    assert np.abs(np.corrcoef(seeds) - np.eye(8)).max() < 0.2
    moved, pos = shuffled(draft, 1)
    found = np.asarray(score(RANDOM, moved))
    for row, head, slot in np.argwhere((pos >= 0) & (pos < LENGTH - WINDOW)):
        wanted = draws[0, row, head, pos[row, head, slot]]
        assert abs((found[row, head, slot] - wanted + 0.5) % 1 - 0.5) < 1e-5


def test_a_channel_that_stands_still_is_no_division_by_zero() -> None:
    q, k, v = toys.qkv(3, LENGTH)
    v[..., 5] = 1.5
    v[:, 18:26] = v[:, 18:19]  # a whole partition of one value
    found = np.asarray(score(LAGKV, read((q, k, v), [LENGTH] * 3)))
    expected = by_lag(LAGKV, rotated(k[0].astype(float), np.arange(LENGTH))[:, 1], v[0, :, 1])
    np.testing.assert_array_equal(found[0, 1, : LENGTH - WINDOW], expected[: LENGTH - WINDOW])


def test_cosines_near_one_are_told_apart_in_bfloat16() -> None:
    draft = read(toys.qkv(3, LENGTH), [LENGTH] * 3)
    k = (draft.slab.k + 40).astype(jnp.bfloat16)
    draft = dataclasses.replace(draft, slab=dataclasses.replace(draft.slab, k=k))
    found = np.asarray(score(KEYDIFF, draft))[0, 0, : LENGTH - WINDOW]
    held = np.asarray(k[0, 0, :LENGTH]).astype(float)
    np.testing.assert_allclose(
        found, by_difference(KEYDIFF, held, None)[: LENGTH - WINDOW], atol=1e-6
    )
    assert len(np.unique(found)) > 20 > len(np.unique(found.astype(jnp.bfloat16)))


def test_nothing_but_zeros_has_a_finite_score() -> None:
    """Also where a formula divides by what is zero then."""
    q, k, v = (np.zeros_like(x) for x in toys.qkv(3, LENGTH))
    draft = read((q, k, v), [LENGTH, 5, 1])
    for policy in (*BY_HEAD, COMPACTOR, CHUNKS, GATED, RANDOM):
        found = np.asarray(score(policy, draft))
        assert np.isfinite(found[0, :, : LENGTH - WINDOW]).all()


EVERY = [*BY_HEAD, RANDOM, COMPACTOR, CHUNKS, GATED]


@pytest.mark.parametrize("policy", EVERY, ids=lambda p: type(p).__name__)
def test_budgets_are_exact_and_a_later_prompt_is_chosen_from_too(policy) -> None:
    layer = policy.at(0, toys.geometry(3))
    qkv, lengths = toys.qkv(3, 41, seed=1), [41, 33, 12]
    first, second = (jnp.asarray(x, jnp.int32) for x in (lengths, [19, 41, 30]))
    cache, _ = jit_prefill(layer, layer.init(), *qkv, lengths=first)
    again, _ = jit_prefill(layer, cache, *toys.qkv(3, 41, seed=2), lengths=second)
    for row, length in enumerate(lengths):
        for held, seen in ((cache, length), (again, length + int(second[row]))):
            mine = positions_held(jax.tree.map(lambda x, row=row: x[row : row + 1], held))
            always = {*range(policy.sinks), *range(max(0, seen - WINDOW), seen)}
            for of_head in mine:
                assert len(of_head) == min(20, seen) and always <= of_head
            if isinstance(policy, ChunkKV):
                assert mine[0] == mine[1]
        expected = score_kept(policy, [x[row, :length] for x in qkv])
        first = jax.tree.map(lambda x, row=row: x[row : row + 1], cache)
        assert positions_held(first) == (expected or positions_held(first))


def score_kept(policy, qkv) -> list[set[int]]:
    """Positions that each head keeps of one prompt; nothing where what is drawn decides."""
    length = len(qkv[0])
    free = max(length - WINDOW, 0)
    recent, sinks = set(range(free, length)), set(range(min(policy.sinks, free)))
    most = min(policy.budget - WINDOW, free) - len(sinks)
    if isinstance(policy, Random):
        return []
    if isinstance(policy, ChunkKV):
        token = masses(policy, *qkv).mean(axis=0)[policy.sinks : free]
        return [recent | sinks | chunks_kept(policy, token, most)] * 2
    q, k, v = (x.astype(float) for x in qkv)
    if isinstance(policy, Compactor):
        scores = by_leverage_and_attention(policy, q, k, v)
    else:
        at = rotated(k, np.arange(length))
        scores = [BY_HEAD[policy](policy, at[:, head], v[:, head]) for head in range(2)]
    order = [np.argsort(-np.asarray(x)[policy.sinks : free], kind="stable") for x in scores]
    return [recent | sinks | {int(i) + policy.sinks for i in x[:most]} for x in order]


@pytest.mark.parametrize("size", [LENGTH, 12])
def test_what_compactor_kept_of_an_earlier_prompt_is_average(size) -> None:
    """Its queries are gone. Of equal scores the first slots are best, and they hold the best."""
    qkv, lengths = toys.qkv(3, LENGTH, seed=2), [50, 35, 0]
    cache, _ = jit_prefill(
        LAYER, LAYER.init(), *toys.qkv(3, LENGTH), lengths=jnp.asarray([LENGTH, 20, 9], jnp.int32)
    )
    draft = read(qkv, lengths, size, cache)
    prompt = Prompt(draft, ROPE, WINDOW, NEEDS)
    old = np.asarray(prompt.valid & jnp.logical_not(prompt.new))
    found = np.asarray(score(COMPACTOR, draft))
    assert (found[old] == 0).all() and old.any(axis=(1, 2)).all()
    plain = dataclasses.replace(COMPACTOR, sinks=0)  # they are of the earlier one
    for row, length in enumerate(lengths):
        expected = by_leverage_and_attention(plain, *(x[row, :length].astype(float) for x in qkv))[
            :, : max(length - WINDOW, 0)
        ]
        np.testing.assert_allclose(found[row, :, : expected.shape[1]], expected, atol=5e-3)


def test_settings_that_mean_nothing_are_refused() -> None:
    for name, fields, said in (
        ("lagkv", {"lag": 0}, "lag is 0; it must be at least 1"),
        ("cur", {"local": 0}, "local is 0; it must be at least 1"),
        ("compactor", {"chunk": 0}, "chunk is 0; it must be at least 1"),
        ("compactor", {"sketch": 0}, "sketch is 0; it must be at least 1"),
        ("chunkkv", {"chunk": 0}, "chunk is 0; it must be at least 1"),
        ("knorm", {"allocation": "ada"}, "allocation is 'ada'; it must be uniform or table"),
        ("random", {"allocation": "ada"}, "allocation is 'ada'; it must be uniform or table"),
        ("lagkv", {"allocation": "ada"}, "allocation is 'ada'; it must be uniform or table"),
        ("chunkkv", {"allocation": "ada"}, "allocation is 'ada'; it must be uniform or table"),
    ):
        with pytest.raises(InputError, match=said):
            make_policy(name, fields)
