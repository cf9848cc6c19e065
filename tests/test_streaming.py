# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""StreamingLLM against the paper's own mechanism: raw keys, all rotated anew at every step."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv import InputError, Rope, StreamingLLM
from jaxkv.cache.slab import Slab
from jaxkv.core.scoring import Scoring, alibi_slopes
from jaxkv.layers.api import prefill, step


def rotate(x: np.ndarray, position: int, rotary: int, theta: float) -> np.ndarray:
    """[H] at an index inside the cache, float64."""
    freqs = theta ** (-np.arange(0, rotary, 2) / rotary)
    cos, sin = np.cos(position * freqs), np.sin(position * freqs)
    a, b = x[: rotary // 2], x[rotary // 2 : rotary]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[rotary:]])


def stream(
    q, k, v, sinks: int, window: int, rotary: int, theta: float = 1e4, slopes=None
) -> np.ndarray:
    """The reference loop, one row: q [T, N, H], k, v [T, K, H] -> [T, N, H].

    Keys are kept as they come. At a step the new one is appended, every key is rotated by its
    index in the cache and the query by the last index, and after attending all but the sinks and
    the window is dropped: a query sees one key more than the cache keeps.
    """
    kept: list[int] = []
    out = np.zeros(q.shape)
    group = q.shape[1] // k.shape[1]
    for t in range(len(q)):
        kept.append(t)
        for n in range(q.shape[1]):
            query = rotate(q[t, n], len(kept) - 1, rotary, theta)
            keys = [rotate(k[j, n // group], i, rotary, theta) for i, j in enumerate(kept)]
            scores = np.array(keys) @ query / np.sqrt(q.shape[-1])
            if slopes is not None:  # ALiBi's bias is by the distance inside the cache
                scores -= slopes[n] * np.arange(len(kept) - 1, -1, -1)
            weights = np.exp(scores - scores.max())
            out[t, n] = weights @ v[kept, n // group] / weights.sum()
        if len(kept) > sinks + window:
            kept = kept[:sinks] + kept[len(kept) - window :]
    return out


STEP = jax.jit(step, static_argnums=0, static_argnames="rope")
PREFILL = jax.jit(prefill, static_argnums=0, static_argnames="rope")


def run(policy, rope, q, k, v, chunk: int):
    """The policy over the same tokens, in chunks."""
    layer = policy.at(0, toys.geometry(q.shape[0], dim=q.shape[-1]))
    cache, outs = layer.init(), []
    for begin in range(0, q.shape[1], chunk):
        part = [x[:, begin : begin + chunk] for x in (q, k, v)]
        call = STEP if part[0].shape[1] == 1 else PREFILL
        cache, out = call(layer, cache, *part, rope=rope)
        outs.append(np.asarray(out))
    return cache, np.concatenate(outs, axis=1)


@pytest.mark.parametrize("rotary", [16, 8], ids=["rope", "partial-rope"])
@pytest.mark.parametrize("chunk", [1, 11, 50])
@pytest.mark.parametrize(("sinks", "window"), [(4, 9), (1, 1), (0, 6), (2, 60)])
def test_equals_the_re_rotating_oracle(rotary, chunk, sinks, window) -> None:
    q, k, v = toys.qkv(2, 50, dim=16)
    _, out = run(StreamingLLM(sinks, window), Rope(rotary), q, k, v, chunk)
    for row in range(2):
        wide = [np.asarray(x[row], np.float64) for x in (q, k, v)]
        expected = stream(*wide, sinks, window, rotary)
        np.testing.assert_allclose(out[row], expected, atol=2e-6)


@pytest.mark.parametrize("chunk", [1, 11, 50])
@pytest.mark.parametrize(("sinks", "window"), [(4, 9), (0, 6), (2, 60)])
def test_equals_the_oracle_with_alibi(chunk, sinks, window) -> None:
    """No jump of the bias between sinks and window."""
    q, k, v = toys.qkv(2, 50, dim=16)
    slopes = alibi_slopes(4)
    _, out = run(StreamingLLM(sinks, window), Scoring(slopes=slopes), q, k, v, chunk)
    for row in range(2):
        wide = [np.asarray(x[row], np.float64) for x in (q, k, v)]
        expected = stream(*wide, sinks, window, rotary=0, slopes=slopes)
        np.testing.assert_allclose(out[row], expected, atol=2e-6)


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 5), st.integers(1, 12), st.integers(1, 30), st.integers(2, 30))
def test_any_chunking_is_token_exact(sinks: int, window: int, length: int, chunk: int) -> None:
    q, k, v = toys.qkv(1, length)
    policy, rope = StreamingLLM(sinks, window), Rope(8)
    (a, one), (b, many) = (run(policy, rope, q, k, v, size) for size in (1, chunk))
    np.testing.assert_allclose(many, one, atol=2e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)


def test_the_papers_example_of_positions() -> None:
    """Cache of 4 + 3: while token 9 is decoded it holds [0 1 2 3 6 7 8], and the query is at 7."""
    q, k, v = toys.qkv(1, 10)
    cache, _ = run(StreamingLLM(4, 3), Rope(8), q[:, :9], k[:, :9], v[:, :9], 1)
    # 5 goes next.
    assert sorted(int(p) for p in np.asarray(cache.pos)[0, 0]) == [0, 1, 2, 3, 5, 6, 7, 8]
    layer = StreamingLLM(4, 3).at(0, toys.geometry())
    after, _ = STEP(layer, cache, q[:, 9:], k[:, 9:], v[:, 9:], rope=Rope(8))
    assert sorted(int(p) for p in np.asarray(after.pos)[0, 0]) == [0, 1, 2, 3, 6, 7, 8, 9]


@pytest.mark.parametrize("start", [4_000_000, 2_000_000_000])
def test_positions_stay_exact_in_an_endless_stream(start: int) -> None:
    """Far along, outputs are what they are near the beginning: only distances matter."""
    policy, rope = StreamingLLM(4, 20), Rope(8, 1e5)
    q, k, v = toys.qkv(1, 60)
    layer = policy.at(0, toys.geometry())

    def tail(offset: int):
        cache = layer.init()
        cache, _ = PREFILL(layer, cache, q[:, :4], k[:, :4], v[:, :4], rope=rope)
        ring = 21  # skip whole turns of the ring, so that the slots are the same
        skipped = offset // ring * ring
        cache = cache.replace(seen=cache.seen + skipped)
        outs = []
        for t in range(4, 60):
            token = [x[:, t : t + 1] for x in (q, k, v)]
            cache, out = STEP(layer, cache, *token, rope=rope)
            outs.append(np.asarray(out))
        return np.concatenate(outs, axis=1)[:, 24:]

    # Before the ring is full the early distance to the sinks differs, so it is compared after.
    np.testing.assert_allclose(tail(start), tail(21 * 2), atol=1e-5)


def test_evicts_only_what_the_step_has_seen() -> None:
    """A key that dominates is still attended to in the very step that drops it."""
    q, k, v = toys.qkv(1, 12)
    oldest = 12 - 1 - 4
    q[:], k[:, oldest] = 1.0, 50.0
    _, out = run(StreamingLLM(2, 4), None, q, k, v, 1)
    values = np.repeat(v[0, oldest], 2, axis=0)
    np.testing.assert_allclose(out[0, -1], values, atol=1e-5)


def test_sinks_are_never_evicted() -> None:
    q, k, v = toys.qkv(1, 40)
    for chunk in (1, 7, 40):
        cache, _ = run(StreamingLLM(3, 5), Rope(8), q, k, v, chunk)
        assert isinstance(cache, Slab)
        assert [int(p) for p in np.asarray(cache.pos)[0, 0, :3]] == [0, 1, 2]
        assert cache.slots == 3 + 5 + 1


@pytest.mark.parametrize(("sinks", "window"), [(-1, 4), (4, 0), (4, -2)])
def test_impossible_settings_are_refused(sinks: int, window: int) -> None:
    with pytest.raises(InputError, match="must be at least"):
        StreamingLLM(sinks, window)
