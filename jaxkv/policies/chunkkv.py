# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole chunks of a prompt, the same in every head of a layer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import entr

from jaxkv.core.errors import InputError
from jaxkv.layers.prompt import Prompt
from jaxkv.policies.snapkv import SnapKV

CORE = 4  # tokens of an important chunk that has few


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkKV(SnapKV):
    """ChunkKV (arXiv 2502.00299): what is next to each other is kept or dropped together.

    A chunk's score is the mean over its tokens of SnapKV's, and that is the mean over the heads of
    a layer: all of them keep the same. Chunks are cut by position.

    Gated by entropy, as kvpress has it: a chunk whose score is that of few tokens (no less than the
    median, with less entropy than the median) comes with its best 4 alone, which leaves room for
    more chunks; when all chunks are in, the best of the other tokens follow.

    Beside kvpress: the budget is exact, as the chunk that it cuts gives its best tokens; the last
    `window` tokens are in no chunk; and every row of a batch has chunks of its own.

    Attributes:
      budget, sinks, window, decode_room, kernel: as for `SnapKV`.
      allocation, table: as for `ScoredPolicy`; with a table, heads differ in how many they keep.
      chunk: tokens of a chunk; None is 20, or 10 where gated.
      gated: by entropy.
    """

    allocations = ("uniform", "table")
    couples_heads = True

    kernel: int = 1
    chunk: int | None = None
    gated: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"chunk is {self.chunk}; it must be at least 1")

    def score(self, prompt: Prompt) -> Array:
        """[B, K, S]: 0 for the first that is to be kept, -1 for the next, and so on."""
        size = self.chunk or (10 if self.gated else 20)
        free = prompt.valid & (prompt.positions >= self.sinks)
        there = free.astype(jnp.float32)
        token, chunk = (_numbered(x, free) for x in (prompt.positions, prompt.positions // size))
        held = _sums(there, token)
        # Heads may hold different tokens of earlier prompts; a token counts once.
        once = there / jnp.maximum(_at(held, token), 1)
        scores = jnp.where(free, super().score(prompt), 0)
        scores = _at(_sums(scores, token) / jnp.maximum(held, 1), token)
        tokens, total = _sums(once, chunk), _sums(once * scores, chunk)
        means = total / jnp.maximum(tokens, 1)
        late = jnp.zeros_like(free)
        if self.gated:
            share = scores / jnp.maximum(_at(total, chunk), jnp.finfo(jnp.float32).tiny)
            entropy = _sums(once * entr(share), chunk) / jnp.log(jnp.maximum(tokens, 2))
            count = jnp.max(jnp.where(free, chunk, -1), axis=(1, 2)) + 1
            few = (means >= _median(means, count)) & (entropy < _median(entropy, count))
            late = _at(few, chunk) & (_rank(chunk, scores) >= CORE)
        best = jnp.where(late, 0, -_at(means, chunk))
        order = jnp.lexsort((-scores, jnp.where(late, 0, chunk), best, late, ~free))
        return -jnp.argsort(order, axis=-1).astype(jnp.float32)


def _numbered(ids: Array, there: Array) -> Array:
    """Ids [B, K, S] by their rank among those of a row, of all of its heads, from 0: int32."""
    flat = jnp.where(there, ids, jnp.iinfo(jnp.int32).max).reshape(ids.shape[0], -1)
    order = jnp.argsort(flat, axis=-1)
    ordered = jnp.take_along_axis(flat, order, axis=-1)
    ranks = jnp.cumsum(jnp.diff(ordered, axis=-1) != 0, axis=-1, dtype=jnp.int32)
    ranks = jnp.pad(ranks, ((0, 0), (1, 0)))
    return jnp.take_along_axis(ranks, jnp.argsort(order, axis=-1), axis=-1).reshape(ids.shape)


def _sums(x: Array, number: Array) -> Array:
    """Of each number, over a row: [B, K, S] -> [B, K S]."""
    rows, most = x.shape[0], x[0].size

    def of_row(x: Array, number: Array) -> Array:
        return jax.ops.segment_sum(x, number, most)

    return jax.vmap(of_row)(x.reshape(rows, -1), number.reshape(rows, -1))


def _at(x: Array, number: Array) -> Array:
    """What each number has: [B, K S] and int32 [B, K, S] -> [B, K, S]."""
    flat = number.reshape(number.shape[0], -1)
    return jnp.take_along_axis(x, flat, axis=-1).reshape(number.shape)


def _median(x: Array, count: Array) -> Array:
    """Of the first `count` of each row, of an even count the lower: [B, n] -> [B, 1]."""
    there = jnp.arange(x.shape[1], dtype=jnp.int32)[None] < count[:, None]
    ordered = jnp.sort(jnp.where(there, x, jnp.inf), axis=-1)
    middle = jnp.maximum(count - 1, 0)[:, None] // 2
    return jnp.take_along_axis(ordered, middle, axis=-1)


def _rank(chunk: Array, scores: Array) -> Array:
    """Of each token among those of its chunk that its head holds, the best is 0: [B, K, S]."""
    order = jnp.lexsort((-scores, chunk))
    ordered = jnp.take_along_axis(chunk, order, axis=-1)
    at = jnp.broadcast_to(jnp.arange(chunk.shape[-1], dtype=jnp.int32)[None, None], chunk.shape)
    starts = jnp.pad(jnp.diff(ordered, axis=-1) != 0, ((0, 0), (0, 0), (1, 0)))
    start = lax.cummax(jnp.where(starts, at, 0), axis=2)
    return jnp.take_along_axis(at - start, jnp.argsort(order, axis=-1), axis=-1)
