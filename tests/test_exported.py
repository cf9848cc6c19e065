# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Programs with caches in them, as `jax.export` writes and reads them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax import export
from policy_cases import CASES

import jaxkv

# What a TPU's program holds slabs to their order by; jax promises nothing about it for ever.
LAYOUT = export.DisabledSafetyCheck.custom_call("LayoutConstraint")


# Caches of every class.
@pytest.mark.parametrize("name", ["streaming", "duo", "adakv", "recycled", "h2o"])
def test_a_step_is_written_and_read_for_a_cpu_and_a_tpu(name: str) -> None:
    policy, params = CASES[name].policy, toys.params()
    cache = jaxkv.init_cache(toys.CONFIG, policy, 1, 64)
    tokens = jnp.asarray(toys.tokens(1, 1))

    def step(params, tokens, cache):
        return jaxkv.forward(params, toys.CONFIG, policy, tokens, cache)

    export_step = export.export(jax.jit(step), platforms=("cpu", "tpu"), disabled_checks=[LAYOUT])
    made = export_step(params, tokens, cache)
    again = export.deserialize(made.serialize())
    assert again.platforms == ("cpu", "tpu")
    assert again.in_tree == made.in_tree and again.out_tree == made.out_tree
    logits, after = again.call(params, tokens, cache)
    expected, kept = jax.jit(step)(params, tokens, cache)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert jax.tree.structure(after) == jax.tree.structure(kept)
    assert after.geometry == cache.geometry


def test_a_jitted_forward_needs_no_static_arguments() -> None:
    """Models and policies are pytrees without leaves: another one is another program."""
    run = jax.jit(jaxkv.forward, donate_argnames="cache")
    params, tokens = toys.params(), jnp.asarray(toys.tokens(1, 5))
    for policy in (jaxkv.Window(3), jaxkv.StreamingLLM(2, 3)):
        cache = jaxkv.init_cache(toys.CONFIG, policy, 1, 64)
        assert not jax.tree.leaves((toys.CONFIG, policy))
        expected, _ = jaxkv.forward(params, toys.CONFIG, policy, tokens, cache)
        logits, _ = run(params, toys.CONFIG, policy, tokens, cache)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
