# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What is compared with transformers: the models, the texts and the prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from family_models import TINY
from safetensors.numpy import save_file

from jaxkv.checkpoints import toy

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
OPENINGS = (
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "The three primary colours are",
    "Water boils at",
)
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


def long_text() -> str:
    """A passage of English of more than 600 tokens."""
    from pydoc_data.topics import topics

    return topics["numeric-types"]


def tiny_tokens() -> np.ndarray:
    """int [2, 200]."""
    return np.random.default_rng(3).integers(0, TINY["vocab_size"], (2, 200))


FAMILIES: dict[str, dict[str, Any]] = {  # beside TINY: odd sizes, and G of 1, 3 and 8
    "mistral": {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None,
        "num_attention_heads": 8, "num_key_value_heads": 1,
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": None,
        "head_dim": None, "num_attention_heads": 8, "num_key_value_heads": 2, "pad_token_id": 0,
        "partial_rotary_factor": 0.5,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False,
        "sliding_window": 128, "head_dim": None, "tie_word_embeddings": True,
        "num_key_value_heads": 4,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "use_sliding_window": False,
        "head_dim": 24, "num_attention_heads": 3, "num_key_value_heads": 1,
    },
}  # fmt: skip


def write_tiny(folder: Path, scaling: str, bias: bool = False, family: str = "llama") -> Path:
    """A random model as a Hugging Face folder."""
    config = TINY | FAMILIES.get(family, {})
    if config["head_dim"] is None:
        del config["head_dim"]
    if SCALINGS[scaling]:
        config["rope_scaling"] = SCALINGS[scaling]
    if bias:
        config |= {"attention_bias": True, "mlp_bias": True}
    rng = np.random.default_rng(11)
    d, f = config["hidden_size"], config["intermediate_size"]
    h = config.get("head_dim", d // config["num_attention_heads"])
    n, k, v = (config[x] for x in ("num_attention_heads", "num_key_value_heads", "vocab_size"))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (v, d),
        "model.norm.weight": (d,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
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
        if family == "phi3":
            for name, parts in (("self_attn.qkv", "q k v"), ("mlp.gate_up", "gate up")):
                module = name.split(".")[0]
                rows = [shapes.pop(f"{at}{module}.{x}_proj.weight")[0] for x in parts.split()]
                shapes[f"{at}{name}_proj.weight"] = (sum(rows), d)
        if family == "qwen2":
            heads = {"q": n, "k": k, "v": k}
            shapes |= {f"{at}self_attn.{x}_proj.bias": (heads[x] * h,) for x in heads}
        if family == "qwen3":
            shapes |= {f"{at}self_attn.{x}_norm.weight": (h,) for x in "qk"}
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
