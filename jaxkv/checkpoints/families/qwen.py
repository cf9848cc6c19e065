# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen 2, 2.5 and 3: Llamas with biases of q, k and v, or with a norm of every query and key."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jaxkv.checkpoints.families.base import Family
from jaxkv.checkpoints.families.llama import GGUF_RULES, HF_RULES, gguf_config, hf_json, hf_shapes
from jaxkv.checkpoints.families.windows import (
    GLOBAL,
    LOCAL,
    kinds_from_hf,
    windows_from_hf,
    windows_to_hf,
)
from jaxkv.core.fields import Fields
from jaxkv.models.config import ModelConfig


def _qwen2(fields: Fields) -> ModelConfig:
    return dataclasses.replace(_windowed(fields), qkv_bias=True)


def _qwen3(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    return dataclasses.replace(_windowed(fields), qkv_bias=bias, out_bias=bias, qk_norm=True)


def _windowed(fields: Fields) -> ModelConfig:
    config = hf_shapes(fields)
    # `sliding_window` itself is in every config.json; it counts for nothing without the flag.
    if not fields.flag("use_sliding_window", False):
        return config
    first = fields.integer("max_window_layers", 28, low=0)
    kinds = [GLOBAL if layer < first else LOCAL for layer in range(config.num_layers)]
    kinds = kinds_from_hf(fields, kinds)
    windows = windows_from_hf(fields, kinds, 4096, config.max_positions)
    return dataclasses.replace(config, windows=windows)


def _json(config: ModelConfig, architecture: str) -> dict[str, Any]:
    window = {"use_sliding_window": bool(config.windows)} | windows_to_hf(config)
    return hf_json(config, architecture) | window


QWEN2 = Family(
    hf_types=("qwen2",),
    hf_config=_qwen2,
    hf_json=functools.partial(_json, architecture="Qwen2ForCausalLM"),
    hf_rules=HF_RULES,
    gguf_types=("qwen2",),
    gguf_config=functools.partial(gguf_config, arch="qwen2"),
    gguf_rules=GGUF_RULES,
)
QWEN3 = Family(
    hf_types=("qwen3",),
    hf_config=_qwen3,
    hf_json=functools.partial(_json, architecture="Qwen3ForCausalLM"),
    hf_rules=HF_RULES,
    gguf_types=("qwen3",),
    gguf_config=functools.partial(gguf_config, arch="qwen3"),
    gguf_rules=GGUF_RULES,
)
