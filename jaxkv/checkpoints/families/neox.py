# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""GPT-NeoX and Pythia: part of a head is rotated, attention and MLP are parallel, LayerNorms."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxkv.checkpoints.families.base import Family
from jaxkv.checkpoints.families.gguf_config import gguf_rules, plain_config
from jaxkv.checkpoints.families.hf_rope import rope_from_hf, rope_to_hf
from jaxkv.checkpoints.families.names import rules
from jaxkv.checkpoints.table import Tensors
from jaxkv.core.fields import Fields
from jaxkv.core.rope import Rope
from jaxkv.models.config import ModelConfig

_ACTIVATIONS = {  # the last three are one function
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def _config(fields: Fields) -> ModelConfig:
    hidden = fields.integer("hidden_size", high=2**20)
    heads = fields.integer("num_attention_heads", high=2**16)
    if hidden % heads:
        raise fields.refuse("hidden_size", f"a multiple of the number of heads {heads}")
    activation = fields.text("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise fields.refuse("hidden_act", f"one of {', '.join(_ACTIVATIONS)}")
    max_positions = fields.integer("max_position_embeddings", high=2**31 - 1)
    bias = fields.flag("attention_bias", True)
    rope = rope_from_hf(
        fields, hidden // heads, max_positions,
        theta="rotary_emb_base", part="rotary_pct", default_part=0.25,
    )  # fmt: skip
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers", high=4096),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        rope=rope,
        max_positions=max_positions,
        norm_eps=fields.number("layer_norm_eps", 1e-5),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        layer_norm=True,
        norm_bias=True,
        parallel=fields.flag("use_parallel_residual", True),
        gated=False,
        activation=_ACTIVATIONS[activation],
        family="gpt_neox",
    )


def _json(config: ModelConfig) -> dict[str, Any]:
    assert config.rope is not None
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": "gelu" if config.activation == "gelu" else "gelu_new",
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.qkv_bias,
        "use_parallel_residual": config.parallel,
        "rotary_emb_base": config.rope.theta,
        "rotary_pct": config.rope.rotary_dim / config.head_dim,
        "rope_scaling": rope_to_hf(config.rope)["rope_scaling"],
    }


def _gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    config, arch = plain_config(fields, tensors, "gptneox"), "gptneox"
    rotary = fields.integer(f"{arch}.rope.dimension_count", config.head_dim, high=config.head_dim)
    theta = fields.number(f"{arch}.rope.freq_base", 10000.0, above=1)
    parallel = fields.flag(f"{arch}.use_parallel_residual", True)
    return dataclasses.replace(
        config, rope=Rope(rotary, theta), parallel=parallel, family="gpt_neox"
    )


_AT = "gpt_neox.layers.#."
_NAMES = {
    "embed": "gpt_neox.embed_in.weight",
    "layers.#.attn_norm": f"{_AT}input_layernorm.weight",
    "layers.#.attn_norm_bias": f"{_AT}input_layernorm.bias",
    # Heads of [q, k, v] each, as ours.
    "layers.#.wqkv": f"{_AT}attention.query_key_value.weight",
    "layers.#.bqkv": f"{_AT}attention.query_key_value.bias",
    "layers.#.wo": f"{_AT}attention.dense.weight",
    "layers.#.bo": f"{_AT}attention.dense.bias",
    "layers.#.mlp_norm": f"{_AT}post_attention_layernorm.weight",
    "layers.#.mlp_norm_bias": f"{_AT}post_attention_layernorm.bias",
    "layers.#.w_up": f"{_AT}mlp.dense_h_to_4h.weight",
    "layers.#.b_up": f"{_AT}mlp.dense_h_to_4h.bias",
    "layers.#.w_down": f"{_AT}mlp.dense_4h_to_h.weight",
    "layers.#.b_down": f"{_AT}mlp.dense_4h_to_h.bias",
    "final_norm": "gpt_neox.final_layer_norm.weight",
    "final_norm_bias": "gpt_neox.final_layer_norm.bias",
    "lm_head": "embed_out.weight",
}

FAMILY = Family(
    hf_types=("gpt_neox",),
    hf_config=_config,
    hf_json=_json,
    hf_rules=rules(_NAMES),
    gguf_types=("gptneox",),
    gguf_config=_gguf,
    gguf_rules=gguf_rules(),
    hf_ignored=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
)
