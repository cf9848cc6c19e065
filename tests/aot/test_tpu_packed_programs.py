# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The TPU kernels compile for real chips over int8, int4 and pools, and move none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tpu
from test_tpu_decode_programs import MODELS

from pallas_kernels import Int4, Int8
from pallas_kernels.decode import mosaic_tpu as decode
from pallas_kernels.mass import mosaic_tpu as mass
from pallas_kernels.pool import mosaic_tpu as pool
from pallas_kernels.prefill import mosaic_tpu as prefill

pytestmark = [pytest.mark.aot, tpu.needs_libtpu]

LLAMA = "llama-3.1-8b and qwen3-8b"


def packed(form: str, *shape: int) -> Int8 | Int4:
    """As the stores of caches hold them."""
    scale = jax.ShapeDtypeStruct(shape[:-1], jnp.bfloat16)
    if form == "int8":
        return Int8(jax.ShapeDtypeStruct(shape, jnp.int8), scale)
    return Int4(jax.ShapeDtypeStruct((*shape[:-1], shape[-1] // 2), jnp.uint8), scale)


def attend(op: str, decode: Any, prefill: Any, mass: Any) -> Callable[..., Any]:
    """An op of (q [B, T, N, H], k, v, q_pos [B, T], k_pos), of the modules of a platform."""

    def run(q, k, v, q_pos, k_pos):
        if op.startswith("decode"):
            return decode.decode_attention(
                q[:, 0], k, v, q_pos[:, 0], k_pos, scale=0.1, window=1020, sinks=4,
                q_sink=q[:, 1], with_mass=op == "decode-mass",
            )  # fmt: skip
        if op == "prefill":
            return prefill.prefill_attention(
                q, k, v, q_pos, k_pos, scale=0.1, window=None, sinks=0, num_slots=None
            )
        lse = jnp.zeros(q.shape[:3], jnp.float32)
        return mass.attention_mass(q, lse, k, q_pos, k_pos, scale=0.1, num_slots=None)

    return run


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("op", ["decode", "decode-mass", "prefill", "mass"])
@pytest.mark.parametrize(
    ("model", "chip", "slots"),
    [(LLAMA, chip, 8192) for chip in tpu.CHIPS]
    + [("llama-3.2-1b", "v5e", 8192), ("llama-3.2-1b", "v6e", 1032), ("gemma-3-1b", "v5e", 4096)],
)
def test_packed(op: str, form: str, model: str, chip: str, slots: int) -> None:
    n, heads, h = MODELS[model]
    count = 512
    q = jax.ShapeDtypeStruct((1, count, n, h), jnp.bfloat16)
    slab = packed(form, 1, heads, slots, h)
    q_pos = jax.ShapeDtypeStruct((1, count), jnp.int32)
    k_pos = jax.ShapeDtypeStruct((1, 1, slots), jnp.int32)

    run = attend(op, decode, prefill, mass)
    compiled = tpu.compile_for(chip, run, q, slab, slab, q_pos, k_pos)
    text = compiled.as_text()
    assert "tpu_custom_call" in text
    held = heads * slots * slab.values.shape[-1]
    assert [line for line in tpu.moves(text, held) if "[" in line and "8[" in line] == []


@pytest.mark.kernel("pool")
@pytest.mark.parametrize("form", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize(
    ("model", "chip"),
    [(LLAMA, chip) for chip in tpu.CHIPS] + [("llama-3.2-1b", "v5e"), ("smollm2-135m", "v5e")],
)
def test_pool(model: str, chip: str, form: str) -> None:
    n, heads, h = MODELS[model]
    blocks, size = 264, 32
    shape = 1, blocks * size, h
    slab = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    slab = slab if form == "bfloat16" else packed(form, *shape)

    # A layer's own blocks of a pool that is the whole model's.
    def run(q, k, v, q_pos, k_pos, owner, begin, end):
        return pool.pool_attention(
            q, k, v, q_pos, k_pos, owner, num_kv_heads=heads, scale=0.1, span=(begin, end)
        )

    row = jax.ShapeDtypeStruct((1,), jnp.int32)
    compiled = tpu.compile_for(
        chip, run,
        jax.ShapeDtypeStruct((1, n, h), jnp.bfloat16), slab, slab,
        row, jax.ShapeDtypeStruct(shape[:2], jnp.int32),
        jax.ShapeDtypeStruct((1, blocks), jnp.int32), row, row,
    )  # fmt: skip
    text = compiled.as_text()
    assert text.count("tpu_custom_call") == 1
    assert tpu.moves(text, blocks * size * (h // 2 if form == "int4" else h)) == []
