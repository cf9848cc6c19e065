# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Models of google/tunix whose caches a policy keeps; its own `Sampler` runs them as they are.

    from jaxkv.integrations.tunix import with_policy

    sampler = Sampler(with_policy(model, jaxkv.SnapKV(budget=512)), tokenizer, cache_config)

Parameters keep their names and their sharing with the model, so that weights that are loaded or
trained go into either. A cache has one `KeptLayer` a layer and, as theirs, the slots used so far.

Prompts of the sampler are padded on the left. Which tokens are padding, the mask says: a token that
does not see itself. They are moved behind the others and never kept.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxkv.alone import KeptLayer, begun
from jaxkv.core.errors import InputError
from jaxkv.core.rope import LinearScaling, Rope
from jaxkv.layers.base import Geometry, Policy
from jaxkv.models.plan import plan

_KEPT, _USED = "kept", "end_index"
_FAMILIES = ("Llama3", "Qwen2", "Qwen3", "Gemma3")


def with_policy(model: nnx.Module, policy: Policy, *, kv_dtype: str | None = None) -> Any:
    """A tunix model with another cache.

    Args:
      model: a Llama3, Qwen2, Qwen3 or Gemma3 of tunix; it stays as it is.
      policy: what to keep in layers that see everything; the others keep their window.
      kv_dtype: of keys and values, see `jaxkv.layer_cache`; None is what the sampler asks for.

    Returns:
      The model, with the same arrays, whose `init_cache(batch_size, cache_size, dtype)` gives a
      cache that the policy keeps. Called with a cache of theirs, or with none, it does what the
      model does.

    Raises:
      InputError: another model.
    """
    name, module = type(model).__name__, type(model).__module__
    if name not in _FAMILIES or not module.startswith("tunix.models."):
        raise InputError(
            f"the model is a {module}.{name}; it must be {', '.join(_FAMILIES)} of tunix.models"
        )
    if getattr(model, "vision_encoder", None) is not None:
        raise InputError(
            "the model sees images, whose tokens see each other both ways; use one without a "
            "vision_config"
        )
    same: Any = nnx.merge(*nnx.split(model))
    _become(same, _model_class)
    same.policy, same.kv_dtype = policy, kv_dtype
    for index, layer in enumerate(same.layers):
        _become(layer.attn, _attention_class)
        layer.attn.kept_by = (policy, index)
    jax.eval_shape(lambda: same.init_cache(1, 64, jnp.float32))  # what is wrong, it says now
    return same


def _become(node: nnx.Module, subclass: Callable[[type], type]) -> None:
    """Makes a module one of a subclass of its class, with the same attributes and parameters."""
    object.__setattr__(node, "__class__", subclass(type(node)))


@functools.cache
def _model_class(cls: type) -> type:
    """A model's class with another cache: one for each, as programs are made for it."""
    return type(cls)(
        cls.__name__, (cls,), {"init_cache": _init_cache, "__module__": cls.__module__}
    )


@functools.cache
def _attention_class(cls: Any) -> type:
    """An attention's class that takes both kinds of caches."""
    theirs = cls.block
    signature = inspect.signature(theirs)

    def block(self: Any, *args: Any, **kwargs: Any) -> tuple[Any, Array]:
        """As theirs, whose arguments differ from family to family."""
        given = signature.bind(self, *args, **kwargs).arguments
        cache = given["cache"]
        if cache is None or _KEPT not in cache:
            return theirs(self, *args, **kwargs)
        return _attend(self, cache, given["attn_mask"], given["x"])

    return type(cls)(cls.__name__, (cls,), {"block": block, "__module__": cls.__module__})


def _init_cache(self: Any, batch_size: int, cache_size: int, dtype: Any) -> dict[str, Any]:
    """An empty cache, as the sampler asks a model for it."""
    attentions = [layer.attn for layer in self.layers]
    heads, kv_heads = _heads(attentions[0])
    geometry = Geometry(
        num_layers=len(attentions),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=attentions[0].head_dim,
        batch_size=batch_size,
        max_length=cache_size,
        dtype=self.kv_dtype or jnp.dtype(dtype).name,
        windows=tuple(_window(x) for x in attentions),
    )
    return {
        f"layer_{index}": {
            _KEPT: begun(lambda g, at=index: plan(self.policy, g).layers[at], geometry),
            _USED: jnp.zeros((batch_size,), jnp.int32),
        }
        for index in range(len(attentions))
    }


