# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels compile for an H100 over int8 slabs and over pools, and move neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu
import jax
import jax.numpy as jnp
import pytest
from test_gpu_programs import KERNEL, MODELS
from test_tpu_int8_programs import attend, int8
from tpu import moves

from pallas_kernels.decode import mosaic_gpu as decode
from pallas_kernels.mass import mosaic_gpu as mass
from pallas_kernels.pool import mosaic_gpu as pool
from pallas_kernels.prefill import mosaic_gpu as prefill

pytestmark = pytest.mark.aot

OPS = ["decode", "decode-mass", "prefill", "mass"]
SLOTS = {model: 8192 for model in MODELS} | {"smollm2-135m": 1032}


def of_slab(op: str, model: str) -> tuple[Callable[..., Any], tuple[Any, ...], int]:
    """An op over an int8 slab, the shapes of its arguments, and the numbers in K."""
    n, heads, h = MODELS[model]
    slots = SLOTS[model]
    q = jax.ShapeDtypeStruct((1, 128, n, h), jnp.bfloat16)
    slab = int8(1, heads, slots, h)
    q_pos = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    k_pos = jax.ShapeDtypeStruct((1, 1, slots), jnp.int32)

    run = attend(op, decode, prefill, mass)
    return run, (q, slab, slab, q_pos, k_pos), heads * slots * h


def of_pool(model: str, small: bool) -> tuple[Callable[..., Any], tuple[Any, ...], int]:
    """A step over a pool, the shapes of its arguments, and the numbers in K."""
    n, heads, h = MODELS[model]
    rows, slots = 4, 32 * 8 * heads
    q = jax.ShapeDtypeStruct((rows, n, h), jnp.bfloat16)
    slab = int8(rows, slots, h) if small else jax.ShapeDtypeStruct((rows, slots, h), jnp.bfloat16)
    q_pos = jax.ShapeDtypeStruct((rows,), jnp.int32)
    k_pos = jax.ShapeDtypeStruct((rows, slots), jnp.int32)
    owner = jax.ShapeDtypeStruct((rows, slots // 32), jnp.int32)

    # A layer's own blocks of a pool that is the whole model's.
    def run(*args):
        return pool.pool_attention(*args[:-2], num_kv_heads=heads, scale=0.1, span=args[-2:])

    return run, (q, slab, slab, q_pos, k_pos, owner, q_pos, q_pos), rows * slots * h


def check(program: tuple[Callable[..., Any], tuple[Any, ...], int]) -> None:
    function, args, size = program
    text = gpu.compile_for(function, *args).as_text()
    assert KERNEL in text
    assert moves(text, size) == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("op", OPS)
def test_int8_lowers_for_cuda(op: str, model: str) -> None:
    function, args, _ = of_slab(op, model)
    assert KERNEL in gpu.lower_for(function, *args)


@gpu.needs_cuda_compiler
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("op", OPS)
def test_int8_compiles_for_an_h100(op: str, model: str) -> None:
    check(of_slab(op, model))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_a_pool_lowers_for_cuda(model: str, small: bool) -> None:
    function, args, _ = of_pool(model, small)
    assert KERNEL in gpu.lower_for(function, *args)


@pytest.mark.kernel("pool")
@gpu.needs_cuda_compiler
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_a_pool_compiles_for_an_h100(model: str, small: bool) -> None:
    check(of_pool(model, small))
