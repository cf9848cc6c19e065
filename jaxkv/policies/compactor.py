# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokens whose keys stand apart, and that the tokens around them look at."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxkv.core.errors import InputError
from jaxkv.layers.prompt import Prompt
from jaxkv.policies.scored import ScoredPolicy
from pallas_kernels.precision import einsum

RIDGE = 0.01
# Of the trace, beside which float32 cannot factor 48 dimensions.
LEAST = 4e-6


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Compactor(ScoredPolicy):
    """Compactor (arXiv 2507.08143): leverage of keys, and attention that is not causal.

    Of the prompt without its sinks and its window:

    * leverage, x (X'X + ridge)^-1 x, of the rows x of X: un-rotated keys less their mean, projected
      on `sketch` random directions;
    * attention within chunks of `chunk` tokens, of every query to every key, later ones too, and
      not scaled by 1 / sqrt(H), as in the published results; its sums over the queries, mean over
      the query heads, times the norm of the value, and the mean of three neighbours.

    Both less their mean and over their deviation, among all heads of a layer; `blend` of the first
    is added to the second.

    Beside kvpress: a row of a batch does not look at the others; one set of directions serves all
    heads, from a seed; and `blend` is no share of what is dropped unless it is given so.

    What was kept of earlier prompts, whose queries are gone, is as good as this prompt's average,
    the best of it first. ALiBi and soft caps are left out of the attention. The prompt's queries
    and un-rotated keys of one layer are held until it has chosen.

    Attributes:
      budget, sinks, window, decode_room, allocation, table, floor: as for `ScoredPolicy`.
      blend: weight of the leverage.
      chunk: tokens that look at each other.
      sketch: directions.
      seed: that they are drawn from.
    """

    needs = ("queries", "unrotated_keys")
    agnostic = True

    sinks: int = 8
    window: int = 4
    allocation: str = "ada"
    blend: float = 0.35
    chunk: int = 256
    sketch: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chunk", "sketch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def score(self, prompt: Prompt) -> Array:
        """[B, K, S], 0 on average."""
        part = prompt.new & prompt.valid & (prompt.positions >= self.sinks)
        keys = prompt.unrotated_keys().astype(jnp.float32)
        seen = self._columns(prompt.queries(), prompt.keys, part)
        seen = seen * jnp.linalg.norm(prompt.values.astype(jnp.float32), axis=-1)
        sides = jnp.pad(jnp.where(part, seen, 0), ((0, 0), (0, 0), (1, 1)))
        seen = (sides[..., :-2] + sides[..., 1:-1] + sides[..., 2:]) / 3
        scores = self.blend * _standard(self._leverage(keys, part), part) + _standard(seen, part)
        return jnp.where(part, scores, 0)

    def _leverage(self, keys: Array, part: Array) -> Array:
        """Of the tokens that are part: [B, K, S]."""
        there = part[..., None]
        count = jnp.sum(there.astype(jnp.float32), axis=2, keepdims=True)
        mean = jnp.sum(jnp.where(there, keys, 0), axis=2, keepdims=True) / jnp.maximum(count, 1)
        drawn = jax.random.normal(
            jax.random.key(self.seed), (keys.shape[-1], self.sketch), jnp.float32
        )
        x = einsum(
            "bksh,hr->bksr", jnp.where(there, keys - mean, 0), drawn / math.sqrt(self.sketch)
        )
        gram = einsum("bksr,bksq->bkrq", x, x)
        trace = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None]
        ridge = jnp.maximum(RIDGE, LEAST * trace)
        factor = jnp.linalg.cholesky(
            gram + ridge * jnp.eye(self.sketch, dtype=jnp.float32)[None, None]
        )
        # With G = L L', x G^-1 x' is the square of y in y L' = x.
        y = lax.linalg.triangular_solve(factor, x, lower=True, transpose_a=True)
        return jnp.sum(jnp.square(y), axis=-1)

    def _columns(self, q: Array, k: Array, part: Array) -> Array:
        """Attention that each key receives within its chunk, mean over query heads: [B, K, S].

        Args:
          q: [B, N, S, H].
          k: [B, K, S, H].
          part: bool [B, K, S], the same in all heads, one run of slots.
        """
        b, heads, slots, dim = k.shape
        size = min(self.chunk, slots)
        there = part[:, 0]
        first = jnp.argmax(there, axis=-1).astype(jnp.int32)[:, None]

        def of(x: Array, at: Array, axis: int) -> Array:
            """Slots int32 [B, C] of an axis."""
            shape = [b if i == 0 else at.shape[1] if i == axis else 1 for i in range(x.ndim)]
            return jnp.take_along_axis(x, at.reshape(shape), axis=axis, mode="clip")

        def chunk(index: Array) -> Array:
            at = first + index * size + jnp.arange(size, dtype=jnp.int32)[None]
            mine = of(there, at, 1) & (at < slots)
            mine = mine[:, None, None]
            queries, keys = (of(x, at, 2).astype(jnp.float32) for x in (q, k))
            queries = queries.reshape(b, heads, -1, size, dim)
            products = einsum("bkgqh,bkch->bkgqc", queries, keys)
            products = jnp.where(mine[..., None, :], products, jnp.finfo(jnp.float32).min)
            weights = jnp.where(mine[..., None], jax.nn.softmax(products, axis=-1), 0)
            return jnp.mean(jnp.sum(weights, axis=3), axis=2)

        sums = lax.map(chunk, jnp.arange(-(-slots // size), dtype=jnp.int32))
        sums = jnp.moveaxis(sums, 0, 2).reshape(b, heads, -1)
        return of(sums, jnp.arange(slots, dtype=jnp.int32)[None] - first, 2)


def _standard(x: Array, part: Array) -> Array:
    """Less the mean and over the deviation of a row's tokens that are part: [B, K, S]."""

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(part, x, 0), axis=(1, 2), keepdims=True)

    count = total(jnp.ones_like(x))
    off = x - total(x) / jnp.maximum(count, 1)
    deviation = jnp.sqrt(total(jnp.square(off)) / jnp.maximum(count - 1, 1))
    return off / jnp.maximum(deviation, 1e-6)
