# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""DuoAttention's two streams: a teacher that sees everything, and a blend of it with streaming.

Policies are static and caches are data, so a gate and the teacher's output travel as a layer's
cache, and both streams run through the decoder's layer as it is. Each kind of attention is that of
the layer which later deploys it: `FullLayer` and `RingLayer`, with absolute positions in both.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.core.errors import InputError
from jaxkv.core.typing import Hidden, Lengths, Params, Queries, Tokens
from jaxkv.layers.base import Chunk, Facts, Geometry, LayerCache, LayerPolicy
from jaxkv.layers.full import FullLayer
from jaxkv.layers.ring import RingLayer
from jaxkv.models.block import norm
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import embed, geometry, run_layer


@flax.struct.dataclass
class Blend:
    """What a layer of the mixed stream is given.

    Attributes:
      gate: float32 [K], in [0, 1]: the teacher's share of each KV head's output.
      taught: [B, T, N, H], the teacher's attention output in this layer.
    """

    gate: Array
    taught: Array


@dataclasses.dataclass(frozen=True)
class TeacherLayer:
    """A `FullLayer` whose cache is forgotten, and whose output [B, T, N, H] is kept instead.

    Attributes:
      full: what attends.
      chunk: tokens that attend at a time; it must divide a prompt.
    """

    full: FullLayer
    chunk: int

    def init(self) -> LayerCache:
        """An empty cache."""
        return self.full.init()

    def take(self, cache: LayerCache, chunk: Chunk) -> tuple[Queries, Queries]:
        """Attends to everything; gives the output twice."""
        out = _in_chunks(self.full, self.chunk, cache, chunk)
        return out, out

    def facts(self) -> Facts:
        """As the layer."""
        return self.full.facts()


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
    """`gate * taught + (1 - gate) * streaming`, before the output projection.

    Attributes:
      ring: the streaming half.
      chunk: tokens that attend at a time; it must divide a prompt.
    """

    ring: RingLayer
    chunk: int

    def init(self) -> Blend:
        """Open gates, and a teacher that has said nothing yet."""
        g = self.ring.geometry
        shape = g.batch_size, g.max_length, g.num_heads, g.head_dim
        return Blend(jnp.ones(g.num_kv_heads, jnp.float32), jnp.zeros(shape, g.dtype))

    def take(self, cache: Blend, chunk: Chunk) -> tuple[Blend, Queries]:
        """The streaming half attends to this stream's own keys, to sinks and a window of them."""
        own = _in_chunks(self.ring, self.chunk, self.ring.init(), chunk)
        gate = jnp.repeat(cache.gate, chunk.q.shape[2] // chunk.k.shape[2])[None, None, :, None]
        taught, streamed = cache.taught.astype(jnp.float32), own.astype(jnp.float32)
        return cache, (gate * taught + (1 - gate) * streamed).astype(chunk.q.dtype)

    def facts(self) -> Facts:
        """Of the streaming half."""
        return self.ring.facts()


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
    rows, count = tokens.shape
    shapes = geometry(config, rows, count, params["embed"].dtype.name)
    if config.windows:
        raise InputError("the model has layers with a window of their own; gates need equal layers")
    rope = config.scoring(0)
    # Neither policy differs from layer to layer.
    teacher, pupil = TeacherLayer(FullLayer(shapes), policy.chunk), policy.at(0, shapes)

    def layer(streams: tuple[Hidden, Hidden], own: tuple[Params, Array]) -> tuple[Any, None]:
        (full, mixed), (weights, gate) = streams, own
        full, taught = run_layer(weights, config, teacher, rope, full, teacher.init(), lengths)
        mixed, _ = run_layer(weights, config, pupil, rope, mixed, Blend(gate, taught), lengths)
        return (full, mixed), None

    x = embed(params, config, tokens)
    streams, _ = jax.lax.scan(layer, (x, x), (params["layers"], gates))
    full, mixed = (norm(x, params, "final_norm", config).astype(jnp.float32) for x in streams)
    return full, mixed


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


def _in_chunks(layer: LayerPolicy, size: int, cache: LayerCache, prompt: Chunk) -> Queries:
    """A whole prompt through a layer, `size` tokens at a time: out [B, T, N, H].

    A ring then compares T x (size + sinks + recent) keys instead of T x T. On the way back every
    chunk is computed again from its q, k and v, so that no scores are kept.
    """
    batch, total = prompt.q.shape[:2]
    count, lengths = total // size, prompt.lengths
    if lengths is None:
        lengths = jnp.full(batch, total, jnp.int32)
    starts = jnp.arange(count, dtype=jnp.int32)[:, None] * size
    valid = jnp.clip(lengths[None] - starts, 0, size)  # [chunks, B]

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # within a scan there is none
    def one(cache: LayerCache, chunk: Chunk) -> tuple[LayerCache, Queries]:
        return layer.take(cache, chunk)

    q, k, v = (split(x) for x in (prompt.q, prompt.k, prompt.v))
    parts = Chunk(q, k, v, valid, prompt.rope, decoding=False)
    _, outs = jax.lax.scan(one, cache, parts)
    return jnp.moveaxis(outs, 0, 1).reshape(prompt.q.shape)
