# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Gemma 2 and the text models of Gemma 3: layers that see a window between layers that see all.

What goes beyond a Llama: norms multiply by 1 + weight, and come after attention and MLP too;
embeddings are scaled by sqrt(D); Gemma 2 soft-caps scores and logits, Gemma 3 norms queries and
keys, and rotates local layers with a base of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from jaxkv.checkpoints.families.base import Family
from jaxkv.checkpoints.families.hf_rope import rope_from_hf, ropes_from_hf
from jaxkv.checkpoints.families.llama import gguf_config, hf_json, hf_shapes
from jaxkv.checkpoints.families.names import GGUF_NAMES, HF_NAMES, rules
from jaxkv.checkpoints.families.windows import (
    GLOBAL,
    LOCAL,
    kinds_from_hf,
    windows_from_hf,
    windows_to_hf,
)
from jaxkv.checkpoints.table import Layout, Tensors
from jaxkv.core.fields import Fields
from jaxkv.core.rope import Rope
from jaxkv.models.config import ModelConfig

_LOCAL_THETA = 10000.0
_PATTERN = 6  # of Gemma 3, one layer in so many sees all


def _gemma2(fields: Fields) -> ModelConfig:
    config = _common(fields)
    return _windowed(
        fields, config, pattern=2, size=4096,
        rope=rope_from_hf(fields, config.head_dim, config.max_positions),
        soft_cap=_cap(fields, "attn_logit_softcapping", 50.0),
        final_soft_cap=_cap(fields, "final_logit_softcapping", 30.0),
    )  # fmt: skip


def _gemma3(fields: Fields) -> ModelConfig:
    config = _common(fields)
    wide, local = ropes_from_hf(fields, config.head_dim, config.max_positions, _LOCAL_THETA)
    pattern = fields.integer("sliding_window_pattern", _PATTERN)
    return _windowed(
        fields, config, pattern=pattern, size=4096, qk_norm=True, rope=wide, local_rope=local,
        soft_cap=_cap(fields, "attn_logit_softcapping", None),
        final_soft_cap=_cap(fields, "final_logit_softcapping", None),
    )  # fmt: skip


