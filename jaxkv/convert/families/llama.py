# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Llama 1 to 3, SmolLM and everything else that publishes itself as `llama`; what is near to it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jaxkv.convert.families.base import Family
from jaxkv.convert.families.hf_rope import rope_from_hf
from jaxkv.convert.fields import Fields
from jaxkv.convert.table import FLAT, KEEP, LINEAR, Layout, Rule, Shape, Share, Tensors
from jaxkv.errors import InputError
from jaxkv.models.config import ModelConfig
from jaxkv.rope import LinearScaling, Rope, RopeScaling, YarnScaling

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
    if fields.text("hidden_act", "silu") != "silu":
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
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        mlp_bias=fields.flag("mlp_bias", False),
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
        rms_norm_eps=_shortest(fields.number(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)),
        tie_embeddings="output.weight" not in present,
        qkv_bias="blk.0.attn_q.bias" in present,
        out_bias="blk.0.attn_output.bias" in present,
        mlp_bias="blk.0.ffn_gate.bias" in present,
        qk_norm="blk.0.attn_q_norm.weight" in present,
    )


def _head_dim(fields: Fields, key: str, width_key: str, hidden: int, heads: int) -> int:
    if not fields.has(key) and hidden % heads:
        raise fields.refuse(width_key, f"a multiple of the number of heads {heads}")
    return fields.integer(key, hidden // heads, high=2**16)


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-5, where the header holds 9.9999997e-6."""
    return float(str(np.float32(value)))


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
        return LinearScaling(_shortest(fields.number(f"{arch}.rope.scaling.factor", old)))
    if kind != "yarn":
        raise fields.refuse(f"{arch}.rope.scaling.type", "none, linear or yarn")
    factor = fields.number(f"{arch}.rope.scaling.factor")
    context = fields.integer(f"{arch}.context_length", high=2**31 - 1)
    original = fields.integer(
        f"{arch}.rope.scaling.original_context_length", context, high=2**31 - 1
    )
    paper = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return YarnScaling(
        factor=_shortest(factor),
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


def _unpaired(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Rows of heads with rotary pairs side by side (2i, 2i+1) -> with halves (i, i + R/2).

    llama.cpp rotates neighbours, so its files hold the rows of q and k in that order.
    """
    rotary = config.rope.rotary_dim
    order = np.concatenate([np.arange(0, rotary, 2), np.arange(1, rotary, 2)])
    order = np.concatenate([order, np.arange(rotary, config.head_dim)])
    return x.reshape(-1, config.head_dim, *x.shape[1:])[:, order].reshape(x.shape)


def _paired(layout: Layout) -> Layout:
    def arrange(x: np.ndarray, shape: Shape, config: ModelConfig) -> np.ndarray:
        return layout.arrange(_unpaired(x, config), shape, config)

    return Layout(layout.stored, arrange)


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


def _rules(names: dict[str, str], linear: Layout, flat: Layout) -> tuple[Rule, ...]:
    """A table: `linear` and `flat` are the layouts of q's and k's weight and bias."""
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
        "wo": ("wo", LINEAR, None),
        "w_down": ("w_down", LINEAR, None),
    }
    rules = []
    for ours, theirs in names.items():
        prefix, _, name = ours.rpartition("#.")
        place, layout, share = parts.get(name, (name, KEEP, None))
        rules.append(Rule(theirs, f"{prefix}#.{place}" if prefix else ours, layout, share))
    return tuple(rules)


_HF_NAMES = {
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
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
}

_GGUF_NAMES = {
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
    "final_norm": "output_norm.weight",
    "lm_head": "output.weight",
}

HF_RULES = _rules(_HF_NAMES, LINEAR, FLAT)
GGUF_RULES = _rules(_GGUF_NAMES, LINEAR, FLAT)  # of a file whose q and k are as Hugging Face's

FAMILY = Family(
    hf_types=("llama",),
    gguf_types=("llama",),
    hf_config=hf_config,
    gguf_config=gguf_config,
    hf_rules=HF_RULES,
    gguf_rules=_rules(_GGUF_NAMES, _paired(LINEAR), _paired(FLAT)),
    hf_ignored=(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
    gguf_ignored=(r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd\.weight"),
)
