# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a decoder is made of: a frozen dataclass, hashable, so that it can be static under jit."""

from __future__ import annotations

import dataclasses

import jax

from jaxkv.core.errors import InputError
from jaxkv.core.rope import Rope
from jaxkv.core.scoring import Scoring
from jaxkv.core.shards import ONE, Shards
from jaxkv.core.typing import Rotation

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: a Llama, but for what the fields below `rope` say.

    Attributes:
      vocab_size: V, rows of the embedding.
      hidden_size: D, width of the residual stream.
      intermediate_size: F, width of the MLP.
      num_layers: L.
      num_heads: N query heads.
      num_kv_heads: K key/value heads; divides N.
      head_dim: H, per head; need not be D / N.
      rope: the rotary embedding; None for a model without.
      max_positions: the longest context the model was trained for, in tokens.
      norm_eps: epsilon of every norm.
      tie_embeddings: the output head is the embedding, transposed.
      qkv_bias, out_bias, mlp_bias: whether those projections add a bias.
      sink_logits: whether every query head has a learned score for a key that is not there, whose
        value is 0 (arXiv 2508.10925; zero in softmax-off-by-one, arXiv 2309.17453, section 3.3).
      qk_norm: whether every head's query and key go through an RMSNorm before they are rotated.
      windows: of each layer, the past tokens it sees, and 0 where it sees all; empty if all do.
      local_rope: the rotary embedding of layers with a window; None if it is that of the others.
      alibi: ALiBi's slope of each query head (arXiv 2108.12409); empty for a model without.
      query_scale: queries are multiplied by it, on top of 1 / sqrt(H).
      clip_qkv: queries, keys and values are clipped to [-clip_qkv, clip_qkv]; None does not.
      soft_cap, final_soft_cap: of scores and of logits, x -> cap tanh(x / cap); None is none.
      embed_scale: embeddings are multiplied by it.
      layer_norm: LayerNorm (arXiv 1607.06450) in place of RMSNorm.
      norm_bias: whether each LayerNorm adds a bias.
      unit_offset: RMSNorms multiply by 1 + weight.
      post_norms: whether what attention and MLP give is normed before it is added.
      parallel: attention and MLP read the same residual stream, and are added together.
      shared_norm: in parallel layers, whether they share one norm too.
      gated: whether the MLP is gated: down(act(gate(x)) * up(x)) and not down(act(up(x))).
      activation: of the MLP: silu, gelu or gelu_tanh.
      family: whose checkpoints it is written to, as config.json's `model_type` calls it. It changes
        nothing that is computed.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope | None
    max_positions: int
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    sink_logits: bool = False
    qk_norm: bool = False
    windows: tuple[int, ...] = ()
    local_rope: Rope | None = None
    alibi: tuple[float, ...] = ()
    query_scale: float = 1.0
    clip_qkv: float | None = None
    soft_cap: float | None = None
    final_soft_cap: float | None = None
    embed_scale: float = 1.0
    layer_norm: bool = False
    norm_bias: bool = False
    unit_offset: bool = False
    post_norms: bool = False
    parallel: bool = False
    shared_norm: bool = False
    gated: bool = True
    activation: str = "silu"
    family: str = "llama"

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
        for rope in (self.rope, self.local_rope):
            if rope and (rope.rotary_dim % 2 or not 0 < rope.rotary_dim <= self.head_dim):
                raise InputError(
                    f"the model's rotary dimension is {rope.rotary_dim}; it must be even and "
                    f"between 2 and head_dim {self.head_dim}"
                )
        counts = {"windows": self.num_layers, "alibi": self.num_heads}
        for name, count in counts.items():
            if len(getattr(self, name)) not in (0, count):
                raise InputError(
                    f"the model's {name} are {len(getattr(self, name))}; there must be {count}"
                )
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"the model's activation is {self.activation!r}; it must be one of "
                f"{', '.join(ACTIVATIONS)}"
            )

    @property
    def shards(self) -> Shards:
        """How the model lies over devices, as one of them sees it in a program: on one."""
        return ONE

    @property
    def whole(self) -> ModelConfig:
        """The model of which this is what one device has."""
        return self

    @property
    def group_size(self) -> int:
        """G: query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    def scoring(self, layer: int) -> Rotation | None:
        """How layer `layer` scores a query against a key: what its policy takes as `rope`."""
        local = self.windows and self.windows[layer]
        rope = self.local_rope if local and self.local_rope else self.rope
        if not self.alibi and self.soft_cap is None:
            return rope
        return Scoring(rope, self.alibi, self.soft_cap)

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
    a TPU brings a weight with small axes to another order before it uses it. Without
    a gate the MLP has `w_up` [D, F] in its place.
    """
    d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
    n, k, g = config.num_heads, config.num_kv_heads, config.group_size
    up = ("gate_up", 2 * f) if config.gated else ("up", f)
    layer: dict[str, tuple[int, ...]] = {
        **_norm("attn_norm", config),
        "wqkv": (d, k * (g + 2) * h),
        "wo": (n * h, d),
        **({} if config.shared_norm else _norm("mlp_norm", config)),
        f"w_{up[0]}": (d, up[1]),
        "w_down": (f, d),
    }
    if config.post_norms:
        layer |= _norm("attn_post_norm", config) | _norm("mlp_post_norm", config)
    if config.qkv_bias:
        layer |= {"bqkv": (k * (g + 2) * h,)}
    if config.out_bias:
        layer |= {"bo": (d,)}
    if config.qk_norm:
        layer |= {"q_norm": (h,), "k_norm": (h,)}
    if config.sink_logits:
        layer |= {"sink_logits": (n,)}
    if config.mlp_bias:
        layer |= {f"b_{up[0]}": (up[1],), "b_down": (d,)}
    tree = {
        "embed": (config.vocab_size, d),
        "layers": tuple(dict(layer) for _ in range(config.num_layers)),
        **_norm("final_norm", config),
    }
    if not config.tie_embeddings:
        tree["lm_head"] = (config.vocab_size, d)
    return tree


def _norm(name: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    width = (config.hidden_size,)
    return {name: width, f"{name}_bias": width} if config.norm_bias else {name: width}