def _common(fields: Fields) -> ModelConfig:
    third = fields.text("model_type") != "gemma2"
    # These classes have defaults of their own, which published files leave out.
    known = Fields(
        {
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "vocab_size": 262208 if third else 256000,
            "max_position_embeddings": 131072 if third else 8192, "tie_word_embeddings": True,
            **{key: fields.raw(key) for key in fields.keys() if fields.has(key)},
            "hidden_act": "silu", "rope_parameters": None, "rope_scaling": None,
        },
        fields.where,
    )  # fmt: skip
    activation = fields.text("hidden_activation", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise fields.refuse("hidden_activation", "gelu_pytorch_tanh")
    if fields.flag("use_bidirectional_attention", False):
        raise fields.refuse("use_bidirectional_attention", "false")
    config = hf_shapes(known)
    bias = fields.flag("attention_bias", False)
    scalar = fields.number("query_pre_attn_scalar", 256)
    return dataclasses.replace(_kind(config, scalar), qkv_bias=bias, out_bias=bias)


def _kind(config: ModelConfig, scalar: float) -> ModelConfig:
    """What all of them have; `scalar` is what queries are divided by the square root of."""
    return dataclasses.replace(
        config,
        query_scale=math.sqrt(config.head_dim / scalar),
        embed_scale=math.sqrt(config.hidden_size),
        unit_offset=True,
        post_norms=True,
        activation="gelu_tanh",
    )


def _windowed(
    fields: Fields, config: ModelConfig, pattern: int, size: int, **more: Any
) -> ModelConfig:
    kinds = kinds_from_hf(fields, _kinds(config.num_layers, pattern))
    # A layer with a window has a rotation of its own in Gemma 3, however long the window is.
    most = None if "local_rope" in more else config.max_positions
    windows = windows_from_hf(fields, kinds, size, most)
    return dataclasses.replace(config, windows=windows, **more)


def _kinds(count: int, pattern: int) -> list[str]:
    return [LOCAL if (layer + 1) % pattern else GLOBAL for layer in range(count)]


def _cap(fields: Fields, key: str, default: float | None) -> float | None:
    # A cap that is null is none; one that is missing is the class' own.
    if key in fields.keys() and not fields.has(key):
        return None
    return fields.number(key, default) if fields.has(key) or default else None


def _json(config: ModelConfig, architecture: str) -> dict[str, Any]:
    made = hf_json(config, architecture)
    del made["hidden_act"], made["mlp_bias"]
    made |= {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(config.head_dim / config.query_scale**2),
        "attn_logit_softcapping": config.soft_cap,
        "final_logit_softcapping": config.final_soft_cap,
        **windows_to_hf(config),
    }
    if config.local_rope:
        made["rope_local_base_freq"] = config.local_rope.theta
    return made


def _gguf(fields: Fields, tensors: Tensors, arch: str) -> ModelConfig:
    config = gguf_config(fields, tensors, arch)
    # As llama.cpp has it: the 27B models divide by the width of the residual stream per head.
    whole = (46, 62)
    scalar = config.head_dim
    if config.num_layers in whole:
        scalar = config.hidden_size / config.num_heads
    config = _kind(config, scalar)
    size = fields.integer(f"{arch}.attention.sliding_window", 4096)
    pattern = 2 if arch == "gemma2" else _PATTERN
    key = f"{arch}.attention.sliding_window_pattern"
    if fields.has(key) and fields.raw(key) != pattern:
        raise fields.refuse(key, f"{pattern}, as in every published model")
    kinds = _kinds(config.num_layers, pattern)
    windows = tuple(size - 1 if kind == LOCAL else 0 for kind in kinds)
    if arch == "gemma2":
        cap = fields.number(f"{arch}.attn_logit_softcapping", 50.0)
        last = fields.number(f"{arch}.final_logit_softcapping", 30.0)
        return dataclasses.replace(config, windows=windows, soft_cap=cap, final_soft_cap=last)
    local = Rope(config.head_dim, fields.number(f"{arch}.rope.freq_base_swa", _LOCAL_THETA))
    return dataclasses.replace(config, windows=windows, local_rope=local, family="gemma3_text")


# llama.cpp stores 1 + weight.
_OFFSET = Layout(lambda shape: shape, lambda x, shape, config: np.asarray(x, np.float32) - 1)
# What a Llama calls post-attention norm comes before the MLP; here it does what its name says.
_HF = rules(HF_NAMES | {"layers.#.mlp_norm": "model.layers.#.pre_feedforward_layernorm.weight"})
_GGUF = rules(GGUF_NAMES, norm=_OFFSET)

# Models that see pictures too: their text model is taken, and what looks at pictures is left out.
_PART = "language_model."
_WHOLE = tuple(dataclasses.replace(rule, theirs=f"{_PART}{rule.theirs}") for rule in _HF)
_PICTURES = (r"vision_tower\..*", r"multi_modal_projector\..*")


def _text_of(fields: Fields) -> ModelConfig:
    inner = fields.within("text_config")
    known = {key: inner.raw(key) for key in inner.keys()} | {"model_type": "gemma3_text"}
    return _gemma3(Fields(known, inner.where))


GEMMA2 = Family(
    hf_types=("gemma2",),
    hf_config=_gemma2,
    hf_json=functools.partial(_json, architecture="Gemma2ForCausalLM"),
    hf_rules=_HF,
    gguf_types=("gemma2",),
    gguf_config=functools.partial(_gguf, arch="gemma2"),
    gguf_rules=_GGUF,
)
GEMMA3 = Family(
    hf_types=("gemma3_text",),
    hf_config=_gemma3,
    hf_json=functools.partial(_json, architecture="Gemma3ForCausalLM"),
    hf_rules=_HF,
    gguf_types=("gemma3",),
    gguf_config=functools.partial(_gguf, arch="gemma3"),
    gguf_rules=_GGUF,
)
GEMMA3_WITH_PICTURES = Family(
    hf_types=("gemma3",),
    hf_config=_text_of,
    hf_json=GEMMA3.hf_json,
    hf_rules=_WHOLE,
    hf_ignored=_PICTURES,
)
