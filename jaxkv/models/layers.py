# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The pieces of a decoder layer that have nothing to do with the cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.typing import Hidden, Params
from pallas_kernels.precision import einsum


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Root-mean-square normalisation (arXiv 1910.07467) of the last axis, in float32.

    Args:
      x: [..., D].
      weight: [D].
      eps: added to the mean of the squares.
    """
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * weight.reshape((1,) * (x.ndim - 1) + weight.shape)


def project(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """A linear map of the last axis, accumulated in float32: [B, T, I] -> [B, T, O].

    Args:
      x: [B, T, I].
      weight: [I, O].
      bias: [O] or None.
    """
    rows = x.reshape(-1, x.shape[-1])
    # A product of one row is only as fast as the memory is read, and XLA's CPU backend reads a
    # small matrix with one core. Two half sums, batched, are read by two.
    if rows.shape[0] == 1 and rows.shape[1] % 2 == 0:
        out = jax.lax.platform_dependent(rows, weight, cpu=_halves, default=_product)
    else:
        out = _product(rows, weight)
    out = out.astype(x.dtype).reshape(*x.shape[:-1], -1)
    return out if bias is None else out + bias[None, None]


def _product(rows: Array, weight: Array) -> Array:
    return einsum("ri,io->ro", rows, weight)


def _halves(rows: Array, weight: Array) -> Array:
    inputs, outputs = weight.shape
    halves = weight.reshape(2, inputs // 2, outputs)
    return jnp.sum(einsum("rsi,sio->sro", rows.reshape(1, 2, inputs // 2), halves), axis=0)


def gated_mlp(x: Hidden, layer: Params) -> Hidden:
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), [B, T, D]."""
    both = project(x, layer["w_gate_up"], layer.get("b_gate_up"))
    gate, up = jnp.split(both, 2, axis=-1)
    return project(jax.nn.silu(gate) * up, layer["w_down"], layer.get("b_down"))
