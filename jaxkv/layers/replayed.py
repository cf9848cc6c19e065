# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What each kept token is worth to a model that repeats its prompt (KVzip, arXiv 2505.23416).

The prompt has been read with everything kept. It is repeated a part at a time, on top of what was
kept, which is only looked at: the keys of the repetition are thrown away. A token's score is the
most attention that it gets while its part is repeated, in a softmax over the tokens that stand
before the user's text, those of the part, and what was repeated of it so far.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxkv.attention import attend_chunk, attend_slots
from jaxkv.cache import store as stores
from jaxkv.cache.slab import Slab
from jaxkv.core.scoring import bent
from jaxkv.core.typing import Queries
from jaxkv.layers.base import Chunk, Constants
from pallas_kernels.precision import einsum
from pallas_kernels.score_bias import bend
from pallas_kernels.softmax import merge

QUERIES = 128  # that are scored at once


@dataclasses.dataclass(frozen=True)
class Replay:
    """How a prompt is repeated.

    Attributes:
      part: tokens that are repeated at a time.
      outputs: whether attention is weighed by what it moves: the length of the value's output over
        that of the state that asks (KVzip+; arXiv 2601.07891, section 3.1).
    """

    part: int = 2048
    outputs: bool = False


@flax.struct.dataclass
class Part:
    """Which slots of each row are repeated now.

    Attributes:
      begin: int32 [B], the first.
      count: int32 [B], how many.
      prefix: int32 [B], first slots that stand before the user's text.
      prefixes: the most of them, static.
      size: the most that are repeated, static.
    """

    begin: Array
    count: Array
    prefix: Array
    prefixes: int = flax.struct.field(pytree_node=False)
    size: int = flax.struct.field(pytree_node=False)


