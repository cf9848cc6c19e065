# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The TPU prefill kernel compiles for real chips, fits their memories, and moves no slab."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import tpu
from test_tpu_decode_programs import MODELS

from pallas_kernels.prefill import mosaic_tpu
from pallas_kernels.tpu_layout import Order, stored_order

pytestmark = [pytest.mark.aot, tpu.needs_libtpu]

LLAMA = "llama-3.1-8b and qwen3-8b"


def check(
    chip: str, heads: tuple[int, int, int], slots: int, dtype: type = jnp.bfloat16, *,
    count: int = 512, rows: int = 1, places: int = 1, sinks: int = 0, window: int | None = None,
) -> None:  # fmt: skip
    n, kv_heads, h = heads
    q = jax.ShapeDtypeStruct((rows, count, n, h), dtype)
    slab = jax.ShapeDtypeStruct((rows, kv_heads, slots, h), dtype)
    q_pos = jax.ShapeDtypeStruct((rows, count), jnp.int32)
    k_pos = jax.ShapeDtypeStruct((rows, places, slots), jnp.int32)
    num_slots = jax.ShapeDtypeStruct((), jnp.int32)

    def attend(q, k, v, q_pos, k_pos, num_slots):
        return mosaic_tpu.prefill_attention(
            q, k, v, q_pos, k_pos,
            scale=h**-0.5, window=window, sinks=sinks, num_slots=num_slots,
        )  # fmt: skip

    compiled = tpu.compile_for(chip, attend, q, slab, slab, q_pos, k_pos, num_slots)
    text = compiled.as_text()
    assert "tpu_custom_call" in text
    size = rows * kv_heads * slots * h
    order = stored_order(slab.shape, slab.dtype.itemsize)
    copied = order not in (Order.HEADS_SLOTS, Order.HEADS_DIMS)
    if not copied and slots > count:  # else the queries might be taken for a slab
        assert tpu.moves(text, size) == []
    # Scores stay in VMEM: what takes memory is the queries and the results in another order.
    slab_bytes, query_bytes = (x * jnp.dtype(dtype).itemsize for x in (size, q.size))
    most = 4 * query_bytes + (1 << 20) + (2 * slab_bytes if copied else 0)
    assert compiled.memory_analysis().temp_size_in_bytes < most


@pytest.mark.kernel("prefill")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chip", tpu.CHIPS)
def test_prefill(chip: str, model: str) -> None:
    check(chip, MODELS[model], 8192)


@pytest.mark.parametrize("chip", tpu.CHIPS)
@pytest.mark.parametrize("h", [80, 128, 256])
def test_float32_and_a_band(chip: str, h: int) -> None:
    check(chip, (8, 2, h), 8192, jnp.float32, sinks=4, window=1000)


@pytest.mark.parametrize("slots", [4, 1029, 1032])
@pytest.mark.parametrize("model", MODELS)
def test_rings_and_sinks(model: str, slots: int) -> None:
    """Slabs whose slots fill no tiles are copied, which takes little next to their use."""
    check("v5e", MODELS[model], slots, rows=2, count=100, window=1000)


def test_heads_of_their_own_and_as_many_blocks_as_can_be_listed() -> None:
    check("v5e", MODELS[LLAMA], 1 << 17, rows=3, count=2048, places=8, sinks=4, window=1000)


def test_a_large_group_is_parted() -> None:
    check("v5e", (71, 1, 64), 8192, jnp.float32, count=40)
