# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Expected Attention, beside a transcription of its formula and the mean that it stands for."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import jaxkv
from jaxkv.core.rope import LinearScaling, Rope, YarnScaling
from jaxkv.core.scoring import Scoring
from jaxkv.layers.base import NEEDS, Chunk
from jaxkv.layers.draft import SINK_QUERIES
from jaxkv.layers.prompt import Prompt
from jaxkv.policies.expected import ExpectedAttention

POLICY = ExpectedAttention(16, window=3, sinks=4, decode_room=4, future=32)
ROPES = {
    "whole": Rope(8),
    "partial": Rope(4, 100.0),
    "scaled": Rope(8, scaling=LinearScaling(4.0)),
    "yarn": Rope(8, scaling=YarnScaling(4.0, 16)),
    "none": None,
    "alibi": Scoring(slopes=(0.5, 0.25, 0.125, 0.0625)),
}


def turned(rope, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Float64 [T, N, H] at positions [T], by complex numbers."""
    rope = rope.rotation if isinstance(rope, Scoring) else rope
    if rope is None:
        return x
    freqs, factor = rope.frequencies()
    half = rope.rotary_dim // 2
    pairs = x[..., :half] + 1j * x[..., half : 2 * half]
    pairs = pairs * factor * np.exp(1j * at[:, None, None] * freqs)
    return np.concatenate([pairs.real, pairs.imag, x[..., 2 * half :]], axis=-1)


def oracle(policy: ExpectedAttention, rope, q, k, v) -> np.ndarray:
    """The score [K, T] of one row: q [T, N, H], k and v [T, K, H], not rotated."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    length, heads, dim = k.shape
    keys = turned(rope, k, np.arange(length))
    future = np.arange(length, length + policy.future)
    units = np.broadcast_to(np.eye(dim), (len(future), dim, dim))
    mean_rotation = turned(rope, units, future).mean(axis=0).T  # columns are what the units become
    score = np.zeros((heads, length))
    group = q.shape[1] // heads
    for head in range(q.shape[1]):
        asked = q[SINK_QUERIES:, head]
        mean = mean_rotation @ asked.mean(axis=0)
        off = asked - asked.mean(axis=0)
        spread = mean_rotation @ (off.T @ off / len(asked)) @ mean_rotation.T
        of = keys[:, head // group]
        z = of @ mean / np.sqrt(dim) + np.einsum("th,hi,ti->t", of, spread, of) / (2 * dim)
        if isinstance(rope, Scoring):
            z = z - rope.slopes[head] * (length - np.arange(length))
        z = z[policy.sinks :]
        share = np.exp(z - z.max())
        score[head // group, policy.sinks :] += share / share.sum() / group
    return (score + policy.epsilon) * np.linalg.norm(v, axis=-1).T


def evidence(policy, rope, qkv, lengths, sizes) -> Prompt:
    """The prompt after it was fed in chunks of these sizes."""
    layer = policy.at(0, toys.geometry(len(lengths)))
    draft, begin = layer.open(layer.init(), sum(sizes)), 0
    feed = jax.jit(layer.feed, static_argnums=2)
    for size in sizes:
        parts = [jnp.asarray(x[:, begin : begin + size]) for x in qkv]
        left = jnp.clip(jnp.asarray(lengths, jnp.int32) - begin, 0, size)
        draft, _ = feed(draft, jnp.int32(begin), sum(sizes), Chunk(*parts, left, rope, False))
        begin += size
    return Prompt(draft, rope, policy.window, NEEDS)


@pytest.mark.parametrize("name", ROPES)
def test_scores_are_the_formula(name: str) -> None:
    """Of ragged rows, read in one call and in three."""
    rope, lengths = ROPES[name], [40, 23]
    qkv = toys.qkv(2, 40)
    scores = [
        np.asarray(POLICY.score(evidence(POLICY, rope, qkv, lengths, sizes)))
        for sizes in ([40], [7, 20, 13])
    ]
    for row, length in enumerate(lengths):
        expected = oracle(POLICY, rope, *(np.asarray(x)[row, :length] for x in qkv))
        for score in scores:
            np.testing.assert_allclose(score[row, :, :length], expected, rtol=2e-4, atol=1e-6)


def test_the_formula_is_the_mean_over_queries_to_come() -> None:
    """For one position it is exact: draws agree with what is made of their moments."""
    rng = np.random.default_rng(3)
    dim, length, sinks = 8, 24, 4
    draws = rng.normal(size=dim) + rng.normal(size=(4000, dim)) @ rng.normal(size=(dim, dim)) / 5
    keys = rng.normal(size=(length, 1, dim))
    asked = turned(Rope(dim), draws[:, None], np.full(len(draws), len(draws) + sinks))[:, 0]
    rotated = turned(Rope(dim), keys, np.arange(length))[:, 0]
    found = np.exp(asked @ rotated.T / np.sqrt(dim)).mean(axis=0)
    policy = ExpectedAttention(64, sinks=sinks, future=1, epsilon=0.0)
    queries = np.concatenate([np.full((sinks, dim), 1e3), draws])[:, None]
    padded = np.concatenate([keys, np.full((len(queries) - length, 1, dim), 0.0)])
    share = oracle(policy, Rope(dim), queries, padded, np.ones_like(padded))[0] / np.sqrt(dim)
    share, found = share[sinks:length], found[sinks:]
    np.testing.assert_allclose(share / share.sum(), found / found.sum(), rtol=0.05)


def test_without_spread_it_is_the_softmax_of_the_mean_query() -> None:
    q, k, v = toys.qkv(1, 32)
    q = np.broadcast_to(np.asarray(q)[:, 9:10], q.shape).copy()
    policy = dataclasses.replace(POLICY, future=1, epsilon=0.0)
    score = policy.score(evidence(policy, Rope(8), (q, k, v), [32], [32]))
    asked = turned(Rope(8), q[0, :1].astype(np.float64), np.array([32]))[0]
    keys = turned(Rope(8), np.asarray(k)[0].astype(np.float64), np.arange(32))
    for head in range(2):
        logits = np.einsum("gh,th->gt", asked[2 * head : 2 * head + 2], keys[:, head]) / np.sqrt(8)
        logits[:, : policy.sinks] = -np.inf
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
        share = share * np.linalg.norm(np.asarray(v)[0, :, head], axis=-1)
        np.testing.assert_allclose(score[0, head, :32], share, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("future", 0, "future is 0"), ("epsilon", -1.0, "epsilon is -1.0"),
     ("allocation", "both", "it must be uniform, ada, global or table")],
)  # fmt: skip
def test_settings_that_make_no_sense(field, value, said) -> None:
    with pytest.raises(jaxkv.InputError, match=said):
        ExpectedAttention(**{field: value})
