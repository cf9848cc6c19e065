# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The TPU decode kernel compiles for real chips, and reads a slab where it lies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import tpu

from pallas_kernels.decode import mosaic_tpu
from pallas_kernels.dispatch import dispatch

pytestmark = [pytest.mark.aot, tpu.needs_libtpu]

MODELS = {  # query heads, KV heads, dimensions of a head
    "llama-3.1-8b and qwen3-8b": (32, 8, 128),
    "llama-3.2-1b": (32, 8, 64),
    "smollm2-135m": (9, 3, 64),
    "gemma-3-1b": (4, 1, 256),
}


def check(
    chip: str, model: str, slots: int, dtype: type = jnp.bfloat16, *, rows: int = 1,
    places: int = 1, sinks: int = 0, window: int | None = None, with_mass: bool = False,
) -> None:  # fmt: skip
    n, heads, h = MODELS[model]
    q = jax.ShapeDtypeStruct((rows, n, h), dtype)
    slab = jax.ShapeDtypeStruct((rows, heads, slots, h), dtype)
    q_pos = jax.ShapeDtypeStruct((rows,), jnp.int32)
    k_pos = jax.ShapeDtypeStruct((rows, places, slots), jnp.int32)
    options = dict(scale=h**-0.5, sinks=sinks, window=window, with_mass=with_mass)

    def attend(q, k, v, q_pos, k_pos, q_sink):
        sink = q_sink if sinks else None
        return mosaic_tpu.decode_attention(q, k, v, q_pos, k_pos, q_sink=sink, **options)

    compiled = tpu.compile_for(chip, attend, q, slab, slab, q_pos, k_pos, q)
    text = compiled.as_text()
    assert "tpu_custom_call" in text
    size = rows * heads * slots * h
    assert tpu.moves(text, size) == []
    # The blocks live in VMEM. A program takes some hundred KiB of HBM whatever its size.
    slab_bytes = size * jnp.dtype(dtype).itemsize
    assert compiled.memory_analysis().temp_size_in_bytes < max(slab_bytes // 4, 1 << 20)


@pytest.mark.kernel("decode")
@pytest.mark.parametrize("slots", [1029, 8192])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chip", tpu.CHIPS)
def test_decode(chip: str, model: str, slots: int) -> None:
    check(chip, model, slots)


@pytest.mark.parametrize("chip", tpu.CHIPS)
def test_float32(chip: str) -> None:
    check(chip, "llama-3.1-8b and qwen3-8b", 8192, jnp.float32)


@pytest.mark.parametrize("slots", [1029, 8192])
def test_sinks_a_window_rows_and_heads_of_their_own(slots: int) -> None:
    check("v5e", "llama-3.1-8b and qwen3-8b", slots, rows=4, places=8, sinks=4, window=1000)


def test_a_process_that_asked_for_64_bits() -> None:
    q = jax.ShapeDtypeStruct((1, 32, 64), jnp.bfloat16)
    slab = jax.ShapeDtypeStruct((1, 8, 1024, 64), jnp.bfloat16)
    at = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1, 1, 1024), jnp.int32)

    def attend(*args):
        table = {"mosaic_tpu": mosaic_tpu.decode_attention}
        return dispatch(
            table, "mosaic_tpu", *args, scale=0.1, sinks=0, window=None, q_sink=None,
            with_mass=False,
        )  # fmt: skip

    with jax.enable_x64(True):
        assert "tpu_custom_call" in tpu.compile_for("v5e", attend, q, slab, slab, *at).as_text()


def test_mass() -> None:
    check("v5e", "llama-3.2-1b", 8192, with_mass=True)


def test_defaults_of_precision_do_not_reach_the_kernel() -> None:
    with jax.default_matmul_precision("highest"):
        check("v5e", "smollm2-135m", 1029)


def test_another_order_costs_a_copy_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above might see no copy in any program."""
    monkeypatch.setattr(mosaic_tpu, "stored_order", lambda *_: mosaic_tpu.Order.HEADS_SLOTS)
    with pytest.raises(AssertionError, match="copy"):
        check("v5e", "llama-3.2-1b", 8192)
