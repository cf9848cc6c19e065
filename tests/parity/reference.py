# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What is compared with transformers: the models, the texts and the prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxkv.convert import toy

GOLDEN = Path(__file__).parent / "golden.npz"
COLUMNS = np.arange(0, 49152, 997)  # of the vocabulary, in the golden file
POSITIONS = np.arange(7, 480, 31)
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three animals that can fly.",
    "Explain in simple words why leaves are green.",
    "Tell me a short story about a lost key.",
)
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
SCALINGS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}


def texts(encode: Any) -> list[list[int]]:
    """Token ids of five passages of English, about 500 tokens each."""
    from pydoc_data.topics import topics

    names = ("exceptions", "numeric-types", "operator-summary", "with", "import")
    ids = [encode(topics[name])[:500] for name in names]
    return [row for row in ids if len(row) > 400][:5]


def tiny_tokens() -> np.ndarray:
    """int [2, 200]."""
    return np.random.default_rng(3).integers(0, TINY["vocab_size"], (2, 200))


def write_tiny(folder: Path, scaling: str, bias: bool = False) -> Path:
    """A random Llama as a Hugging Face folder."""
    config = dict(TINY)
    if SCALINGS[scaling]:
        config["rope_scaling"] = SCALINGS[scaling]
    if bias:
        config |= {"attention_bias": True, "mlp_bias": True}
    rng = np.random.default_rng(11)
    d, f, h = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    n, k, v = (config[x] for x in ("num_attention_heads", "num_key_value_heads", "vocab_size"))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (v, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (v, d),
    }
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        linear = {
            "self_attn.q_proj": (n * h, d),
            "self_attn.k_proj": (k * h, d),
            "self_attn.v_proj": (k * h, d),
            "self_attn.o_proj": (d, n * h),
            "mlp.gate_proj": (f, d),
            "mlp.up_proj": (f, d),
            "mlp.down_proj": (d, f),
        }
        shapes |= {f"{at}{name}.weight": shape for name, shape in linear.items()}
        if bias:
            shapes |= {f"{at}{name}.bias": shape[:1] for name, shape in linear.items()}
        shapes |= {f"{at}{x}_layernorm.weight": (d,) for x in ("input", "post_attention")}
    tensors = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape).astype(np.float32)
        tensors[name] = 1 + noise * 0.1 if "norm" in name else noise * shape[-1] ** -0.5 * 1.5
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    toy.tokenizer().save(folder)
    return folder
