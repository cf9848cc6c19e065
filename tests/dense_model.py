# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A decoder in NumPy, float64, with attention matrices of T x T: an oracle for toys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxkv.models.config import ModelConfig


class DenseModel:
    """Of a Llama-like config without biases, rotated at full width with theta 10,000."""

    def __init__(self, params: Any, config: ModelConfig) -> None:
        self.params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        self.config, self.dim, self.eps = config, config.head_dim, config.norm_eps

    def norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * weight

    def rotate(self, x: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        """Heads [T, ..., H] at positions [T], from 0 on where none are given."""
        at = np.arange(len(x)) if at is None else at
        angles = at[:, None] / 10000.0 ** (np.arange(0, self.dim, 2) / self.dim)
        angles = angles.reshape(len(x), *[1] * (x.ndim - 2), -1)
        cos, sin = np.cos(angles), np.sin(angles)
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def qkv(self, x: np.ndarray, layer: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Not rotated: q [T, K, G, H], k and v [T, K, H]."""
        qkv = self.norm(x, layer["attn_norm"]) @ layer["wqkv"]
        qkv = qkv.reshape(len(x), self.config.num_kv_heads, -1, self.dim)
        q, k, v = qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]
        if self.config.qk_norm:
            q, k = self.norm(q, layer["q_norm"]), self.norm(k, layer["k_norm"])
        return q, k, v

    def weights(
        self, q: np.ndarray, k: np.ndarray, mask: np.ndarray, sink: np.ndarray | None = None
    ) -> np.ndarray:
        """Attention [K, G, T, T] of what `qkv` gives; a `sink` logit of each head [N] has some."""
        scores = np.einsum("tkgh,skh->kgts", self.rotate(q), self.rotate(k)) / math.sqrt(self.dim)
        weights = np.exp(np.where(mask, scores, -np.inf))
        more = 0 if sink is None else np.exp(sink).reshape(*weights.shape[:2], 1, 1)
        return weights / (weights.sum(-1, keepdims=True) + more)

    def attend(self, x: np.ndarray, layer: dict, mask: np.ndarray) -> np.ndarray:
        """[T, K, G, H]."""
        q, k, v = self.qkv(x, layer)
        weights = self.weights(q, k, mask, layer.get("sink_logits"))
        return np.einsum("kgts,skh->tkgh", weights, v)

    def rest(self, x: np.ndarray, attended: np.ndarray, layer: dict) -> np.ndarray:
        """The layer's output, of what its heads gave."""
        x = x + attended.reshape(len(x), -1) @ layer["wo"]
        y = self.norm(x, layer["mlp_norm"])
        gate, up = np.split(y @ layer["w_gate_up"], 2, axis=-1)
        return x + (gate / (1 + np.exp(-gate)) * up) @ layer["w_down"]

    def last(self, ids: list[int]) -> np.ndarray:
        """The states [T, D] after all layers, of a text that is read causally."""
        x, causal = self.params["embed"][np.asarray(ids)], np.tri(len(ids), dtype=bool)
        for layer in self.params["layers"]:
            x = self.rest(x, self.attend(x, layer, causal), layer)
        return x

    def layers(self, ids: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """q and k of each layer, not rotated, of a text that is read causally."""
        x = self.params["embed"][np.asarray(ids)]
        causal = np.tri(len(ids), dtype=bool)
        for layer in self.params["layers"]:
            q, k, _ = self.qkv(x, layer)
            yield q, k
            x = self.rest(x, self.attend(x, layer, causal), layer)
