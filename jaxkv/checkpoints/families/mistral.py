# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Mistral: a Llama by another name, in its first version with a sliding window in every layer.

Ministral has it in some of them. Their GGUF files call themselves `llama`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxkv.checkpoints.families.base import Family
from jaxkv.checkpoints.families.llama import HF_RULES, hf_json, hf_shapes
from jaxkv.checkpoints.families.windows import LOCAL, kinds_from_hf, windows_from_hf, windows_to_hf
from jaxkv.core.fields import Fields
from jaxkv.models.config import ModelConfig

_SIZE = 4096  # where a file does not name the window


def _config(fields: Fields) -> ModelConfig:
    config = hf_shapes(fields)
    kinds = [LOCAL] * config.num_layers
    if config.family == "ministral":
        kinds = kinds_from_hf(fields, kinds)
    windows = windows_from_hf(fields, kinds, _SIZE, config.max_positions)
    return dataclasses.replace(config, windows=windows)


def _json(config: ModelConfig) -> dict[str, Any]:
    windows = windows_to_hf(config)
    if config.family == "ministral":
        return hf_json(config, "MinistralForCausalLM") | windows
    return hf_json(config, "MistralForCausalLM") | {"sliding_window": windows["sliding_window"]}


FAMILY = Family(
    hf_types=("mistral", "ministral"), hf_config=_config, hf_json=_json, hf_rules=HF_RULES
)
