# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen 2, 2.5 and 3: Llamas with biases of q, k and v, or with a norm of every query and key."""

from __future__ import annotations

import dataclasses
import functools

from jaxkv.convert.families.base import Family
from jaxkv.convert.families.llama import GGUF_RULES, HF_RULES, gguf_config, hf_shapes
from jaxkv.convert.fields import Fields
from jaxkv.models.config import ModelConfig


def _qwen2(fields: Fields) -> ModelConfig:
    _refuse_windows(fields)
    return dataclasses.replace(hf_shapes(fields), qkv_bias=True)


def _qwen3(fields: Fields) -> ModelConfig:
    _refuse_windows(fields)
    bias = fields.flag("attention_bias", False)
    return dataclasses.replace(hf_shapes(fields), qkv_bias=bias, out_bias=bias, qk_norm=True)


def _refuse_windows(fields: Fields) -> None:
    # `sliding_window` itself is in every config.json; it counts for nothing without the flag.
    if fields.flag("use_sliding_window", False):
        raise fields.refuse("use_sliding_window", "false: native windows are not supported")


QWEN2 = Family(
    hf_types=("qwen2",),
    gguf_types=("qwen2",),
    hf_config=_qwen2,
    gguf_config=functools.partial(gguf_config, arch="qwen2"),
    hf_rules=HF_RULES,
    gguf_rules=GGUF_RULES,
)
QWEN3 = Family(
    hf_types=("qwen3",),
    gguf_types=("qwen3",),
    hf_config=_qwen3,
    gguf_config=functools.partial(gguf_config, arch="qwen3"),
    hf_rules=HF_RULES,
    gguf_rules=GGUF_RULES,
)
