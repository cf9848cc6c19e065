# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Llama 1 to 3, SmolLM and everything else that publishes itself as `llama`; what is near to it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jaxkv.checkpoints.families.base import Family
from jaxkv.checkpoints.families.hf_rope import rope_from_hf, rope_to_hf
from jaxkv.checkpoints.families.names import GGUF_NAMES, HF_NAMES, rules
from jaxkv.checkpoints.table import FLAT, LINEAR, Layout, Shape, Tensors
from jaxkv.core.errors import InputError
from jaxkv.core.fields import Fields, shortest
from jaxkv.core.rope import LinearScaling, Rope, RopeScaling, YarnScaling
from jaxkv.models.config import ModelConfig

_ROPE_FREQS = "rope_freqs.weight"


@dataclasses.dataclass(frozen=True)
class ExplicitScaling:
    """One divisor per frequency, as GGUF files of Llama 3.1 carry them."""

    factors: tuple[float, ...]

    def apply(self, freqs: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """float64 [R/2] -> float64 [R/2], and 1."""
        return freqs / np.asarray(self.factors, np.float64), 1.0


def hf_config(fields: Fields) -> ModelConfig:
    """config.json of a Llama -> our configuration."""
    if fields.raw("sliding_window") is not None:
        raise fields.refuse("sliding_window", "null: native windows are not supported")
    bias = fields.flag("attention_bias", False)
    # Hugging Face's Llama has it on all four projections.
    return dataclasses.replace(hf_shapes(fields), qkv_bias=bias, out_bias=bias)


def hf_shapes(fields: Fields) -> ModelConfig:
    """What config.json says of any model of this kind, which has no biases in its attention."""
    hidden = fields.integer("hidden_size", high=2**20)
    heads = fields.integer("num_attention_heads", high=2**16)
    head_dim = _head_dim(fields, "head_dim", "hidden_size", hidden, heads)
    max_positions = fields.integer("max_position_embeddings", high=2**31 - 1)
    if fields.text("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.refuse("hidden_act", "silu")
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers", high=4096),
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads, high=2**16),
        head_dim=head_dim,
        rope=rope_from_hf(fields, head_dim, max_positions),
        max_positions=max_positions,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        mlp_bias=fields.flag("mlp_bias", False),
        family=fields.text("model_type", "llama"),
    )


def gguf_config(fields: Fields, tensors: Tensors, arch: str = "llama") -> ModelConfig:
    """A GGUF header -> our configuration; biases, norms and tying are seen from the tensors."""
    hidden = fields.integer(f"{arch}.embedding_length", high=2**20)
    heads = fields.integer(f"{arch}.attention.head_count", high=2**16)
    if fields.integer(f"{arch}.expert_count", 0, low=0) > 0:
        raise fields.refuse(f"{arch}.expert_count", "0: mixtures of experts are not supported")
    keys = (f"{arch}.attention.key_length", f"{arch}.embedding_length")
    head_dim = _head_dim(fields, *keys, hidden, heads)
    if fields.integer(f"{arch}.attention.value_length", head_dim) != head_dim:
        raise fields.refuse(f"{arch}.attention.value_length", f"the key length {head_dim}")
    rotary = fields.integer(f"{arch}.rope.dimension_count", head_dim, high=head_dim)
    present = tensors.shapes
    vocab = (present.get("token_embd.weight") or (0,))[0]
    return ModelConfig(
        vocab_size=fields.integer(f"{arch}.vocab_size", vocab),
        hidden_size=hidden,
        intermediate_size=fields.integer(f"{arch}.feed_forward_length"),
        num_layers=fields.integer(f"{arch}.block_count", high=4096),
        num_heads=heads,
        num_kv_heads=fields.integer(f"{arch}.attention.head_count_kv", heads, high=2**16),
        head_dim=head_dim,
        rope=Rope(
            rotary_dim=rotary,
            theta=fields.number(f"{arch}.rope.freq_base", 10000.0, above=1),
            scaling=_gguf_scaling(fields, tensors, rotary, arch),
        ),
        max_positions=fields.integer(f"{arch}.context_length", high=2**31 - 1),
        norm_eps=shortest(fields.number(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)),
        tie_embeddings="output.weight" not in present,
        qkv_bias="blk.0.attn_q.bias" in present,
        out_bias="blk.0.attn_output.bias" in present,
        mlp_bias="blk.0.ffn_gate.bias" in present,
        qk_norm="blk.0.attn_q_norm.weight" in present,
        windows=_gguf_windows(fields, arch),
        family=arch,
    )


