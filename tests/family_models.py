# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of every family, as Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxkv.checkpoints import toy
from jaxkv.checkpoints.export import export_hf
from jaxkv.checkpoints.families import by_hf_type
from jaxkv.checkpoints.model import Model
from jaxkv.checkpoints.table import flat_shapes, tree
from jaxkv.core.fields import Fields

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Beside or in place of what is in TINY: odd sizes; None takes a field away.
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral-window": {
        "model_type": "mistral", "num_attention_heads": 8, "num_key_value_heads": 1,
        "head_dim": 8, "sliding_window": 24,
    },
    "ministral": {
        "model_type": "ministral", "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen2-window": {
        "model_type": "qwen2", "num_key_value_heads": 4, "use_sliding_window": True,
        "sliding_window": 20, "max_window_layers": 1, "head_dim": None,
    },
    "phi3": {
        "model_type": "phi3", "num_attention_heads": 8, "num_key_value_heads": 2,
        "pad_token_id": 0, "head_dim": None, "rope_theta": 10000.0,
    },
    "phi3-long": {
        "model_type": "phi3", "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48,
        "head_dim": None, "pad_token_id": 0, "sliding_window": 4096,
        "original_max_position_embeddings": 32, "max_position_embeddings": 256,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0] * 8,
            "long_factor": [1.0, 1.1, 1.5, 2.0, 3.0, 5.0, 9.0, 16.0],
        },
    },
    "gemma2": {
        "model_type": "gemma2", "head_dim": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
        "tie_word_embeddings": True, "sliding_window": 16, "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "num_hidden_layers": 4,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3": {
        "model_type": "gemma3_text", "head_dim": 24, "num_attention_heads": 4,
        "num_key_value_heads": 1, "tie_word_embeddings": True, "sliding_window": 12,
        "query_pre_attn_scalar": 24, "rope_local_base_freq": 10000.0, "num_hidden_layers": 4,
        "sliding_window_pattern": 3, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3-long-window": {  # as long as the trained context: it hides nothing, and still rotates
        "model_type": "gemma3_text", "head_dim": 24, "num_attention_heads": 4,
        "num_key_value_heads": 1, "tie_word_embeddings": True, "sliding_window": 256,
        "query_pre_attn_scalar": 24, "rope_local_base_freq": 10000.0, "num_hidden_layers": 4,
        "max_position_embeddings": 256, "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gpt_neox": {
        "model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000,
        "hidden_act": "gelu", "num_attention_heads": 3, "hidden_size": 48, "layer_norm_eps": 1e-5,
    },
    "gpt_neox-serial": {
        "model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 5000,
        "use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True,
        "hidden_act": "gelu_fast",
    },
    "falcon-one": {
        "model_type": "falcon", "head_dim": None, "num_attention_heads": 8,
        "tie_word_embeddings": True,
    },
    "falcon-groups": {
        "model_type": "falcon", "head_dim": None, "num_attention_heads": 8, "num_kv_heads": 2,
        "bias": True,
        "new_decoder_architecture": True, "ffn_hidden_size": 80, "tie_word_embeddings": False,
    },
    "falcon-one-norm": {
        "model_type": "falcon", "head_dim": None, "num_attention_heads": 8, "num_kv_heads": 2,
        "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1,
    },
    "falcon-alibi": {
        "model_type": "falcon", "head_dim": None, "num_attention_heads": 4, "alibi": True,
        "bias": True,
        "multi_query": False, "parallel_attn": False,
    },
    "mpt": {
        "model_type": "mpt", "hidden_size": None, "num_attention_heads": None,
        "num_hidden_layers": None, "head_dim": None,
        "d_model": 48, "n_heads": 6, "n_layers": 3, "max_seq_len": 256,
        "attn_config": {"clip_qkv": 1.5, "softmax_scale": 0.3}, "tie_word_embeddings": True,
    },
}  # fmt: skip


def write_family(folder: Path, name: str, **changes: Any) -> Path:
    """A random model of `FAMILIES` as a Hugging Face folder; what reads it need not be ours."""
    fields = TINY | FAMILIES[name] | changes
    fields = {key: value for key, value in fields.items() if value is not None}
    del fields["architectures"]
    config = by_hf_type(fields["model_type"]).hf_config(Fields(fields, name))
    rng, arrays = np.random.default_rng(11), {}
    for path, shape in flat_shapes(config).items():
        noise = rng.standard_normal(shape).astype(np.float32)
        if "norm" in path and not path.endswith("bias"):
            arrays[path] = noise * 0.1 + (not config.unit_offset)
        elif len(shape) == 1:
            arrays[path] = noise * 0.1
        else:
            # Embeddings and heads lie as [V, D], linear maps as [in, out].
            inputs = shape[1] if path in ("embed", "lm_head") else shape[0]
            arrays[path] = noise * inputs**-0.5 * 1.5
    model = Model(config, tree(config, arrays), toy.tokenizer(), name, name)
    export_hf(folder, model)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder
