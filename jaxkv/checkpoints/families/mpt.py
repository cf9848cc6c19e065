# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""MPT: ALiBi, no biases, and queries, keys and values that may be clipped."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxkv.checkpoints.families.base import Family
from jaxkv.checkpoints.families.gguf_config import gguf_rules, plain_config
from jaxkv.checkpoints.families.names import BY_KIND, rules
from jaxkv.checkpoints.table import Rule, Tensors
from jaxkv.core.fields import Fields
from jaxkv.core.scoring import alibi_slopes
from jaxkv.models.config import ModelConfig

_USUAL = {
    "d_model": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers",
}  # fmt: skip


def _config(fields: Fields) -> ModelConfig:
    fields = _by_one_name(fields)
    hidden = fields.integer("d_model", high=2**20)
    heads = fields.integer("n_heads", high=2**16)
    if hidden % heads:
        raise fields.refuse("d_model", f"a multiple of the number of heads {heads}")
    attention = fields.within("attn_config")
    # transformers knows only these values, and silently takes others for them.
    for holder, key, only in (
        (attention, "alibi", True), (attention, "qk_ln", False), (attention, "prefix_lm", False),
        (attention, "attn_type", "multihead_attention"), (fields, "no_bias", True),
        (fields, "expansion_ratio", 4), (fields, "logit_scale", None),
    ):  # fmt: skip
        if holder.has(key) and holder.raw(key) != only:
            raise holder.refuse(key, str(only).lower())
    head_dim, default = hidden // heads, 1 / math.sqrt(hidden / heads)
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_layers=fields.integer("n_layers", high=4096),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        rope=None,
        max_positions=fields.integer("max_seq_len", high=2**31 - 1),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        alibi=_slopes(attention, "alibi_bias_max", heads),
        query_scale=attention.number("softmax_scale", default) / default,
        clip_qkv=_clip(attention, "clip_qkv"),
        layer_norm=True,
        gated=False,
        activation="gelu",
        family="mpt",
    )


def _by_one_name(fields: Fields) -> Fields:
    """transformers knows these three by its usual names too, and takes whichever it reads last."""
    known = fields.values()
    for name, usual in _USUAL.items():
        if usual in known and known.setdefault(name, known[usual]) != known[usual]:
            raise fields.refuse(usual, f"as {name}, which is {known[name]!r:.40}")
    return Fields(known, fields.where)


def _slopes(fields: Fields, key: str, heads: int) -> tuple[float, ...]:
    return alibi_slopes(heads, fields.integer(key, 8, high=64))


def _clip(fields: Fields, key: str) -> float | None:
    value = fields.number(key, 0.0, above=-1e-9)
    return value if value > 0 else None


def _json(config: ModelConfig) -> dict[str, Any]:
    attention = {
        "alibi": True,
        "alibi_bias_max": round(-math.log2(min(config.alibi))),
        "clip_qkv": config.clip_qkv,
        "softmax_scale": None,
    }
    if config.query_scale != 1:
        attention["softmax_scale"] = config.query_scale / math.sqrt(config.head_dim)
    return {
        "architectures": ["MptForCausalLM"],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "expansion_ratio": 4,
        "max_seq_len": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "no_bias": True,
        "attn_config": attention,
    }


def _gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    config = plain_config(fields, tensors, "mpt")
    return dataclasses.replace(
        config,
        alibi=_slopes(fields, "mpt.attention.max_alibi_bias", config.num_heads),
        clip_qkv=_clip(fields, "mpt.attention.clamp_kqv"),
        family="mpt",
    )


_AT = "transformer.blocks.#."
_NAMES = {
    "embed": "transformer.wte.weight",
    "layers.#.attn_norm": f"{_AT}norm_1.weight",
    "layers.#.wo": f"{_AT}attn.out_proj.weight",
    "layers.#.mlp_norm": f"{_AT}norm_2.weight",
    "layers.#.w_up": f"{_AT}ffn.up_proj.weight",
    "layers.#.w_down": f"{_AT}ffn.down_proj.weight",
    "final_norm": "transformer.norm_f.weight",
    "lm_head": "lm_head.weight",
}

FAMILY = Family(
    hf_types=("mpt",),
    hf_config=_config,
    hf_json=_json,
    hf_rules=(*rules(_NAMES), Rule(f"{_AT}attn.Wqkv.weight", "layers.#.wqkv", BY_KIND)),
    gguf_types=("mpt",),
    gguf_config=_gguf,
    gguf_rules=gguf_rules(),
)
