# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""GGUF headers of the families with LayerNorms and plain MLPs: GPT-NeoX, Falcon and MPT."""

from __future__ import annotations

from collections.abc import Mapping

from jaxkv.checkpoints.families.names import BY_KIND, BY_KIND_FLAT, rules
from jaxkv.checkpoints.table import Rule, Tensors
from jaxkv.core.fields import Fields, shortest
from jaxkv.models.config import ModelConfig

NAMES = {
    "embed": "token_embd.weight",
    **{
        f"layers.#.{ours}{end}": f"blk.#.{theirs}.{kind}"
        for ours, theirs in (("attn_norm", "attn_norm"), ("mlp_norm", "ffn_norm"))
        for end, kind in (("", "weight"), ("_bias", "bias"))
    },
    **{
        f"layers.#.{letter}{ours}": f"blk.#.{theirs}.{kind}"
        for ours, theirs in (("o", "attn_output"), ("_up", "ffn_up"), ("_down", "ffn_down"))
        for letter, kind in (("w", "weight"), ("b", "bias"))
    },
    "final_norm": "output_norm.weight",
    "final_norm_bias": "output_norm.bias",
    "lm_head": "output.weight",
}


def gguf_rules(names: Mapping[str, str] = NAMES) -> tuple[Rule, ...]:
    """The table of a file that holds all q before all k before all v."""
    return (
        *rules(names),
        Rule("blk.#.attn_qkv.weight", "layers.#.wqkv", BY_KIND),
        Rule("blk.#.attn_qkv.bias", "layers.#.bqkv", BY_KIND_FLAT),
    )


def plain_config(fields: Fields, tensors: Tensors, arch: str) -> ModelConfig:
    """What a header says of any of them, with no positions yet.

    Biases and tying are seen from the tensors.
    """
    hidden = fields.integer(f"{arch}.embedding_length", high=2**20)
    heads = fields.integer(f"{arch}.attention.head_count", high=2**16)
    if hidden % heads:
        raise fields.refuse(
            f"{arch}.embedding_length", f"a multiple of the number of heads {heads}"
        )
    present = tensors.shapes
    vocab = (present.get("token_embd.weight") or (0,))[0]
    return ModelConfig(
        vocab_size=fields.integer(f"{arch}.vocab_size", vocab),
        hidden_size=hidden,
        intermediate_size=fields.integer(f"{arch}.feed_forward_length"),
        num_layers=fields.integer(f"{arch}.block_count", high=4096),
        num_heads=heads,
        num_kv_heads=fields.integer(f"{arch}.attention.head_count_kv", heads, high=2**16),
        head_dim=hidden // heads,
        rope=None,
        max_positions=fields.integer(f"{arch}.context_length", high=2**31 - 1),
        norm_eps=shortest(fields.number(f"{arch}.attention.layer_norm_epsilon", 1e-5)),
        tie_embeddings="output.weight" not in present,
        qkv_bias="blk.0.attn_qkv.bias" in present,
        out_bias="blk.0.attn_output.bias" in present,
        mlp_bias="blk.0.ffn_up.bias" in present,
        layer_norm=True,
        norm_bias="output_norm.bias" in present,
        gated=False,
        activation="gelu",
    )
