# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The TPU kernels compile for real chips with ALiBi's bias and with soft caps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import tpu

from pallas_kernels.decode import mosaic_tpu as decode
from pallas_kernels.mass import mosaic_tpu as mass
from pallas_kernels.prefill import mosaic_tpu as prefill

pytestmark = [pytest.mark.aot, tpu.needs_libtpu]

# N, K, H, and whether scores are biased or capped.
MODELS = {
    "mpt-7b": (32, 32, 128, True),
    "falcon-rw-1b": (32, 32, 64, True),
    "gemma-2-9b": (16, 8, 256, False),
}
CASES = [("mpt-7b", chip) for chip in tpu.CHIPS] + [
    ("falcon-rw-1b", "v5e"),
    ("gemma-2-9b", "v5e"),
    ("gemma-2-9b", "v6e"),
]


@pytest.mark.parametrize("op", ["decode", "decode-mass", "prefill", "mass"])
@pytest.mark.parametrize(("model", "chip"), CASES)
def test_bent_scores(op: str, model: str, chip: str) -> None:
    n, heads, h, alibi = MODELS[model]
    slots, count = 4096, 512
    q = jax.ShapeDtypeStruct((1, count, n, h), jnp.bfloat16)
    slab = jax.ShapeDtypeStruct((1, heads, slots, h), jnp.bfloat16)
    q_pos = jax.ShapeDtypeStruct((1, count), jnp.int32)
    k_pos = jax.ShapeDtypeStruct((1, 1, slots), jnp.int32)
    used = jax.ShapeDtypeStruct((), jnp.int32)
    slopes = jax.ShapeDtypeStruct((n,), jnp.float32)

    def run(q, k, v, q_pos, k_pos, used, slopes):
        bend = {"slopes": slopes} if alibi else {"soft_cap": 50.0}
        if op.startswith("decode"):
            return decode.decode_attention(
                q[:, 0], k, v, q_pos[:, 0], k_pos, scale=0.1, window=1020, sinks=4,
                q_sink=q[:, 1], with_mass=op == "decode-mass", **bend,
            )  # fmt: skip
        if op == "prefill":
            return prefill.prefill_attention(
                q, k, v, q_pos, k_pos, scale=0.1, window=None, sinks=0, num_slots=used, **bend
            )
        lse = jnp.zeros(q.shape[:3], jnp.float32)
        return mass.attention_mass(q, lse, k, q_pos, k_pos, scale=0.1, num_slots=used, **bend)

    compiled = tpu.compile_for(chip, run, q, slab, slab, q_pos, k_pos, used, slopes)
    assert "tpu_custom_call" in compiled.as_text()
