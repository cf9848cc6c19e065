# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' own `generate` on torch, on the same weights: the comparison for one machine.

torch is no dependency; this module is imported when `--beside transformers` asks for it.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np

from jaxkv.convert.model import Model
from jaxkv.errors import InputError
from jaxkv.models.config import ModelConfig

QUIET = 0.5  # seconds after a run; OpenMP's threads spin for up to 0.2 s


class Peer:
    """A Llama in transformers that holds this model's parameters."""

    def __init__(self, model: Model):
        try:
            import torch  # pyright: ignore[reportMissingImports]
            import transformers
        except ImportError as error:
            raise InputError(
                f"--beside transformers needs torch ({error}); pip install torch==2.13.0"
            ) from None
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._torch = torch
        self._model: Any = transformers.LlamaForCausalLM(_config(transformers, model.config))
        state = {name: torch.from_numpy(value) for name, value in _tensors(model).items()}
        self._model.load_state_dict(state, strict=False)
        self._model.tie_weights()
        self._model.eval()
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.prefills: dict[int, list[float]] = {}
        self.steps: dict[int, list[float]] = {}

    def run(self, prompt: list[int], new_tokens: int) -> None:
        """One `generate`; notes the seconds of the prompt, and of each token after it."""
        torch, marks = self._torch, [time.perf_counter()]

        def mark(ids: Any, scores: Any, **kwargs: Any) -> Any:
            del scores, kwargs
            marks.append(time.perf_counter())
            return torch.zeros(ids.shape[0], dtype=torch.bool)

        ids = torch.tensor([prompt])
        with torch.no_grad():
            self._model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                eos_token_id=None, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                stopping_criteria=[mark],
            )  # fmt: skip
        # torch's threads wait for more work on a busy core; whoever is timed next needs it.
        time.sleep(QUIET)
        gaps = np.diff(marks)
        self.prefills.setdefault(len(prompt), []).append(float(gaps[0]))
        self.steps.setdefault(len(prompt), []).extend(float(gap) for gap in gaps[1:])

    def row(self, context: int) -> dict[str, float]:
        """Medians at this length of context."""
        row = {"prefill_s": statistics.median(self.prefills[context])}
        if self.steps[context]:
            row["step_ms"] = statistics.median(self.steps[context]) * 1e3
        return row


def _config(transformers: Any, config: ModelConfig) -> Any:
    if config.rope.scaling is not None or config.qkv_bias or config.mlp_bias or config.qk_norm:
        raise InputError("--beside transformers is for Llamas with plain RoPE and no biases")
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=config.rope.theta,
        tie_word_embeddings=config.tie_embeddings,
    )


def _tensors(model: Model) -> dict[str, np.ndarray]:
    """Our parameters under Hugging Face's names."""
    config, params = model.config, model.params
    width = config.hidden_size
    found = {
        "model.embed_tokens.weight": params["embed"],
        "model.norm.weight": params["final_norm"],
    }
    if not config.tie_embeddings:
        found["lm_head.weight"] = params["lm_head"]
    for i, layer in enumerate(params["layers"]):
        at, wqkv = f"model.layers.{i}.", np.asarray(layer["wqkv"], np.float32)
        wqkv = wqkv.reshape(width, config.num_kv_heads, config.group_size + 2, config.head_dim)
        parts = {"q": wqkv[:, :, :-2], "k": wqkv[:, :, -2], "v": wqkv[:, :, -1]}
        for name, part in parts.items():
            found[f"{at}self_attn.{name}_proj.weight"] = part.reshape(width, -1).T
        found[f"{at}self_attn.o_proj.weight"] = np.asarray(layer["wo"]).T
        gate_up = np.asarray(layer["w_gate_up"]).reshape(width, 2, -1)
        for j, name in enumerate(("gate", "up")):
            found[f"{at}mlp.{name}_proj.weight"] = gate_up[:, j].T
        found[f"{at}mlp.down_proj.weight"] = np.asarray(layer["w_down"]).T
        found[f"{at}input_layernorm.weight"] = layer["attn_norm"]
        found[f"{at}post_attention_layernorm.weight"] = layer["mlp_norm"]
    return {
        name: np.array(value, np.float32, order="C", copy=True) for name, value in found.items()
    }