def _attend(
    module: Any, cache: dict[str, Any], mask: Array | None, x: Array
) -> tuple[dict[str, Any], Array]:
    """One layer, of hidden states [B, T, D]: the cache after them, and [B, T, D]."""
    q, k, v = _projected(module, x)
    output = module.attn_vec_einsum if hasattr(module, "attn_vec_einsum") else module.o_proj
    kept: KeptLayer = _for_rows(cache[_KEPT], x.shape[0], *module.kept_by)
    how: dict[str, Any] = {"rope": _rope(module), "scale": _scale(module)}
    count = x.shape[1]
    if count == 1:
        kept, out = kept.attend(q, k, v, **how)
    else:
        valid = _valid(mask, cache[_USED], q.shape[:2])
        order = jnp.argsort(jnp.logical_not(valid), axis=1, stable=True).astype(jnp.int32)
        q, k, v, states = (_ordered(a, order) for a in (q, k, v, x))
        lengths = jnp.sum(valid, axis=1, dtype=jnp.int32)
        kept, out = kept.attend(
            q, k, v, **how, lengths=lengths, hidden=states, wo=output.w[...]
        )  # fmt: skip
        out = _ordered(out, jnp.argsort(order, axis=1).astype(jnp.int32))
    after = dataclasses.replace(cache[_KEPT], kept=kept.kept)
    return {_KEPT: after, _USED: cache[_USED] + count}, output(out)


def _for_rows(kept: KeptLayer, rows: int, policy: Policy, index: int) -> KeptLayer:
    """The layer for as many rows as its arrays have: a search repeats each for its beams."""
    if rows == kept.geometry.batch_size:
        return kept
    geometry = dataclasses.replace(kept.geometry, batch_size=rows)
    return KeptLayer(kept.kept, plan(policy, geometry).layers[index], geometry)


def _ordered(x: Array, order: Array) -> Array:
    """Tokens of [B, T, ..] in an order int32 [B, T]."""
    return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)


def _valid(mask: Array | None, used: Array, shape: tuple[int, ...]) -> Array:
    """Tokens that are no padding, bool [B, T]: those that see the slot they would be written to."""
    if mask is None:
        return jnp.ones(shape, bool)
    slots = used[:, None] + jnp.arange(shape[1], dtype=jnp.int32)[None]
    return jnp.take_along_axis(mask, slots[..., None], axis=2)[..., 0].astype(bool)


def _projected(module: Any, x: Array) -> tuple[Array, Array, Array]:
    """Queries [B, T, N, H], keys and values [B, T, K, H], as the family makes them."""
    if hasattr(module, "attn_vec_einsum"):  # Gemma
        if module.use_qkv_einsum:
            q, k, v = module.qkv_einsum(x)
        else:
            q, (k, v) = module.q_einsum(x), module.kv_einsum(x)
        return module._query_norm(q), module._key_norm(k), v
    q, k, v = module.q_proj(x), module.k_proj(x), module.v_proj(x)
    if hasattr(module, "q_bias"):
        biases = (module.q_bias, module.k_bias, module.v_bias)
        q, k, v = (
            a + b[...].astype(a.dtype).reshape(1, 1, *a.shape[2:])
            for a, b in zip((q, k, v), biases, strict=True)
        )
    if hasattr(module, "q_norm"):
        q, k = module.q_norm(q), module.k_norm(k)
    return q, k, v


def _rope(module: Any) -> Rope:
    """What the family rotates by.

    Llama3 and Qwen3 of tunix call their `apply_rope` without a base, so that it has the function's
    default whatever the configuration says; a model stays what it is.
    """
    if hasattr(module, "rope_base_frequency"):
        factor = module.rope_scale_factor
        scaling = LinearScaling(factor) if factor != 1 else None
        return Rope(module.head_dim, module.rope_base_frequency, scaling)
    theirs = getattr(sys.modules[type(module).__module__], "apply_rope", None)
    if theirs is None:
        return Rope(module.head_dim, module.config.rope_theta)
    return Rope(module.head_dim, inspect.signature(theirs).parameters["rope_theta"].default)


def _scale(module: Any) -> float:
    scale = getattr(module, "query_pre_attn_scalar", None)
    return module.scale if scale is None else scale


def _window(module: Any) -> int:
    """Past tokens that a layer lets a query see; 0 where it sees all."""
    kind = getattr(module, "attn_type", None)
    return module.sliding_window_size - 1 if getattr(kind, "name", "") == "LOCAL_SLIDING" else 0


def _heads(module: Any) -> tuple[int, int]:
    """N and K, from the projections."""
    if hasattr(module, "attn_vec_einsum"):
        return module.num_heads, module.num_kv_heads
    return module.q_proj.shape[1], module.k_proj.shape[1]
