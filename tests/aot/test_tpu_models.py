# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole programs of a real model compile for real chips, with caches that stay where they are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tpu

from jaxkv import AdaKV, DuoAttention, Full, HeadKV, RecycledAttention, StreamingLLM
from jaxkv.cache.bytes import nbytes
from jaxkv.core.rope import Rope
from jaxkv.generate.loop import decode_tokens, prefill_chunk
from jaxkv.generate.sampling import Greedy
from jaxkv.generate.state import start
from jaxkv.layers.base import Policy
from jaxkv.models.config import ModelConfig, parameter_shapes
from jaxkv.plan.chips import CHIPS
from jaxkv.policies.head_scores import GATES, SCORES, save_pattern
from pallas_kernels.target import aimed_at

pytestmark = [pytest.mark.aot, tpu.needs_libtpu]

SLOTS, CHUNK = 8192, 512
# Llama-3.2-1B, two of its sixteen layers: the others are the same.
CONFIG = ModelConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=2,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    rope=Rope(64, theta=500000.0),
    max_positions=131072,
    tie_embeddings=True,
)
# How many layers a pattern is for, and where to write it.
POLICIES: dict[str, Callable[[int, Path], Policy]] = {
    "full": lambda layers, folder: Full(),
    "streaming": lambda layers, folder: StreamingLLM(4, 1020),
    "duo": lambda layers, folder: DuoAttention(pattern(GATES, layers, folder), 0.5, 64, 256),
    "headkv": lambda layers, folder: HeadKV(1024, scores=pattern(SCORES, layers, folder)),
    "adakv": lambda layers, folder: AdaKV(1024),
    "recycled": lambda layers, folder: RecycledAttention(1024, 10),
}


def pattern(kind: str, layers: int, folder: Path) -> str:
    heads = CONFIG.num_kv_heads if kind == GATES else CONFIG.num_heads
    values = np.random.default_rng(0).random((layers, heads))
    save_pattern(folder / "pattern.json", kind, values, "", {})
    return str(folder / "pattern.json")


@pytest.fixture(autouse=True)
def on_a_tpu() -> Iterator[None]:
    """What chooses kernels asks which device there is."""
    with aimed_at(CHIPS["v5e"].target):
        yield


def arguments(config: ModelConfig, policy: Policy, batch: int) -> tuple[Any, Any]:
    """Parameters and state, abstract, in bfloat16."""
    is_shape = lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x)  # noqa: E731
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        parameter_shapes(config),
        is_leaf=is_shape,
    )
    return params, jax.eval_shape(lambda: start(config, policy, batch, SLOTS, "bfloat16", 0))


def integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def check(compiled: jax.stages.Compiled, params: Any, state: Any) -> None:
    """Kernels are in it, all the state is aliased, and memory is weights and caches."""
    assert "tpu_custom_call" in compiled.as_text()
    memory = compiled.memory_analysis()
    kept = nbytes(params) + nbytes(state.cache)
    assert memory.alias_size_in_bytes >= nbytes(state.cache)
    assert memory.argument_size_in_bytes < 1.05 * kept


BATCHES = [(name, 1) for name in POLICIES]
BATCHES += [("full", 4), ("duo", 4), ("recycled", 4), ("full", 16)]


@pytest.mark.parametrize("name, batch", BATCHES)
def test_decode(name: str, batch: int, tmp_path: Path) -> None:
    policy = POLICIES[name](CONFIG.num_layers, tmp_path)
    params, state = arguments(CONFIG, policy, batch)
    step = functools.partial(decode_tokens, config=CONFIG, policy=policy, sampler=Greedy())
    compiled = tpu.compile_for("v5e", step, params, state, integers(), integers(2), donate=(1,))
    check(compiled, params, state)
    # 16 of the layers' caches fill a chip; a copy of one must not wait in memory.
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < max(0.02 * nbytes(params), nbytes(state.cache) // 4)
    # A slab that is read in a kernel and written in place is in no line of its own.
    leaves = jax.tree.leaves(state.cache.layers)
    sizes = [x.size for x in leaves if x.ndim >= 3 and x.shape[-1] == CONFIG.head_dim]
    whole = max(sizes) if name == "recycled" else min(sizes)
    moves = tpu.moves("\n".join(tpu.every_step(compiled.as_text())), whole)
    if name == "headkv":  # XLA turns one of its groups around, of three heads, to write into it
        moves = [move for move in moves if "[1,3," not in move]
    assert moves == []


# Ada-KV's top-k over all heads takes the compiler two minutes.
@pytest.mark.parametrize("name", [name for name in POLICIES if name != "adakv"])
def test_prefill(name: str, tmp_path: Path) -> None:
    one = dataclasses.replace(CONFIG, num_layers=1)
    policy = POLICIES[name](1, tmp_path)
    params, state = arguments(one, policy, 1)
    step = functools.partial(prefill_chunk, config=one, policy=policy)
    tokens = SLOTS if name == "headkv" else CHUNK  # one that chooses after a prompt takes all of it
    compiled = tpu.compile_for(
        "v5e", step, params, state, integers(1, tokens), integers(1), donate=(1,)
    )
    check(compiled, params, state)
