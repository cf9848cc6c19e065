# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Phi-3 and Phi-4: a Llama with projections stored together, and LongRoPE in the long ones."""

from __future__ import annotations

import dataclasses
import functools

from jaxkv.checkpoints.families.base import Family
from jaxkv.checkpoints.families.llama import gguf_config, hf_json, hf_shapes
from jaxkv.checkpoints.families.names import BY_KIND, GGUF_NAMES, HF_NAMES, rules
from jaxkv.checkpoints.families.windows import LOCAL, windows_from_hf, windows_to_hf
from jaxkv.checkpoints.table import LINEAR, Rule
from jaxkv.core.fields import Fields
from jaxkv.models.config import ModelConfig

_ORIGINAL = 4096  # tokens of the first context, where a file does not name it


def _config(fields: Fields) -> ModelConfig:
    known = {key: fields.raw(key) for key in fields.keys()}
    key = "original_max_position_embeddings"
    if not fields.has(key):
        known[key] = _ORIGINAL
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(known.get(name), dict) and known[name]:
            # transformers' class puts its own over what is said in there.
            known[name] = {**known[name], key: known[key]}
    config = hf_shapes(Fields(known, fields.where))
    kinds = [LOCAL] * config.num_layers
    windows = windows_from_hf(fields, kinds, None, config.max_positions)
    return dataclasses.replace(config, windows=windows)


def _json(config: ModelConfig) -> dict:
    window = {"sliding_window": windows_to_hf(config)["sliding_window"]}
    made = hf_json(config, "Phi3ForCausalLM") | window
    scaling = made.get("rope_scaling") or {}
    original = scaling.get("original_max_position_embeddings", config.max_positions)
    part = config.rope.rotary_dim / config.head_dim if config.rope else 1.0
    # Its default would lie beyond a small vocabulary.
    more = {"partial_rotary_factor": part, "pad_token_id": None}
    return made | more | {"original_max_position_embeddings": original}


def _fused(names: dict[str, str], qkv: str, gate_up: str) -> tuple[Rule, ...]:
    """The table of a Llama but for two tensors."""
    parts = ("q", "k", "v", "gate", "up")
    apart = {f"layers.#.{part}{end}" for part in parts for end in ("", ".bias")}
    return (
        *rules({ours: theirs for ours, theirs in names.items() if ours not in apart}),
        Rule(qkv, "layers.#.wqkv", BY_KIND),
        Rule(gate_up, "layers.#.w_gate_up", LINEAR),
    )


_AT = "model.layers.#."
FAMILY = Family(
    hf_types=("phi3",),
    hf_config=_config,
    hf_json=_json,
    hf_rules=_fused(HF_NAMES, f"{_AT}self_attn.qkv_proj.weight", f"{_AT}mlp.gate_up_proj.weight"),
    gguf_types=("phi3",),
    gguf_config=functools.partial(gguf_config, arch="phi3"),
    gguf_rules=_fused(GGUF_NAMES, "blk.#.attn_qkv.weight", "blk.#.ffn_up.weight"),
)
