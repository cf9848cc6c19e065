# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""DuoAttention's two streams: a teacher that sees everything, and a blend of it with streaming.

Policies are static and caches are data, so a gate travels as a layer's cache, and both streams run
through the decoder's layer as it is. Streaming attention is that of the layer which later deploys
it, `RingLayer`, with absolute positions.

The blend is the paper's: full and streaming attention over the same stream's queries, keys and
values. In the authors' code the full half is the teacher's output instead. Then a layer is told
what the teacher's heads found whatever the heads before it have lost, and heads of early layers,
which only prepare what later ones find, look as if nothing depended on them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.attention import attend_slots
from jaxkv.core.errors import InputError
from jaxkv.core.typing import Hidden, Lengths, Params, Positions, Queries, Tokens
from jaxkv.layers.base import Chunk, Facts, Geometry, LayerCache, LayerPolicy
from jaxkv.layers.full import FullLayer
from jaxkv.layers.ring import RingLayer
from jaxkv.models.block import norm
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import embed, geometry, run_layer


@dataclasses.dataclass(frozen=True)
class Gated:
    """Every KV head is partly the teacher's, and partly a streaming head.

    Attributes:
      sinks, recent: of the streaming heads, as in `DuoAttention`.
      chunk: tokens that attend at a time; it must divide a prompt.
    """

    sinks: int
    recent: int
    chunk: int

    def at(self, layer: int, geometry: Geometry) -> GatedLayer:
        """The same for every layer."""
        del layer
        ring = RingLayer(geometry, self.sinks, self.recent, in_cache=False)
        return GatedLayer(ring, self.chunk)


