# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a family of models has to say about its checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxkv.convert.fields import Fields
from jaxkv.convert.table import Rule, Tensors
from jaxkv.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture in the two formats that it is published in.

    Attributes:
      hf_types: values of `model_type` in config.json.
      gguf_types: values of `general.architecture`.
      hf_config: config.json -> our configuration.
      gguf_config: header and tensors of a GGUF file -> our configuration.
      hf_rules, gguf_rules: where each tensor goes.
      hf_ignored, gguf_ignored: regular expressions of tensors that are not needed.
    """

    hf_types: tuple[str, ...]
    gguf_types: tuple[str, ...]
    hf_config: Callable[[Fields], ModelConfig]
    gguf_config: Callable[[Fields, Tensors], ModelConfig]
    hf_rules: tuple[Rule, ...]
    gguf_rules: tuple[Rule, ...]
    hf_ignored: tuple[str, ...] = ()
    gguf_ignored: tuple[str, ...] = ()
