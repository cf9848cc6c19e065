# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels compile for an H100 over int8, int4 and pools, and move none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu
import jax
import jax.numpy as jnp
import pytest
from test_gpu_programs import KERNEL, MODELS
from test_tpu_packed_programs import attend, packed
from tpu import moves

from pallas_kernels.decode import mosaic_gpu as decode
from pallas_kernels.mass import mosaic_gpu as mass
from pallas_kernels.pool import mosaic_gpu as pool
from pallas_kernels.prefill import mosaic_gpu as prefill

pytestmark = pytest.mark.aot

FORMS = ["int8", "int4"]
OPS = ["decode", "decode-mass", "prefill", "mass"]
SLOTS = {model: 8192 for model in MODELS} | {"smollm2-135m": 1032}


def of_slab(op: str, model: str, form: str) -> tuple[Callable[..., Any], tuple[Any, ...], int]:
    """An op over a packed slab, the shapes of its arguments, and what K holds."""
    n, heads, h = MODELS[model]
    slots = SLOTS[model]
    q = jax.ShapeDtypeStruct((1, 128, n, h), jnp.bfloat16)
    slab = packed(form, 1, heads, slots, h)
    q_pos = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    k_pos = jax.ShapeDtypeStruct((1, 1, slots), jnp.int32)

    run = attend(op, decode, prefill, mass)
    return run, (q, slab, slab, q_pos, k_pos), slab.values.size


def of_pool(model: str, form: str) -> tuple[Callable[..., Any], tuple[Any, ...], int]:
    """A step over a pool, the shapes of its arguments, and the numbers in K."""
    n, heads, h = MODELS[model]
    rows, slots = 4, 32 * 16 * heads  # more than what comes out
    q = jax.ShapeDtypeStruct((rows, n, h), jnp.bfloat16)
    slab = jax.ShapeDtypeStruct((rows, slots, h), jnp.bfloat16)
    slab = slab if form == "bfloat16" else packed(form, rows, slots, h)
    q_pos = jax.ShapeDtypeStruct((rows,), jnp.int32)
    k_pos = jax.ShapeDtypeStruct((rows, slots), jnp.int32)
    owner = jax.ShapeDtypeStruct((rows, slots // 32), jnp.int32)

    # A layer's own blocks of a pool that is the whole model's.
    def run(*args):
        return pool.pool_attention(*args[:-2], num_kv_heads=heads, scale=0.1, span=args[-2:])

    held = h // 2 if form == "int4" else h
    return run, (q, slab, slab, q_pos, k_pos, owner, q_pos, q_pos), rows * slots * held


def check(program: tuple[Callable[..., Any], tuple[Any, ...], int]) -> None:
    function, args, size = program
    text = gpu.compile_for(function, *args).as_text()
    assert KERNEL in text
    assert [line for line in moves(text, size) if "8[" in line] == []  # as it lies
    assert moves(text, size * args[0].shape[-1] // held_of(args[1])) == []  # or made wide


def held_of(slab: Any) -> int:
    """What a slot holds of a head: numbers, or bytes."""
    return jax.tree.leaves(slab)[0].shape[-1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("op", OPS)
def test_packed_slabs_lower_for_cuda(op: str, model: str, form: str) -> None:
    function, args, _ = of_slab(op, model, form)
    assert KERNEL in gpu.lower_for(function, *args)


@gpu.needs_cuda_compiler
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("op", OPS)
def test_packed_slabs_compile_for_an_h100(op: str, model: str, form: str) -> None:
    check(of_slab(op, model, form))


@pytest.mark.parametrize("form", ["bfloat16", *FORMS])
@pytest.mark.parametrize("model", MODELS)
def test_a_pool_lowers_for_cuda(model: str, form: str) -> None:
    function, args, _ = of_pool(model, form)
    assert KERNEL in gpu.lower_for(function, *args)


@pytest.mark.kernel("pool")
@gpu.needs_cuda_compiler
@pytest.mark.parametrize("form", ["bfloat16", *FORMS])
@pytest.mark.parametrize("model", MODELS)
def test_a_pool_compiles_for_an_h100(model: str, form: str) -> None:
    check(of_pool(model, form))
