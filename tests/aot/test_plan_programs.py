# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Millions of tokens on one card, as compiled: caches and weights are packed, and stay so."""

from __future__ import annotations

import dataclasses

import gpu
import jax.numpy as jnp
import numpy as np
import pytest
import tpu

from jaxkv import DuoAttention, Full
from jaxkv.cache import store as stores
from jaxkv.cache.packed import zeros
from jaxkv.checkpoints.named import named_config
from jaxkv.plan.assumed import even_where_unknown
from jaxkv.plan.chips import CHIPS
from jaxkv.plan.estimate import Setting, estimate
from jaxkv.plan.programs import decode_step, prompt_chunk
from pallas_kernels import decode_attention

pytestmark = pytest.mark.aot
CONFIG = named_config("llama-3.1-8b")
DUO = DuoAttention(sparsity=0.5, sinks=128, recent=256)


def of_layers(count: int, kv_dtype: str = "int4", weights: str | None = "int8") -> Setting:
    config = dataclasses.replace(CONFIG, num_layers=count)
    return Setting(config, 1, "bfloat16", kv_dtype, weights)


@gpu.needs_cuda_compiler
def test_four_million_tokens_on_a_card_of_80_gb() -> None:
    """The whole step of all layers; of the prompt's program the part that is not of each layer."""
    setting, tokens = of_layers(32), 4_000_000
    with even_where_unknown([DUO], CONFIG) as [(policy, _)]:
        planned = estimate(setting, policy, tokens, CHIPS["h100"])
        made = decode_step(setting, policy, tokens, CHIPS["h100"])
    with even_where_unknown([DUO], of_layers(2).config) as [(policy, _)]:
        chunk = prompt_chunk(of_layers(2), policy, tokens, 512, CHIPS["h100"])
    counted = planned.weights_bytes + planned.cache_bytes
    assert made["argument_bytes"] == pytest.approx(counted, rel=0.01)
    assert made["kernels"] == 32 and made["peak_bytes"] < 80e9
    # No layer's keys are made wide: one layer's values, as bfloat16, would take 4.1 GB.
    assert made["temporary_bytes"] < 0.02 * planned.cache_bytes
    # Nor is there anything that grows with the square of the blocks of slots.
    assert chunk["temporary_bytes"] < 1e8


@gpu.needs_cuda_compiler
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_are_not_made_wide_for_a_gpu(weights: str) -> None:
    setting = of_layers(2, "bfloat16", weights)
    made = decode_step(setting, Full(), 4096, CHIPS["h100"])
    assert made["temporary_bytes"] < 5e6  # a layer's narrowest map, as bfloat16, would take 34 MB


@tpu.needs_libtpu
@pytest.mark.parametrize(("chip", "kv_dtype"), [("v5e", "int4"), ("v6e", "int8")])
def test_packed_caches_and_weights_on_a_tpu(chip: str, kv_dtype: str) -> None:
    setting, tokens = of_layers(2, kv_dtype, kv_dtype), 131_072
    with even_where_unknown([DUO], setting.config) as [(policy, _)]:
        planned = estimate(setting, policy, tokens, CHIPS[chip])
        made = decode_step(setting, policy, tokens, CHIPS[chip])
        chunk = prompt_chunk(setting, policy, tokens, 512, CHIPS[chip])
    counted = planned.weights_bytes + planned.cache_bytes
    assert made["argument_bytes"] == pytest.approx(counted, rel=0.03)
    assert made["kernels"] and chunk["kernels"]
    # Of a layer its scales, as float32; a wide copy would be four times the layer.
    layer = planned.cache_bytes / 2
    assert made["temporary_bytes"] < 0.3 * layer
    # A chunk of a prompt has one map at a time made wide, if it is int4.
    wide = 2 * 4096 * 28672 if kv_dtype == "int4" else 0
    assert chunk["temporary_bytes"] < 1.05 * wide + 0.7 * layer


def test_numbers_beyond_2_31_are_written_and_found() -> None:
    """On a CPU: offsets in a layer's keys that are counted in numbers would not fit an int32."""
    heads, slots, h = 4, 4_300_000, 128
    assert heads * slots * h > 2**31
    at = jnp.arange(slots, dtype=jnp.int32)[None, None]
    new = jnp.full((1, 1, heads, h), 7.0) * jnp.arange(1.0, heads + 1)[None, None, :, None]
    held = stores.write_run(
        zeros((1, heads, slots, h), "int4"), stores.pack(zeros((1, heads, 1, h), "int4"), new),
        jnp.int32(slots - 1),
    )  # fmt: skip
    out, _ = decode_attention(
        jnp.ones((1, heads, h)), held.slots(), held.slots(), jnp.asarray([slots], jnp.int32), at,
        scale=1.0,
    )  # fmt: skip
    # All other slots have the key 0, and so no weight beside one of thousands.
    np.testing.assert_allclose(out[0], new[0, 0], rtol=1e-2)
