# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The TPU kernel of attention mass compiles for real chips, and moves no slab."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import tpu
from test_tpu_decode_programs import MODELS

from pallas_kernels.mass import mosaic_tpu

pytestmark = [pytest.mark.aot, tpu.needs_libtpu]


def check(
    chip: str, heads: tuple[int, int, int], count: int, dtype: type = jnp.bfloat16, *,
    slots: int = 8192, places: int = 1,
) -> None:  # fmt: skip
    n, kv_heads, h = heads
    q = jax.ShapeDtypeStruct((2, count, n, h), dtype)
    lse = jax.ShapeDtypeStruct((2, count, n), jnp.float32)
    slab = jax.ShapeDtypeStruct((2, kv_heads, slots, h), dtype)
    q_pos = jax.ShapeDtypeStruct((2, count), jnp.int32)
    k_pos = jax.ShapeDtypeStruct((2, places, slots), jnp.int32)
    num_slots = jax.ShapeDtypeStruct((), jnp.int32)

    def mass(q, lse, k, q_pos, k_pos, num_slots):
        return mosaic_tpu.attention_mass(
            q, lse, k, q_pos, k_pos, scale=h**-0.5, num_slots=num_slots
        )

    compiled = tpu.compile_for(chip, mass, q, lse, slab, q_pos, k_pos, num_slots)
    text = compiled.as_text()
    assert "tpu_custom_call" in text
    assert tpu.moves(text, slab.size) == []
    # Queries and the mass, once each, beside what goes in and out.
    needed = q.size * jnp.dtype(dtype).itemsize + 2 * n * slots * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * needed + (1 << 20)


@pytest.mark.kernel("mass")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chip", tpu.CHIPS)
def test_mass(chip: str, model: str) -> None:
    check(chip, MODELS[model], 512)


@pytest.mark.parametrize("h", [80, 128, 256])
def test_float32_of_the_last_queries(h: int) -> None:
    check("v5e", (8, 2, h), 32, jnp.float32, places=2)


def test_as_many_blocks_as_can_be_listed() -> None:
    check("v5e", (32, 8, 128), 2048, slots=1 << 17, places=8)
