# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""From names to tables of rules: where q, k, v, gate and up lie in the arrays that they share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxkv.checkpoints.table import FLAT, KEEP, LINEAR, Layout, Rule, Shape, Share
from jaxkv.models.config import ModelConfig


def _by_kv_head(x: np.ndarray, shape: Shape, config: ModelConfig) -> np.ndarray:
    """Rows of all q, all k and all v, [(N + 2 K) H, D] -> [D, K (G + 2) H]."""
    heads, group, h = config.num_kv_heads, config.group_size, config.head_dim
    q, k, v = np.split(x, [config.num_heads * h, (config.num_heads + heads) * h])
    parts = [part.reshape(heads, count, h, -1) for part, count in ((q, group), (k, 1), (v, 1))]
    return np.concatenate(parts, axis=1).reshape(shape[::-1]).T


def _by_kind(x: np.ndarray, shape: Shape, config: ModelConfig) -> np.ndarray:
    """The inverse of `_by_kv_head`."""
    each = x.T.reshape(config.num_kv_heads, config.group_size + 2, config.head_dim, -1)
    parts = (each[:, :-2], each[:, -2], each[:, -1])
    return np.concatenate([part.reshape(-1, shape[1]) for part in parts])


BY_KIND = Layout(LINEAR.stored, _by_kv_head, _by_kind)  # wqkv, where all q come before all k
BY_KIND_FLAT = Layout(  # and its bias
    lambda shape: shape,
    lambda x, shape, config: _by_kv_head(x[:, None], (1, *shape), config)[0],
    lambda x, shape, config: _by_kind(x[None], (*shape, 1), config)[:, 0],
)


def _group(config: ModelConfig) -> int:
    return config.group_size


def _one(config: ModelConfig) -> int:
    del config
    return 1


def _head_biases(config: ModelConfig) -> Shape:
    return config.num_kv_heads, config.group_size + 2, config.head_dim


def _heads(config: ModelConfig) -> Shape:
    return config.hidden_size, *_head_biases(config)


def _gate_biases(config: ModelConfig) -> Shape:
    return 2, config.intermediate_size


def _gates(config: ModelConfig) -> Shape:
    return config.hidden_size, *_gate_biases(config)


def rules(
    names: Mapping[str, str], linear: Layout = LINEAR, flat: Layout = FLAT, norm: Layout = KEEP
) -> tuple[Rule, ...]:
    """A table from our names, with the parts of shared arrays named one by one.

    Args:
      names: ours -> theirs.
      linear: how the weights of q and k lie.
      flat: how their biases lie.
      norm: how the weights of norms lie.
    """
    parts = {
        "q": ("wqkv", linear, Share(2, _group, _heads)),
        "k": ("wqkv", linear, Share(2, _one, _heads)),
        "v": ("wqkv", LINEAR, Share(2, _one, _heads)),
        "q.bias": ("bqkv", flat, Share(1, _group, _head_biases)),
        "k.bias": ("bqkv", flat, Share(1, _one, _head_biases)),
        "v.bias": ("bqkv", FLAT, Share(1, _one, _head_biases)),
        "gate": ("w_gate_up", LINEAR, Share(1, _one, _gates)),
        "up": ("w_gate_up", LINEAR, Share(1, _one, _gates)),
        "gate.bias": ("b_gate_up", FLAT, Share(0, _one, _gate_biases)),
        "up.bias": ("b_gate_up", FLAT, Share(0, _one, _gate_biases)),
    }
    table = []
    for ours, theirs in names.items():
        prefix, _, name = ours.rpartition("#.")
        plain = LINEAR if name.startswith("w") else norm if name.endswith("_norm") else KEEP
        place, layout, share = parts.get(name, (name, plain, None))
        table.append(Rule(theirs, f"{prefix}#.{place}" if prefix else ours, layout, share))
    return tuple(table)


# As Llama and what is near to it calls them; a family takes those that its configuration has.
HF_NAMES = {
    "embed": "model.embed_tokens.weight",
    "layers.#.attn_norm": "model.layers.#.input_layernorm.weight",
    "layers.#.q": "model.layers.#.self_attn.q_proj.weight",
    "layers.#.k": "model.layers.#.self_attn.k_proj.weight",
    "layers.#.v": "model.layers.#.self_attn.v_proj.weight",
    "layers.#.wo": "model.layers.#.self_attn.o_proj.weight",
    "layers.#.q_norm": "model.layers.#.self_attn.q_norm.weight",
    "layers.#.k_norm": "model.layers.#.self_attn.k_norm.weight",
    "layers.#.q.bias": "model.layers.#.self_attn.q_proj.bias",
    "layers.#.k.bias": "model.layers.#.self_attn.k_proj.bias",
    "layers.#.v.bias": "model.layers.#.self_attn.v_proj.bias",
    "layers.#.bo": "model.layers.#.self_attn.o_proj.bias",
    "layers.#.mlp_norm": "model.layers.#.post_attention_layernorm.weight",
    "layers.#.gate": "model.layers.#.mlp.gate_proj.weight",
    "layers.#.up": "model.layers.#.mlp.up_proj.weight",
    "layers.#.w_down": "model.layers.#.mlp.down_proj.weight",
    "layers.#.gate.bias": "model.layers.#.mlp.gate_proj.bias",
    "layers.#.up.bias": "model.layers.#.mlp.up_proj.bias",
    "layers.#.b_down": "model.layers.#.mlp.down_proj.bias",
    "layers.#.attn_post_norm": "model.layers.#.post_attention_layernorm.weight",
    "layers.#.mlp_post_norm": "model.layers.#.post_feedforward_layernorm.weight",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
}

GGUF_NAMES = {
    "embed": "token_embd.weight",
    "layers.#.attn_norm": "blk.#.attn_norm.weight",
    "layers.#.q": "blk.#.attn_q.weight",
    "layers.#.k": "blk.#.attn_k.weight",
    "layers.#.v": "blk.#.attn_v.weight",
    "layers.#.wo": "blk.#.attn_output.weight",
    "layers.#.q_norm": "blk.#.attn_q_norm.weight",
    "layers.#.k_norm": "blk.#.attn_k_norm.weight",
    "layers.#.q.bias": "blk.#.attn_q.bias",
    "layers.#.k.bias": "blk.#.attn_k.bias",
    "layers.#.v.bias": "blk.#.attn_v.bias",
    "layers.#.bo": "blk.#.attn_output.bias",
    "layers.#.mlp_norm": "blk.#.ffn_norm.weight",
    "layers.#.gate": "blk.#.ffn_gate.weight",
    "layers.#.up": "blk.#.ffn_up.weight",
    "layers.#.w_down": "blk.#.ffn_down.weight",
    "layers.#.gate.bias": "blk.#.ffn_gate.bias",
    "layers.#.up.bias": "blk.#.ffn_up.bias",
    "layers.#.b_down": "blk.#.ffn_down.bias",
    "layers.#.attn_post_norm": "blk.#.post_attention_norm.weight",
    "layers.#.mlp_post_norm": "blk.#.post_ffw_norm.weight",
    "final_norm": "output_norm.weight",
    "lm_head": "output.weight",
}
