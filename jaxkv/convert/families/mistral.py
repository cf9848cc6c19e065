# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Mistral: a Llama by another name, in its first version with a sliding window in every layer.

Its GGUF files call themselves `llama`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxkv.convert.families.base import Family
from jaxkv.convert.families.llama import HF_RULES, hf_json, hf_shapes
from jaxkv.convert.families.windows import LOCAL, windows_from_hf, windows_to_hf
from jaxkv.convert.fields import Fields
from jaxkv.models.config import ModelConfig


def config_of(fields: Fields) -> ModelConfig:
    """config.json -> our configuration, of a Llama whose layers may all have a window."""
    config = hf_shapes(fields)
    kinds = [LOCAL] * config.num_layers
    windows = windows_from_hf(fields, config.num_layers, config.max_positions, kinds)
    return dataclasses.replace(config, windows=windows)


def json_of(config: ModelConfig, architecture: str = "MistralForCausalLM") -> dict[str, Any]:
    """The inverse of `config_of`."""
    window = windows_to_hf(config)["sliding_window"]
    return hf_json(config, architecture) | {"sliding_window": window}


FAMILY = Family(hf_types=("mistral",), hf_config=config_of, hf_json=json_of, hf_rules=HF_RULES)
