# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention for flax nnx whose cache is kept by a policy.

    from jaxkv.integrations.nnx import MultiHeadAttention

stands where `nnx.MultiHeadAttention` stood: the same arguments, the same parameters under the same
names, the same result without a cache. In decode mode the cache is one of ours, in place of
`cached_key`, `cached_value` and `cache_index`, and a prompt of any length is taken in one call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from jaxkv.alone import KeptLayer, layer_cache
from jaxkv.core.errors import InputError
from jaxkv.core.shards import DATA, MODEL
from jaxkv.core.typing import Lengths, Rotation
from jaxkv.layers.base import Policy
from jaxkv.policies.full import Full


@dataclasses.dataclass(frozen=True)
class Rotated:
    """An `attention_fn` that rotates queries and keys of whole texts before another one.

    Attributes:
      rope: rotates (x [B, T, N, H], positions [B, T]).
      attention: the other one.
    """

    rope: Rotation
    attention: Callable[..., Array]

    def __call__(self, query: Array, key: Array, value: Array, **how: Any) -> Array:
        """As `nnx.dot_product_attention`, of [B, T, N, H]."""
        at = jnp.arange(query.shape[1], dtype=jnp.int32)[None]
        at = jnp.broadcast_to(at, query.shape[:2])
        return self.attention(self.rope(query, at), self.rope(key, at), value, **how)


class MultiHeadAttention(nnx.MultiHeadAttention):
    """`nnx.MultiHeadAttention` with a cache that a policy keeps.

    In decode mode it is self-attention of [B, T, D], causal by itself: T > 1 is a prompt or a part
    of one, T = 1 a step. What is no part of that is refused there: a mask (`lengths` tells of
    padding), other inputs for keys, dropout, sown weights, and an `attention_fn` of your own.

    Args:
      *args, **kwargs: as for `nnx.MultiHeadAttention`.
      policy: what to keep.
      layer: which of the model's layers this is, of `num_layers`.
      num_layers: of the model.
      rope: rotates (x [B, T, N, H], positions [B, T]), such as `jaxkv.Rope`, also without a cache;
        hashable.
      window: see `jaxkv.layer_cache`; without a cache it is the caller's mask that says so.
      mesh, axes: likewise, for caches that lie over devices by heads.

    The cache is `self.kept`, an `nnx.Cache` of a `KeptLayer`; None before `init_cache`.
    """

    def __init__(
        self,
        *args: Any,
        policy: Policy = Full(),  # noqa: B008  frozen
        layer: int = 0,
        num_layers: int = 1,
        rope: Rotation | None = None,
        window: int | None = None,
        mesh: Mesh | None = None,
        axes: tuple[str | None, str | None] = (DATA, MODEL),
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.own_attention = self.attention_fn is not nnx.dot_product_attention
        if rope is not None:
            self.attention_fn = Rotated(rope, self.attention_fn)
        self.rope = rope
        self.policy = policy
        self.where = (layer, num_layers, window, mesh, axes)
        self.kept: nnx.Cache[KeptLayer] | None = nnx.data(None)

    def init_cache(self, input_shape: tuple[int, ...], dtype: Any = jnp.float32) -> None:
        """Makes an empty cache; as the class it stands for, but for `dtype`.

        Args:
          input_shape: [B, max_length, D].
          dtype: of keys and values, see `jaxkv.layer_cache`.
        """
        if len(input_shape) != 3:
            raise InputError(f"input_shape is {tuple(input_shape)}; it must be (B, max_length, D)")
        layer, num_layers, window, mesh, axes = self.where
        batch, length, _ = input_shape
        kept = layer_cache(
            self.policy, layer, num_layers=num_layers, num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads, head_dim=self.head_dim, batch_size=batch,
            max_length=length, dtype=dtype, window=window, mesh=mesh, axes=axes,
        )  # fmt: skip
        self.kept = nnx.Cache(kept)

    def set_view(
        self,
        deterministic: bool | None = None,
        decode: bool | None = None,
        batch_size: int | None = None,
        max_length: int | None = None,
    ) -> None:
        """For `nnx.view`; with `decode` and both sizes an empty cache is made.

        Args:
          deterministic: whether dropout is off.
          decode: whether there is a cache.
          batch_size: B, of a new cache.
          max_length: of a new cache.
        """
        if deterministic is not None:
            self.deterministic = deterministic
        if decode is not None:
            self.decode = decode
        if decode and batch_size is not None and max_length is not None:
            self.init_cache((batch_size, max_length, self.in_features), self.dtype or jnp.float32)

    def __call__(
        self,
        inputs_q: Array,
        inputs_k: Array | None = None,
        inputs_v: Array | None = None,
        *,
        decode: bool | None = None,
        lengths: Lengths | None = None,
        **kwargs: Any,
    ) -> Array:
        """As `nnx.MultiHeadAttention`.

        Args:
          inputs_q: [B, T, D].
          inputs_k: without a cache, the inputs of keys if they are others.
          inputs_v: likewise, of values.
          decode: whether to use the cache; None is what the module was made with.
          lengths: int32 [B], in decode mode, valid tokens in each row, padding on the right.
          **kwargs: as there.

        Raises:
          InputError: in decode mode, no cache, or what this mode does not do.
        """
        decode = self.decode if decode is None else decode
        if not decode:
            if lengths is not None:
                raise InputError("lengths are for decode mode; without a cache give a mask")
            return super().__call__(inputs_q, inputs_k, inputs_v, decode=decode, **kwargs)
        others = [x for x in (inputs_k, inputs_v) if x is not None and x is not inputs_q]
        self._refuse(bool(others), kwargs)
        if self.kept is None:
            raise InputError("there is no cache; call init_cache first")
        if inputs_q.ndim != 3 or inputs_q.shape[-1] != self.in_features:
            raise InputError(
                f"inputs have shape {inputs_q.shape}; it is [B, T, {self.in_features}]"
            )
        shared = {"out_sharding": kwargs.get("qkv_sharding")}
        q, k, v = (part(inputs_q, **shared) for part in (self.query, self.key, self.value))
        if self.query_ln is not None and self.key_ln is not None:
            q, k = self.query_ln(q), self.key_ln(k)
        after, out = self.kept.get_value().attend(
            q, k, v, rope=self.rope, lengths=lengths, hidden=inputs_q,
            wo=self.out.kernel[...],
        )  # fmt: skip
        self.kept.set_value(after)
        return self.out(out, out_sharding=kwargs.get("out_sharding"))

    def _refuse(self, others: bool, kwargs: dict[str, Any]) -> None:
        """What decode mode does not do would be another result."""
        deterministic = kwargs.get("deterministic")
        deterministic = self.deterministic if deterministic is None else deterministic
        wrong = {
            "other inputs for keys": others,
            "a mask: give lengths, or a window to the module": kwargs.get("mask") is not None,
            "dropout": self.dropout_rate > 0 and not deterministic,
            "sown weights": kwargs.get("sow_weights"),
            "an attention_fn of your own, which may do what a cache does not": self.own_attention,
        }
        known = {
            "mask", "deterministic", "rngs", "sow_weights", "is_causal", "out_sharding",
            "qkv_sharding",
        }  # fmt: skip
        wrong |= {name: value is not None for name, value in kwargs.items() if name not in known}
        if found := [what for what, there in wrong.items() if there]:
            raise InputError(f"decode mode does not take {found[0]}")
