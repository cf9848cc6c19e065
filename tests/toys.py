# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Tiny shapes for tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.core.rope import Rope
from jaxkv.generate.running import running
from jaxkv.layers.base import Geometry
from jaxkv.models.config import ModelConfig, parameter_shapes
from jaxkv.models.decoder import geometry as geometry_of

# Of commands that run the real model under `full`: they share their programs, which are large.
REAL = ("--prefill-chunk", "256", "--max-length", "1024")
CONFIG = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope=Rope(8),
    max_positions=4096,
    tie_embeddings=True,
)


def params(config: ModelConfig = CONFIG, seed: int = 0):
    """Random parameters of useful size."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(config)
    is_shape = lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x)  # noqa: E731
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape) * 0.3, jnp.float32),
        shapes,
        is_leaf=is_shape,
    )


def tokens(batch: int, length: int, seed: int = 0, vocab: int = CONFIG.vocab_size):
    """int32 [B, T], of numpy: a slice or a padding of it is no program to compile."""
    return np.random.default_rng(seed).integers(0, vocab, (batch, length)).astype(np.int32)


def qkv(batch: int, length: int, heads: int = 4, kv_heads: int = 2, dim: int = 8, seed: int = 0):
    """Random q [B, T, N, H] and k, v [B, T, K, H], float32, of numpy as `tokens`."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, n, dim) for n in (heads, kv_heads, kv_heads)]
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def geometry(batch: int = 1, max_length: int = 64, heads: int = 4, kv_heads: int = 2, dim: int = 8):
    """Of two layers."""
    return Geometry(2, heads, kv_heads, dim, batch, max_length)


def begun(config: ModelConfig, policy, batch: int, max_length: int, dtype: str = "float32"):
    """Streams that have seen nothing, of policies without a cache too."""
    return running(policy, geometry_of(config, batch, max_length, dtype)).init()
