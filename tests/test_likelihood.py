# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of continuations against the logits of one prefill, and against rows alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv import (
    Full,
    InputError,
    RecycledAttention,
    SnapKV,
    forward,
    init_cache,
    load,
)
from jaxkv.generate.likelihood import STEPS, continuations

LENGTHS = [(5, 3), (40, 1), (17, STEPS + 5), (1, STEPS), (90, 2)]


@pytest.fixture(scope="module")
def model():
    return load("tiny-random")


def pairs() -> list[tuple[list[int], list[int]]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(3, 500, n).tolist() for n in both) for both in LENGTHS]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2])
def test_equals_one_prefill(model, batch_size: int) -> None:
    found = continuations(model, Full(), pairs(), batch_size)
    for (context, continuation), one in zip(pairs(), found, strict=True):
        ids = jnp.asarray([context + continuation], jnp.int32)
        cache = init_cache(model.config, Full(), 1, ids.shape[1])
        logits, _ = jax.jit(forward, static_argnums=(1, 2))(
            model.params, model.config, Full(), ids, cache
        )
        scores = jax.nn.log_softmax(logits[0, len(context) - 1 : -1])
        chosen = scores[np.arange(len(continuation)), continuation]
        assert abs(one.log_likelihood - float(chosen.sum())) < 1e-3
        assert one.greedy == bool((scores.argmax(-1) == jnp.asarray(continuation)).all())


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [SnapKV(8, window=4, kernel=3), RecycledAttention(6, 3)],
    ids=lambda p: type(p),
)
def test_a_row_is_what_it_is_alone(model, policy) -> None:
    together = continuations(model, policy, pairs(), 3)
    alone = continuations(model, policy, pairs(), 1)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, rtol=1e-6)
        assert one.greedy == other.greedy


def test_the_likeliest_continuation_is_called_greedy(model) -> None:
    context = pairs()[0][0]
    ids = list(context)
    for _ in range(4):
        cache = init_cache(model.config, Full(), 1, len(ids))
        tokens = jnp.asarray([ids], jnp.int32)
        logits, _ = forward(model.params, model.config, Full(), tokens, cache)
        ids.append(int(logits[0, -1].argmax()))
    progress = []
    (one,) = continuations(
        model, Full(), [(context, ids[5:])], 1, lambda done, total: progress.append((done, total))
    )
    assert one.greedy and progress == [(1, 1)]


def test_ids_that_the_model_lacks_are_refused() -> None:
    model = load("tiny-random")
    for pair in (([1, 512], [3]), ([1, 2], [3, 512]), ([1, 2], [-1])):
        with pytest.raises(InputError, match="id is .*; this model has ids from 0 to 511"):
            continuations(model, Full(), [pair])
