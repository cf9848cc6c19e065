# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers with the same weights. Imports torch, so only for where that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def smollm2(gguf: Path) -> Any:
    """The default model, de-quantised by transformers itself, in float32."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # As loaded it is marked as quantised, and may be neither cast nor saved: a plain copy may.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = transformers.LlamaForCausalLM(config)
    plain.load_state_dict({name: value.float() for name, value in loaded.state_dict().items()})
    plain.tie_weights()
    return plain.float().eval()


def from_gguf(path: Path) -> Any:
    """A GGUF file, de-quantised by transformers itself, in float32."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return loaded.eval()


def folder(path: Path) -> Any:
    """A folder's model in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any, ids: Any) -> np.ndarray:
    """[B, T] -> float32 [B, T, V]."""
    return model(torch.tensor(np.asarray(ids))).logits.float().numpy()


@torch.no_grad()
def hidden_states(model: Any, ids: Any) -> list[np.ndarray]:
    """[B, T] -> the embeddings, and the residual stream after every layer; the last one normed."""
    out = model(torch.tensor(np.asarray(ids)), output_hidden_states=True)
    return [x.float().numpy() for x in out.hidden_states]


@torch.no_grad()
def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The next `count` greedy tokens, end-of-sequence included as any other."""
    prompt = torch.tensor([ids])
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return out[0, len(ids) :].tolist()
