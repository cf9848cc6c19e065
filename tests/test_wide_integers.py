# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A process whose other code asked for 64 bits gets the same caches, bit for bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from policy_cases import CASES

from jaxkv.checkpoints import toy
from jaxkv.generate.api import generate
from jaxkv.models.decoder import forward, init_cache
from jaxkv.policies.window import Window

# Of each kind of layer; other policies are these with other sizes.
LAYERS = [
    "full", "streaming", "adakv", "recycled-dynamic", "h2o", "compactor", "chunkkv-gated",
]  # fmt: skip


def streamed(policy):
    """Logits and cache after a ragged prompt and two steps."""
    lengths = jnp.asarray([20, 17], jnp.int32)
    cache = init_cache(toys.CONFIG, policy, 2, 64)
    run = jax.jit(forward, static_argnums=(1, 2))
    logits, cache = run(toys.params(), toys.CONFIG, policy, toys.tokens(2, 20), cache, lengths)
    found = [logits[:, 16]]
    for step in range(2):
        token = toys.tokens(2, 1, seed=step)
        logits, cache = run(toys.params(), toys.CONFIG, policy, token, cache)
        found.append(logits)
    return found, cache


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_64_bits_change_nothing(name: str) -> None:
    policy = CASES[name].policy
    expected = streamed(policy)
    with jax.enable_x64(True):
        found = streamed(policy)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-6)


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "top_p": 0.9, "top_k": 5}])
def test_the_same_answer(how: dict) -> None:
    model = toy.load()

    def answer() -> list[int]:
        made = generate(model, "hello", policy=Window(16), max_new_tokens=4, **how)
        return made.token_ids[0]

    expected = answer()
    with jax.enable_x64(True):
        assert answer() == expected
