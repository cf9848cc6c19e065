# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Mistral without its native sliding window, as since version 0.2: a Llama by another name.

Its GGUF files call themselves `llama`.
"""

from __future__ import annotations

from jaxkv.convert.families.base import Family
from jaxkv.convert.families.llama import GGUF_RULES, HF_RULES, gguf_config, hf_config

FAMILY = Family(
    hf_types=("mistral",),
    gguf_types=(),
    hf_config=hf_config,
    gguf_config=gguf_config,
    hf_rules=HF_RULES,
    gguf_rules=GGUF_RULES,
)
