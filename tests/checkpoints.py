# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Small Llamas in the formats that others publish in, for the tests of `jaxkv.checkpoints`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from jaxkv.checkpoints import toy

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
WIDE = {**CONFIG, "hidden_size": 256, "intermediate_size": 256}  # whole blocks of 256 values


def weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors under Hugging Face's names, float32."""
    rng = np.random.default_rng(seed)
    d, f = config["hidden_size"], config["intermediate_size"]
    h = config.get("head_dim", d // config["num_attention_heads"])
    q, k = config["num_attention_heads"] * h, config["num_key_value_heads"] * h
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], d)}
    for i in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (d,),
            "self_attn.q_proj.weight": (q, d),
            "self_attn.k_proj.weight": (k, d),
            "self_attn.v_proj.weight": (k, d),
            "self_attn.o_proj.weight": (d, q),
            "post_attention_layernorm.weight": (d,),
            "mlp.gate_proj.weight": (f, d),
            "mlp.up_proj.weight": (f, d),
            "mlp.down_proj.weight": (d, f),
        }
        for part, flag in (("self_attn", "attention_bias"), ("mlp", "mlp_bias")):
            if config.get(flag):
                maps = [n for n in layer if n.startswith(part)]
                layer |= {n.replace(".weight", ".bias"): layer[n][:1] for n in maps}
        if config["model_type"] == "qwen2":
            layer |= {f"self_attn.{x}_proj.bias": (m,) for x, m in (("q", q), ("k", k), ("v", k))}
        if config["model_type"] == "qwen3":
            layer |= {f"self_attn.{x}_norm.weight": (h,) for x in "qk"}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def write_hf(
    folder: Path,
    config: Mapping[str, Any] = CONFIG,
    tensors: Mapping[str, np.ndarray] | None = None,
    shards: int = 1,
) -> Path:
    """Writes a folder as transformers' `save_pretrained` lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    toy.tokenizer().save(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = dict(weights(config) if tensors is None else tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    places = {n: f"model-{i % shards:05}.safetensors" for i, n in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({n: tensors[n] for n in tensors if places[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def to_gguf(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], unpair: bool = False
) -> dict[str, np.ndarray]:
    """Renames tensors as llama.cpp does; a Llama's rotary pairs go side by side, or back apart."""
    renamed = {}
    for name, x in tensors.items():
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        for part, key in heads.items():
            if part in name and config["model_type"] == "llama":
                n = config[key]
                two = (n, -1, 2, *x.shape[1:]) if unpair else (n, 2, -1, *x.shape[1:])
                x = x.reshape(two).swapaxes(1, 2).reshape(x.shape)
        for theirs, ours in _GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name] = np.ascontiguousarray(x)
    return renamed


def write_gguf(
    path: Path,
    config: Mapping[str, Any] = CONFIG,
    tensors: Mapping[str, np.ndarray] | None = None,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    extra: Mapping[str, Any] | None = None,
    raw: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Writes a GGUF file of the same model.

    Args:
      path: where.
      config: as in config.json.
      tensors: under Hugging Face's names; matrices are quantised to `kind`.
      kind: of the matrices; vectors stay float32.
      extra: further pairs of the header, or other values for those that are written anyway.
      raw: already quantised matrices by GGUF name, in place of the quantised `tensors`.
    """
    arch = config["model_type"]
    writer = gguf.GGUFWriter(path, arch)
    d, n = config["hidden_size"], config["num_attention_heads"]
    pairs = {
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": d,
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": n,
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.rope.freq_base": config["rope_theta"],
        **(
            {
                f"{arch}.attention.key_length": config["head_dim"],
                f"{arch}.attention.value_length": config["head_dim"],
            }
            if "head_dim" in config
            else {}
        ),
        **tokenizer_pairs(),
        **(extra or {}),
    }
    for key, value in pairs.items():
        add(writer, key, value)
    renamed = to_gguf(config, weights(config) if tensors is None else tensors)
    for name, x in renamed.items():
        if raw is not None and name in raw:
            writer.add_tensor(name, raw[name], raw_dtype=kind)
        elif x.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, x)
        else:
            writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def tokenizer_pairs() -> dict[str, Any]:
    tokenizer = toy.tokenizer()
    model = json.loads(tokenizer.backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t.startswith("<|") else 1 for t in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
