# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a family of models has to say about its checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxkv.checkpoints.table import Rule, Tensors
from jaxkv.core.fields import Fields
from jaxkv.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture in the two formats that it is published in.

    Attributes:
      hf_types: values of `model_type` in config.json.
      hf_config: config.json -> our configuration.
      hf_json: our configuration -> config.json.
      hf_rules: where each tensor goes.
      hf_ignored: regular expressions of tensors that are not needed.
      gguf_types: values of `general.architecture`; none if the family has no such files.
      gguf_config: header and tensors of a GGUF file -> our configuration.
      gguf_rules: where each of its tensors goes.
      gguf_ignored: those that are not needed.
    """

    hf_types: tuple[str, ...]
    hf_config: Callable[[Fields], ModelConfig]
    hf_json: Callable[[ModelConfig], dict[str, Any]]
    hf_rules: tuple[Rule, ...]
    hf_ignored: tuple[str, ...] = ()
    gguf_types: tuple[str, ...] = ()
    gguf_config: Callable[[Fields, Tensors], ModelConfig] | None = None
    gguf_rules: tuple[Rule, ...] = ()
    gguf_ignored: tuple[str, ...] = ()
