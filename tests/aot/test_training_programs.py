# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A step of training, with its derivative, compiles for real chips.

Kernels have none of their own: what is differentiated is what XLA computes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import gpu
import jax
import jax.numpy as jnp
import pytest
import tpu

from jaxkv import DuoAttention, Full, RecycledAttention, SnapKV, StreamingLLM
from jaxkv.cache.bytes import nbytes
from jaxkv.checkpoints.named import named_config
from jaxkv.checkpoints.table import flat_shapes, tree
from jaxkv.layers.base import Policy
from jaxkv.plan.assumed import even_where_unknown
from jaxkv.plan.chips import CHIPS
from jaxkv.train.recipe import Recipe
from jaxkv.train.step import start, update
from pallas_kernels.target import aimed_at

pytestmark = pytest.mark.aot

# Two layers of a real shape with few words: the head would take most of what is measured.
CONFIG = dataclasses.replace(named_config("llama-3.2-1b"), num_layers=2, vocab_size=1024)
RECIPE = Recipe(context=2048, batch=1, dtype="bfloat16")
LONG = dataclasses.replace(RECIPE, context=8192)
# Bytes of the float32 scores of all tokens with all, in every head of both layers.
SCORES = 4 * CONFIG.num_layers * CONFIG.num_heads * LONG.context**2
POLICIES: dict[str, tuple[Policy, int | None]] = {
    "full": (Full(), None),
    "streaming": (StreamingLLM(4, 508), None),
    "duo": (DuoAttention(sparsity=0.5, sinks=4, recent=508), None),
    "snapkv": (SnapKV(256, decode_room=1024), 1024),
    "recycled": (RecycledAttention(256, 10), 1024),
}


def step(policy: Policy, recipe: Recipe) -> tuple[Any, Any, Any]:
    """The program of a step, and its abstract arguments."""
    params = tree(
        CONFIG,
        {path: jax.ShapeDtypeStruct(x, jnp.float32) for path, x in flat_shapes(CONFIG).items()},
    )
    rows = jax.ShapeDtypeStruct((1, recipe.batch, recipe.context), jnp.int32)
    state = jax.eval_shape(lambda: start(params, recipe))
    how = {"config": CONFIG, "policy": policy, "recipe": recipe, "skip": 0, "over": None}
    return functools.partial(update, **how), (rows, rows), state


@tpu.needs_libtpu
@pytest.mark.parametrize("name", POLICIES)
def test_on_a_tpu(name: str) -> None:
    policy, chunk = POLICIES[name]
    recipe = dataclasses.replace(RECIPE, chunk=chunk)
    with even_where_unknown([policy], CONFIG) as [(policy, _)], aimed_at(CHIPS["v5e"].target):
        run, rows, state = step(policy, recipe)
        compiled = tpu.compile_for("v5e", run, rows, state, donate=(1,))
    assert compiled.memory_analysis().alias_size_in_bytes >= nbytes(state)


@tpu.needs_libtpu
def test_no_scores_of_all_tokens_are_kept_on_a_tpu() -> None:
    """And of layers that are computed again, nothing but what goes into them."""
    kept = {}
    for remat in (False, True):
        with aimed_at(CHIPS["v5e"].target):
            run, rows, state = step(Full(), dataclasses.replace(LONG, remat=remat))
            compiled = tpu.compile_for("v5e", run, rows, state, donate=(1,))
        kept[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert kept[False] < 0.6 * SCORES, kept
    assert kept[True] < 0.9 * kept[False], kept


@gpu.needs_cuda_compiler
@pytest.mark.parametrize("name", ["streaming", "snapkv"])
def test_on_a_gpu(name: str) -> None:
    policy, chunk = POLICIES[name]
    with aimed_at(CHIPS["h100"].target):
        gpu.compile_for(*step(policy, dataclasses.replace(RECIPE, chunk=chunk)))


@gpu.needs_cuda_compiler
def test_no_scores_of_all_tokens_are_kept_on_a_gpu() -> None:
    with aimed_at(CHIPS["h100"].target):
        compiled = gpu.compile_for(*step(Full(), LONG))
    assert compiled.memory_analysis().temp_size_in_bytes < 0.6 * SCORES