def _gguf_windows(fields: Fields, arch: str) -> tuple[int, ...]:
    window = fields.integer(f"{arch}.attention.sliding_window", 0, low=0, high=2**31 - 1)
    if window and arch not in ("phi3", "gemma2", "gemma3"):
        raise fields.refuse(f"{arch}.attention.sliding_window", "absent, in this family")
    whole = fields.integer(f"{arch}.context_length", high=2**31 - 1)
    count = fields.integer(f"{arch}.block_count", high=4096)
    return (window - 1,) * count if 1 < window < whole else ()


def _head_dim(fields: Fields, key: str, width_key: str, hidden: int, heads: int) -> int:
    if not fields.has(key) and hidden % heads:
        raise fields.refuse(width_key, f"a multiple of the number of heads {heads}")
    return fields.integer(key, hidden // heads, high=2**16)


def _gguf_scaling(fields: Fields, tensors: Tensors, rotary: int, arch: str) -> RopeScaling | None:
    kind = fields.text(f"{arch}.rope.scaling.type", "none")
    if _ROPE_FREQS in tensors.shapes:
        if kind not in ("none", "linear") or fields.has(f"{arch}.rope.scaling.factor"):
            raise fields.refuse(f"{arch}.rope.scaling.type", f"none beside a tensor {_ROPE_FREQS}")
        return _explicit(tensors, rotary)
    if kind == "none" and not fields.has(f"{arch}.rope.scale_linear"):
        return None
    if kind in ("none", "linear"):  # scale_linear is the older spelling
        old = fields.number(f"{arch}.rope.scale_linear", 1.0)
        return LinearScaling(shortest(fields.number(f"{arch}.rope.scaling.factor", old)))
    if kind != "yarn":
        raise fields.refuse(f"{arch}.rope.scaling.type", "none, linear or yarn")
    factor = fields.number(f"{arch}.rope.scaling.factor")
    context = fields.integer(f"{arch}.context_length", high=2**31 - 1)
    original = fields.integer(
        f"{arch}.rope.scaling.original_context_length", context, high=2**31 - 1
    )
    paper = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return YarnScaling(
        factor=shortest(factor),
        original_max_positions=original,
        beta_fast=fields.number(f"{arch}.rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number(f"{arch}.rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=paper * fields.number(f"{arch}.rope.scaling.attn_factor", 1.0),
    )


def _explicit(tensors: Tensors, rotary: int) -> ExplicitScaling:
    shape = tuple(tensors.shapes[_ROPE_FREQS])
    if shape != (rotary // 2,):
        raise InputError(
            f"tensor {_ROPE_FREQS!r} of {tensors.where} has shape {shape}; "
            f"it must be {(rotary // 2,)}"
        )
    factors = np.asarray(tensors.read(_ROPE_FREQS), np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise InputError(f"tensor {_ROPE_FREQS!r} of {tensors.where} holds a factor not above 0")
    return ExplicitScaling(tuple(factors.tolist()))


def hf_json(config: ModelConfig, architecture: str = "LlamaForCausalLM") -> dict[str, Any]:
    """Our configuration -> config.json of a Llama, or of what is near to it."""
    return {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.out_bias,
        "mlp_bias": config.mlp_bias,
        **rope_to_hf(config.rope),
    }


def _unpaired(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Rows of heads with rotary pairs side by side (2i, 2i+1) -> with halves (i, i + R/2).

    llama.cpp rotates neighbours, so its files hold the rows of q and k in that order.
    """
    rotary = config.rope.rotary_dim if config.rope else 0
    order = np.concatenate([np.arange(0, rotary, 2), np.arange(1, rotary, 2)])
    order = np.concatenate([order, np.arange(rotary, config.head_dim)])
    return x.reshape(-1, config.head_dim, *x.shape[1:])[:, order].reshape(x.shape)


def _paired(layout: Layout) -> Layout:
    def arrange(x: np.ndarray, shape: Shape, config: ModelConfig) -> np.ndarray:
        return layout.arrange(_unpaired(x, config), shape, config)

    return Layout(layout.stored, arrange)


HF_RULES = rules(HF_NAMES)
GGUF_RULES = rules(GGUF_NAMES)  # of a file whose q and k are as Hugging Face's

FAMILY = Family(
    hf_types=("llama",),
    hf_config=hf_config,
    hf_json=hf_json,
    hf_rules=HF_RULES,
    hf_ignored=(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
    gguf_types=("llama",),
    gguf_config=gguf_config,
    gguf_rules=rules(GGUF_NAMES, _paired(LINEAR), _paired(FLAT)),
    gguf_ignored=(r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd\.weight"),
)
