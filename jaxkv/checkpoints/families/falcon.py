# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Falcon: 7B with one KV head, 40B and 180B with groups, and the RW models with ALiBi."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jaxkv.checkpoints.families.base import Family
from jaxkv.checkpoints.families.gguf_config import NAMES, gguf_rules, plain_config
from jaxkv.checkpoints.families.hf_rope import rope_from_hf, rope_to_hf
from jaxkv.checkpoints.families.names import rules
from jaxkv.checkpoints.table import KEEP, Rule, Tensors
from jaxkv.core.fields import Fields
from jaxkv.core.rope import Rope
from jaxkv.core.scoring import alibi_slopes
from jaxkv.models.config import ModelConfig


def _config(fields: Fields) -> ModelConfig:
    hidden = fields.integer("hidden_size", high=2**20)
    heads = fields.integer("num_attention_heads", high=2**16)
    if hidden % heads:
        raise fields.refuse("hidden_size", f"a multiple of the number of heads {heads}")
    if fields.text("activation", "gelu") != "gelu":
        raise fields.refuse("activation", "gelu")
    head_dim = hidden // heads
    grouped = fields.flag("new_decoder_architecture", False)
    one = fields.flag("multi_query", True)
    groups = fields.integer("num_kv_heads", heads, high=2**16)
    parallel = grouped or fields.flag("parallel_attn", True)
    if grouped and not fields.flag("parallel_attn", True):
        raise fields.refuse("parallel_attn", "true, where new_decoder_architecture is")
    norms = fields.integer("num_ln_in_parallel_attn", 2 if grouped else 1, high=2)
    if parallel and norms == 2 and not grouped:
        raise fields.refuse("num_ln_in_parallel_attn", "1, where new_decoder_architecture is not")
    alibi = fields.flag("alibi", False)
    max_positions = fields.integer("max_position_embeddings", 2048, high=2**31 - 1)
    bias = fields.flag("bias", False)
    # Its bias is divided by sqrt(H) as the scores are.
    slopes = tuple(slope / math.sqrt(head_dim) for slope in alibi_slopes(heads)) if alibi else ()
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("ffn_hidden_size", 4 * hidden),
        num_layers=fields.integer("num_hidden_layers", high=4096),
        num_heads=heads,
        num_kv_heads=groups if grouped else 1 if one else heads,
        head_dim=head_dim,
        rope=None if alibi else rope_from_hf(fields, head_dim, max_positions),
        max_positions=max_positions,
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        alibi=slopes,
        layer_norm=True,
        norm_bias=True,
        parallel=parallel,
        shared_norm=parallel and norms == 1,
        gated=False,
        activation="gelu",
        family="falcon",
    )


def _json(config: ModelConfig) -> dict[str, Any]:
    heads = config.num_kv_heads
    grouped = config.parallel and not (config.shared_norm and heads in (1, config.num_heads))
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_kv_heads": heads,
        "new_decoder_architecture": grouped,
        "multi_query": heads == 1,
        "parallel_attn": config.parallel,
        "num_ln_in_parallel_attn": None if not config.parallel else 2 - config.shared_norm,
        "alibi": bool(config.alibi),
        "bias": config.mlp_bias,
        "activation": "gelu",
        "max_position_embeddings": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **(rope_to_hf(config.rope) if config.rope else {}),
    }


def _gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    # llama.cpp knows none with ALiBi, and none whose attention and MLP are not parallel.
    config = plain_config(fields, tensors, "falcon")
    theta = fields.number("falcon.rope.freq_base", 10000.0, above=1)
    return dataclasses.replace(
        config,
        rope=Rope(config.head_dim, theta),
        parallel=True,
        shared_norm="blk.0.attn_norm_2.weight" not in tensors.shapes,
        family="falcon",
    )


_AT = "transformer.h.#."
_NAMES = {
    "embed": "transformer.word_embeddings.weight",
    # Of each KV head its queries, then its key, then its value, as ours.
    "layers.#.wqkv": f"{_AT}self_attention.query_key_value.weight",
    "layers.#.bqkv": f"{_AT}self_attention.query_key_value.bias",
    "layers.#.wo": f"{_AT}self_attention.dense.weight",
    "layers.#.bo": f"{_AT}self_attention.dense.bias",
    "layers.#.w_up": f"{_AT}mlp.dense_h_to_4h.weight",
    "layers.#.b_up": f"{_AT}mlp.dense_h_to_4h.bias",
    "layers.#.w_down": f"{_AT}mlp.dense_4h_to_h.weight",
    "layers.#.b_down": f"{_AT}mlp.dense_4h_to_h.bias",
    "final_norm": "transformer.ln_f.weight",
    "final_norm_bias": "transformer.ln_f.bias",
    "lm_head": "lm_head.weight",
}


def _two_norms(config: ModelConfig) -> bool:
    return config.parallel and not config.shared_norm


def _gguf_norms() -> tuple[Rule, ...]:
    """The one norm, or that of the MLP, is `attn_norm`; that of attention is `attn_norm_2` then."""
    return tuple(
        Rule(f"blk.#.{theirs}.{kind}", f"layers.#.{ours}_norm{end}", KEEP, of=of)
        for ours, theirs, of in (
            ("attn", "attn_norm", lambda x: not _two_norms(x)),
            ("attn", "attn_norm_2", _two_norms),
            ("mlp", "attn_norm", _two_norms),
        )
        for end, kind in (("", "weight"), ("_bias", "bias"))
    )


def _norms(attn: str, mlp: str, of: Callable[[ModelConfig], bool]) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{_AT}{theirs}.{kind}", f"layers.#.{ours}_norm{end}", KEEP, of=of)
        for ours, theirs in (("attn", attn), ("mlp", mlp))
        for end, kind in (("", "weight"), ("_bias", "bias"))
    )


FAMILY = Family(
    hf_types=("falcon",),
    hf_config=_config,
    hf_json=_json,
    hf_rules=(
        *rules(_NAMES),
        *_norms("ln_attn", "ln_mlp", of=_two_norms),
        *_norms("input_layernorm", "post_attention_layernorm", of=lambda x: not _two_norms(x)),
    ),
    gguf_types=("falcon",),
    gguf_config=_gguf,
    gguf_rules=(
        *gguf_rules(
            {ours: name for ours, name in NAMES.items() if "#." not in ours or "_norm" not in ours}
        ),
        *_gguf_norms(),
    ),
    hf_ignored=(r"transformer\.h\.\d+\.self_attention\.rotary_emb\.inv_freq",),
)
