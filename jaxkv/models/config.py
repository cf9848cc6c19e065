# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a decoder is made of: a frozen dataclass, hashable, so that it can be static under jit."""

from __future__ import annotations

import dataclasses

from jaxkv.errors import InputError
from jaxkv.rope import Rope


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer of the Llama family.

    Attributes:
      vocab_size: V, rows of the embedding.
      hidden_size: D, width of the residual stream.
      intermediate_size: F, width of the gated MLP.
      num_layers: L.
      num_heads: N query heads.
      num_kv_heads: K key/value heads; divides N.
      head_dim: H, per head; need not be D / N.
      rope: the rotary embedding.
      max_positions: the longest context the model was trained for, in tokens.
      rms_norm_eps: epsilon of every RMSNorm.
      tie_embeddings: the output head is the embedding, transposed.
      qkv_bias, out_bias, mlp_bias: whether those projections add a bias.
      qk_norm: whether every head's query and key go through an RMSNorm before they are rotated.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope
    max_positions: int
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type == "int" and not 1 <= getattr(self, field.name) <= 2**31 - 1:
                raise InputError(
                    f"the model's {field.name} is {getattr(self, field.name)}; it must be above 0"
                )
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"the model's num_heads {self.num_heads} is not a multiple of its "
                f"num_kv_heads {self.num_kv_heads}"
            )
        if self.rope.rotary_dim % 2 or not 0 < self.rope.rotary_dim <= self.head_dim:
            raise InputError(
                f"the model's rotary dimension is {self.rope.rotary_dim}; it must be even and "
                f"between 2 and head_dim {self.head_dim}"
            )

    @property
    def group_size(self) -> int:
        """G: query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def identity(self) -> str:
        """Tells one architecture from another, whatever file it was read from.

        A model and its fine-tunes share it: their heads do the same things.
        """
        return (
            f"layers{self.num_layers}-heads{self.num_heads}-kv{self.num_kv_heads}"
            f"-dim{self.head_dim}-width{self.hidden_size}-mlp{self.intermediate_size}"
            f"-vocab{self.vocab_size}"
        )


def parameter_shapes(config: ModelConfig) -> dict:
    """The tree of parameters, with a shape tuple in place of every array.

    Linear maps are stored [in, out], so that `x @ w` needs no transpose; the embedding is
    [V, D]. `lm_head` [V, D] is there only when it is not tied.

    Projections of the same input are one array, because a decode step is paid by the number of
    products as well as by their bytes. Of the columns of `wqkv`, seen as [K, G + 2, H], those of
    [i] belong to KV head i: its G query heads, then its key, then its value; so heads are chosen,
    ordered along one axis. Those of `w_gate_up` are [2, F]. The axes are folded because
    a TPU brings a weight with small axes to another order before it uses it.
    """
    d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
    n, k, g = config.num_heads, config.num_kv_heads, config.group_size
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (d,),
        "wqkv": (d, k * (g + 2) * h),
        "wo": (n * h, d),
        "mlp_norm": (d,),
        "w_gate_up": (d, 2 * f),
        "w_down": (f, d),
    }
    if config.qkv_bias:
        layer |= {"bqkv": (k * (g + 2) * h,)}
    if config.out_bias:
        layer |= {"bo": (d,)}
    if config.qk_norm:
        layer |= {"q_norm": (h,), "k_norm": (h,)}
    if config.mlp_bias:
        layer |= {"b_gate_up": (2 * f,), "b_down": (d,)}
    tree = {
        "embed": (config.vocab_size, d),
        "layers": tuple(dict(layer) for _ in range(config.num_layers)),
        "final_norm": (d,),
    }
    if not config.tie_embeddings:
        tree["lm_head"] = (config.vocab_size, d)
    return tree
