# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Phi-3 and Phi-4 with a fixed RoPE and no window: a Llama with projections stored together."""

from __future__ import annotations

import numpy as np

from jaxkv.convert.families.base import Family
from jaxkv.convert.families.llama import GGUF_RULES, HF_RULES, gguf_config, hf_config
from jaxkv.convert.table import LINEAR, Layout, Rule, Shape
from jaxkv.models.config import ModelConfig


def _by_kv_head(x: np.ndarray, shape: Shape, config: ModelConfig) -> np.ndarray:
    """Rows of all q, all k and all v, [(N + 2 K) H, D] -> [D, K (G + 2) H]."""
    heads, group, h = config.num_kv_heads, config.group_size, config.head_dim
    q, k, v = np.split(x, [config.num_heads * h, (config.num_heads + heads) * h])
    parts = [part.reshape(heads, count, h, -1) for part, count in ((q, group), (k, 1), (v, 1))]
    return np.concatenate(parts, axis=1).reshape(shape[::-1]).T


_AT = "model.layers.#."
_FUSED = (
    Rule(f"{_AT}self_attn.qkv_proj.weight", "layers.#.wqkv", Layout(LINEAR.stored, _by_kv_head)),
    Rule(f"{_AT}mlp.gate_up_proj.weight", "layers.#.w_gate_up", LINEAR),
)
_FILLED = [rule.ours for rule in _FUSED]

FAMILY = Family(
    hf_types=("phi3",),
    gguf_types=(),
    hf_config=hf_config,
    gguf_config=gguf_config,
    hf_rules=(*(rule for rule in HF_RULES if rule.ours not in _FILLED), *_FUSED),
    gguf_rules=GGUF_RULES,
)