@dataclasses.dataclass(frozen=True)
class GatedLayer:
    """`gate * full + (1 - gate) * streaming`, before the output projection; its cache is the gate.

    Attributes:
      ring: the streaming half.
      chunk: tokens that attend at a time; it must divide a prompt.
    """

    ring: RingLayer
    chunk: int

    def init(self) -> LayerCache:
        """Open gates: float32 [K], in [0, 1], the share of full attention in each KV head."""
        return jnp.ones(self.ring.geometry.num_kv_heads, jnp.float32)

    def take(self, cache: LayerCache, chunk: Chunk) -> tuple[LayerCache, Queries]:
        """Attends twice to this stream's keys: to all, and to sinks and a window of them."""
        gate = jnp.repeat(cache, chunk.q.shape[2] // chunk.k.shape[2])[None, None, :, None]
        full = _everything(self.chunk, chunk).astype(jnp.float32)
        near = _streaming(self.ring, self.chunk, chunk).astype(jnp.float32)
        return cache, (gate * full + (1 - gate) * near).astype(chunk.q.dtype)

    def facts(self) -> Facts:
        """Of the streaming half."""
        return self.ring.facts()


@dataclasses.dataclass(frozen=True)
class TeacherLayer:
    """Sees a whole prompt, and keeps nothing.

    Attributes:
      full: the layer that it attends as.
      chunk: tokens that attend at a time; it must divide a prompt.
    """

    full: FullLayer
    chunk: int

    def init(self) -> LayerCache:
        """Nothing."""
        return ()

    def take(self, cache: LayerCache, chunk: Chunk) -> tuple[LayerCache, Queries]:
        """Attends to everything."""
        return cache, _everything(self.chunk, chunk)

    def facts(self) -> Facts:
        """As the layer."""
        return self.full.facts()


def stack_layers(params: Params) -> Params:
    """Parameters whose layers are one tree, with an axis of L in front of every array.

    A scan over it compiles one layer: for SmolLM2's 30, 9 s of one core instead of 71, and 0.5 s
    instead of 60 where the program is read from disk. The price is that the layers' weights are
    held twice.
    """
    return {**params, "layers": jax.tree.map(lambda *x: jnp.stack(x), *params["layers"])}


def hidden_states(
    params: Params,
    config: ModelConfig,
    gates: Array,
    policy: Gated,
    tokens: Tokens,
    lengths: Lengths,
) -> tuple[Hidden, Hidden]:
    """Both streams after the final norm, float32 [B, T, D]: the teacher's and the mixed one.

    Args:
      params: of a frozen model, from `stack_layers`.
      config: the model.
      gates: float32 [L, K], in [0, 1]. Nothing of the teacher's stream depends on them.
      policy: the streaming heads.
      tokens: int32 [B, T].
      lengths: int32 [B], valid tokens; what is padded is undefined in both.
    """
    teacher = TeacherLayer(FullLayer(_shapes(params, config, tokens)), policy.chunk)
    full = _stream(params, config, teacher, gates, tokens, lengths)
    mixed = mixed_states(params, config, gates, policy, tokens, lengths)
    full, mixed = (norm(x, params, "final_norm", config).astype(jnp.float32) for x in (full, mixed))
    return full, mixed


def mixed_states(
    params: Params,
    config: ModelConfig,
    gates: Array,
    policy: Gated,
    tokens: Tokens,
    lengths: Lengths,
) -> Hidden:
    """The mixed stream alone, before the final norm: [B, T, D]; see `hidden_states`."""
    pupil = policy.at(0, _shapes(params, config, tokens))  # the same in every layer
    return _stream(params, config, pupil, gates, tokens, lengths)


def _shapes(params: Params, config: ModelConfig, tokens: Tokens) -> Geometry:
    if config.windows:
        raise InputError("the model has layers with a window of their own; gates need equal layers")
    rows, count = tokens.shape
    return geometry(config, rows, count, params["embed"].dtype.name)


def _stream(
    params: Params,
    config: ModelConfig,
    policy: LayerPolicy,
    gates: Array,
    tokens: Tokens,
    lengths: Lengths,
) -> Hidden:
    """All layers, each with its gates [K] for a cache."""
    rope = config.scoring(0)

    def layer(x: Hidden, own: tuple[Params, Array]) -> tuple[Any, None]:
        weights, gate = own
        return run_layer(weights, config, policy, rope, x, gate, lengths)[0], None

    return jax.lax.scan(layer, embed(params, config, tokens), (params["layers"], gates))[0]


def losses(
    params: Params,
    config: ModelConfig,
    gates: Array,
    policy: Gated,
    tokens: Tokens,
    lengths: Lengths,
    labels: Array,
) -> tuple[Array, Array]:
    """How far the streams are apart where it counts, and how much of the teacher is used.

    The scaling is that of DuoAttention's code: both terms are means, where the paper writes sums.

    Args:
      labels: bool [B, T], positions that count. For the rest see `hidden_states`.

    Returns:
      distill, the squared distance, mean over D and over all labels; and mean |gate|. float32.
    """
    full, mixed = hidden_states(params, config, gates, policy, tokens, lengths)
    apart = jnp.mean(jnp.square(full - mixed), axis=-1)
    distill = jnp.sum(jnp.where(labels, apart, 0.0)) / jnp.sum(labels, dtype=jnp.float32)
    return distill, jnp.mean(jnp.abs(gates))


def _everything(size: int, prompt: Chunk) -> Queries:
    """Full causal attention within a whole prompt, `size` queries at a time: [B, T, N, H]."""
    batch, total = prompt.q.shape[:2]
    at = jnp.broadcast_to(jnp.arange(total, dtype=jnp.int32), (batch, total))
    q, k = prompt.rotated(at)
    held = jnp.where(at < _lengths(prompt)[:, None], at, -1)[:, None]
    keys, values = k.swapaxes(1, 2), prompt.v.swapaxes(1, 2)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # within a scan there is none
    def one(q: Queries, at: Positions) -> Queries:
        # A window that nothing leaves: without one, the op's loop has no derivative.
        seen = attend_slots(q, keys, values, at, held, prompt.rope, window=total)
        return prompt.with_sink(*seen)[0]

    _, outs = jax.lax.scan(
        lambda _, part: (None, one(*part)), None, (_split(q, size), _split(at, size))
    )
    return _joined(outs, prompt)


def _streaming(ring: RingLayer, size: int, prompt: Chunk) -> Queries:
    """A whole prompt through a ring, `size` tokens at a time: out [B, T, N, H].

    It then compares T x (size + sinks + recent) keys instead of T x T. On the way back every
    chunk is computed again from its q, k and v, so that no scores are kept.
    """
    starts = jnp.arange(prompt.count // size, dtype=jnp.int32)[:, None] * size
    valid = jnp.clip(_lengths(prompt)[None] - starts, 0, size)  # [chunks, B]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(cache: LayerCache, chunk: Chunk) -> tuple[LayerCache, Queries]:
        # Of all chunks they are the same.
        chunk = dataclasses.replace(chunk, sink_logits=prompt.sink_logits)
        return ring.take(cache, chunk)

    q, k, v = (_split(x, size) for x in (prompt.q, prompt.k, prompt.v))
    chunks = Chunk(q, k, v, valid, prompt.rope, decoding=False)
    _, outs = jax.lax.scan(one, ring.init(), chunks)
    return _joined(outs, prompt)


def _lengths(prompt: Chunk) -> Array:
    if prompt.lengths is not None:
        return prompt.lengths
    return jnp.full(prompt.q.shape[0], prompt.count, jnp.int32)


def _split(x: Array, size: int) -> Array:
    """[B, T, ...] -> [T / size, B, size, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _joined(outs: Array, prompt: Chunk) -> Queries:
    """What `_split` did, undone."""
    return jnp.moveaxis(outs, 0, 1).reshape(prompt.q.shape)
