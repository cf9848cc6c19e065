# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The pieces of a decoder layer that have nothing to do with the cache."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.core.shards import Shards
from jaxkv.core.typing import Hidden, Params
from jaxkv.models.config import ModelConfig
from jaxkv.models.weights import Multiples, inputs_of, times


def norm(x: Array, params: Params, name: str, config: ModelConfig) -> Array:
    """The model's kind of normalisation of the last axis, [..., D], by the weight called `name`."""
    if config.layer_norm:
        return layer_norm(x, params[name], params.get(f"{name}_bias"), config.norm_eps)
    return rms_norm(x, params[name], config.norm_eps, config.unit_offset)


def rms_norm(x: Array, weight: Array, eps: float, unit_offset: bool = False) -> Array:
    """Root-mean-square normalisation (arXiv 1910.07467) of the last axis, in float32.

    Args:
      x: [..., D].
      weight: [D].
      eps: added to the mean of the squares.
      unit_offset: multiplies by 1 + weight, and in float32 too.
    """
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    weight = weight.reshape((1,) * (x.ndim - 1) + weight.shape)
    if unit_offset:
        return (wide * (1 + weight.astype(jnp.float32))).astype(x.dtype)
    return wide.astype(x.dtype) * weight


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """Layer normalisation (arXiv 1607.06450) of the last axis, in float32.

    Args:
      x: [..., D].
      weight: [D].
      bias: [D] or None.
      eps: added to the variance.
    """
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    lead = (1,) * (x.ndim - 1)
    wide = wide * weight.reshape(lead + weight.shape).astype(jnp.float32)
    if bias is not None:
        wide = wide + bias.reshape(lead + bias.shape).astype(jnp.float32)
    return wide.astype(x.dtype)


def project(x: Array, weight: Array | Multiples, bias: Array | None = None) -> Array:
    """A linear map of the last axis, accumulated in float32: [B, T, I] -> [B, T, O].

    Args:
      x: [B, T, I].
      weight: [I, O].
      bias: [O] or None.
    """
    out = times(x.reshape(-1, x.shape[-1]), weight)
    out = out.astype(x.dtype).reshape(*x.shape[:-1], -1)
    return out if bias is None else out + bias[None, None]


def closed(
    x: Array, weight: Array | Multiples, bias: Array | None, inputs: int, shards: Shards
) -> Array:
    """As `project`, of a map whose inputs may be shared out over devices: [B, T, I] -> [B, T, O].

    Args:
      x: [B, T, I], or this device's part of I.
      weight: [I, O], or the part of it that this device has.
      bias: [O] or None.
      inputs: I.
      shards: the devices.
    """
    held = inputs_of(weight)
    out = project(shards.sized(x, held), weight)
    if held < inputs:
        out = shards.total(out)
    return out if bias is None else out + bias[None, None]


def mlp(x: Hidden, layer: Params, config: ModelConfig) -> Hidden:
    """down(act(gate(x)) * up(x)) (arXiv 2002.05202), or down(act(up(x))): [B, T, D]."""
    act = _ACTIVATIONS[config.activation]
    if config.gated:
        both = project(x, layer["w_gate_up"], layer.get("b_gate_up"))
        gate, up = jnp.split(both, 2, axis=-1)
        inner = act(gate) * up
    else:
        inner = act(project(x, layer["w_up"], layer.get("b_up")))
    width, shards = config.whole.intermediate_size, config.shards
    return closed(inner, layer["w_down"], layer.get("b_down"), width, shards)


_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def soft_capped(x: Array, cap: float | None) -> Array:
    """cap tanh(x / cap), or x where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)