def replay(
    kept: Slab, scores: Array, chunk: Chunk, part: Part, outputs: bool
) -> tuple[Array, Queries]:
    """Repeats a part in one layer.

    Args:
      kept: everything of the prompt, slot p holding position p, P = 1.
      scores: float32 [B, K, S] so far.
      chunk: the tokens that ask for the part and repeat it.
      part: which it is.
      outputs: see `Replay`; the chunk then has its hidden states and constants.

    Returns:
      The scores, and out [B, T, N, H], which saw all that was kept.
    """
    at = chunk.positions(kept)
    q, k = chunk.rotated(at)
    rope = chunk.rope
    used = jnp.max(kept.seen)
    seen = merge(
        attend_slots(q, kept.k, kept.v, at, kept.pos, rope, num_slots=used),
        attend_chunk(q, k, chunk.v, at, at, rope, window=None),
    )
    out, _ = chunk.with_sink(*seen)
    size = min(part.size, kept.slots)
    # A slice that would reach beyond the end begins earlier.
    first = jnp.minimum(part.begin, kept.slots - size)
    keys, values = stores.numbers(kept.k), stores.numbers(kept.v)
    slot = first[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
    begin, end = part.begin[:, None], (part.begin + part.count)[:, None]
    mine = (slot >= begin) & (slot < end)
    before = jnp.arange(part.prefixes, dtype=jnp.int32)[None]
    # Of a prompt without a template the first tokens are of its first part too, and count once.
    other = (before < part.prefix[:, None]) & ((before < begin) | (before >= end))
    before = jnp.where(other, before, -1)
    subset = jnp.concatenate(
        [_run(keys, first, size), keys[:, :, : part.prefixes], k.swapaxes(1, 2)], axis=2
    )
    pos = jnp.concatenate([jnp.where(mine, slot, -1), before, at], axis=1)
    weigh = None
    if outputs:
        assert chunk.hidden is not None and chunk.constants is not None
        moved = output_lengths(_run(values, first, size), chunk.constants)
        asking = jnp.linalg.norm(chunk.hidden.astype(jnp.float32), axis=-1)
        weigh = moved, 1 / jnp.maximum(asking, jnp.finfo(jnp.float32).tiny)
    most = _most(q, at, subset, pos, size, weigh, chunk)
    most = jnp.where(mine[:, None], most, 0)
    old = _run(scores[..., None], first, size)[..., 0]

    def put(row: Array, new: Array, begin: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(row, new, begin, axis=1)

    return jax.vmap(put)(scores, jnp.maximum(old, most), first), out


def output_lengths(values: Array, constants: Constants) -> Array:
    """How far a value of weight 1 moves the output of each query head: |W v|.

    By the Gram matrices of the output projection: the length of v in the metric of W W^T, which is
    D / H times cheaper than the output itself.

    Args:
      values: [B, K, S, H].
      constants: of the layer.

    Returns:
      float32 [B, K, G, S].
    """
    wo = constants.wo.astype(jnp.float32)
    gram = einsum("nhd,nid->nhi", wo, wo).reshape(values.shape[1], -1, *wo.shape[1:2] * 2)
    values = values.astype(jnp.float32)
    square = jnp.sum(einsum("bksh,kghi->bkgsi", values, gram) * values[:, :, None], axis=-1)
    return jnp.sqrt(jnp.maximum(square, 0))


def _run(x: Array, first: Array, size: int) -> Array:
    """Slots [first, first + size) of each row: [B, K, S, H] -> [B, K, size, H]."""

    def of_row(row: Array, begin: Array) -> Array:
        return lax.dynamic_slice_in_dim(row, begin, size, axis=1)

    return jax.vmap(of_row)(x, first)


def _most(
    q: Queries, at: Array, keys: Array, pos: Array, size: int,
    weigh: tuple[Array, Array] | None, chunk: Chunk,
) -> Array:  # fmt: skip
    """The most attention that the first `size` keys get from any query of their group.

    Args:
      q: [B, T, N, H], rotated to `at`.
      at: int32 [B, T], -1 for padding.
      keys: [B, K, C, H], rotated.
      pos: int32 [B, C], -1 for none.
      size: keys that are scored; the others are of the softmax.
      weigh: factors of the keys float32 [B, K, G, size], and of the queries [B, T].
      chunk: whose queries they are.

    Returns:
      float32 [B, K, size].
    """
    batch, count, _, dim = q.shape
    heads = keys.shape[1]
    wide = -(-count // QUERIES) * QUERIES
    q = jnp.pad(q, ((0, 0), (0, wide - count), (0, 0), (0, 0)))
    at = jnp.pad(at, ((0, 0), (0, wide - count)), constant_values=-1)
    q = q.reshape(batch, wide, heads, -1, dim)
    bending = bent(chunk.rope)
    slopes = bending["slopes"]
    steep = None if slopes is None else slopes.reshape(1, heads, -1, 1, 1)
    sink = None if chunk.sink_logits is None else chunk.sink_logits.reshape(1, heads, -1, 1, 1)

    def block(index: Array, most: Array) -> Array:
        def some(x: Array) -> Array:
            return lax.dynamic_slice_in_dim(x, index * QUERIES, QUERIES, axis=1)

        here = some(at)
        scores = einsum("bqkgh,bkch->bkgqc", some(q), keys) / dim**0.5
        distance = (here[:, :, None] - pos[:, None])[:, None, None]
        scores = bend(scores, distance, steep, bending["soft_cap"])
        seen = (pos >= 0)[:, None] & (pos[:, None] <= here[:, :, None])
        scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
        total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        if sink is not None:
            total = jnp.logaddexp(total, sink.astype(jnp.float32))
        total = jnp.where(jnp.isneginf(total), 0, total)
        shares = jnp.exp(scores[..., :size] - total)
        if weigh is not None:
            keyed, asked = weigh
            asked = jnp.pad(asked, ((0, 0), (0, wide - count)))
            shares = shares * keyed[:, :, :, None] * some(asked)[:, None, None, :, None]
        return jnp.maximum(most, jnp.max(shares, axis=(2, 3)))

    none = jnp.zeros((batch, heads, size), jnp.float32)
    return lax.fori_loop(jnp.int32(0), jnp.int32(wide // QUERIES), block, none)
