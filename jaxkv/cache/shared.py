# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One pool for all layers and heads of a model: who has how much of it is data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxkv.cache.exported import exportable
from jaxkv.cache.pool import Pool
from jaxkv.cache.slab import Slab

_TILE = 32  # blocks that are moved at a time


@exportable
@flax.struct.dataclass
class Shared:
    """What one layer has, beside its blocks of the model's pool.

    Attributes:
      ring: the newest tokens, the same for every head.
      begins: int32 [B, K + 1], the first block of each head, and the one after the last's.
      counts: int32 [B, K], tokens in them.
      pool: of the model, while the layer runs; else None: `Cache.pool` holds it.
    """

    ring: Slab
    begins: Array
    counts: Array
    pool: Pool | None = None

    @property
    def span(self) -> tuple[Array, Array]:
        """The layer's first block, and the one after its last: int32 [B], twice."""
        return self.begins[:, 0], self.begins[:, -1]


@flax.struct.dataclass
class Candidates:
    """A layer's prompt when it has been read, and what is known of its tokens' worth.

    Attributes:
      slab: all tokens.
      scores: float32 [B, K, S], -inf for those that may not be chosen.
      fresh: bool [B], rows in which there is to be chosen.
      layer: what the layer has beside its blocks.
    """

    slab: Slab
    scores: Array
    fresh: Array
    layer: Shared


def share_out(pool: Pool, layers: Sequence[Candidates], total: int) -> tuple[Pool, list[Shared]]:
    """Moves the best tokens of all layers and heads into one pool.

    Args:
      pool: with room for them, and for the unused end of each head's last block.
      layers: in order; in rows that are not fresh everything stays as it was.
      total: tokens to choose of each row.

    Returns:
      The pool, and what each layer has beside its blocks.
    """
    # Which are the best has no derivative.
    chosen = best_of_all([lax.stop_gradient(layer.scores) for layer in layers], total)
    size = pool.pos.shape[1] // pool.owner.shape[1]
    end = jnp.zeros_like(chosen[0][:, 0, 0], jnp.int32)
    found = []
    for taken, layer in zip(chosen, layers, strict=True):
        counts = jnp.sum(taken, axis=-1, dtype=jnp.int32)
        ends = end[:, None] + jnp.cumsum(-(-counts // size), axis=1, dtype=jnp.int32)
        begins = jnp.concatenate([end[:, None], ends], axis=1)
        end = ends[:, -1]
        fresh = layer.fresh[:, None]
        mine = dataclasses.replace(
            layer.layer,
            begins=jnp.where(fresh, begins, layer.layer.begins),
            counts=jnp.where(fresh, counts, layer.layer.counts),
        )
        order = jnp.argsort(jnp.logical_not(taken), axis=-1, stable=True).astype(jnp.int32)
        pool = _moved(pool, layer.slab, order, mine, layer.fresh, size)
        found.append(mine)
    return pool, found


def best_of_all(scores: Sequence[Array], total: int | Array) -> list[Array]:
    """Which are the `total` best of all, or all that there are; of equal ones the first.

    By halving the range in which the least of them lies, 32 times: a sort of so many would take
    longer, and more memory than they.

    Args:
      scores: of each layer, float32 [B, K, S], -inf for what may not be chosen.
      total: of each row.

    Returns:
      bool [B, K, S] of each layer.
    """
    ranks = [_rank(x) for x in scores]
    batch = scores[0].shape[0]
    none = _rank(jnp.full((1,), -jnp.inf, jnp.float32))[0]

    def above(least: Array) -> Array:
        counts = [jnp.sum(x >= least[:, None, None], axis=(1, 2), dtype=jnp.int32) for x in ranks]
        return sum(counts[1:], counts[0])

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends  # of the first `low` at least `total` are not below, of `high` less
        middle = (low & high) + ((low ^ high) >> 1)
        enough = above(middle) >= total
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.full((batch,), none + 1, jnp.int32)  # anything that may be chosen
    high = jnp.full((batch,), jnp.iinfo(jnp.int32).max, jnp.int32)
    least, _ = lax.fori_loop(0, 32, halve, (low, high))
    left = total - above(least + 1)
    taken = []
    for rank in ranks:
        better, equal = (rank > least[:, None, None]), (rank == least[:, None, None])
        flat = equal.reshape(batch, -1)
        place = jnp.cumsum(flat, axis=1, dtype=jnp.int32)
        first = flat & (place <= left[:, None])
        left = left - jnp.sum(first, axis=1, dtype=jnp.int32)
        taken.append(better | first.reshape(rank.shape))
    return taken


def _rank(x: Array) -> Array:
    """Integers in the order of the numbers: float32 -> int32."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _moved(pool: Pool, slab: Slab, order: Array, layer: Shared, fresh: Array, size: int) -> Pool:
    """A layer's tokens in its blocks; no other block of the pool changes.

    Args:
      pool: the pool.
      slab: the layer's tokens.
      order: int32 [B, K, S], slots, the chosen ones first.
      layer: how many they are, and where they go.
      fresh: bool [B], rows to move.
      size: slots of a block.
    """
    blocks, slots = pool.owner.shape[1], slab.slots
    tile = min(_TILE, blocks)
    first, last = layer.span
    last = jnp.where(fresh, last, first)

    def of_row(row: Array, pool: Pool) -> Pool:
        begins, counts = layer.begins[row], layer.counts[row]

        def some(index: Array, pool: Pool) -> Pool:
            wanted = first[row] + index * tile
            start = jnp.minimum(wanted, blocks - tile)
            block = start + jnp.arange(tile, dtype=jnp.int32)
            mine = (block >= wanted) & (block < last[row])
            owner = jnp.sum(block[:, None] >= begins[None, 1:-1], axis=1, dtype=jnp.int32)
            place = jnp.arange(size, dtype=jnp.int32)[None]
            rank = (block - begins[owner])[:, None] * size + place
            held = rank < counts[owner][:, None]
            slot = order[row, owner[:, None], jnp.clip(rank, 0, slots - 1)]
            mine_slots = jnp.broadcast_to(mine[:, None], rank.shape).reshape(-1)

            def put(old: Array, x: Array, empty: int) -> Array:
                taken = x[row, owner[:, None], slot].reshape(tile * size, *x.shape[3:])
                lead = (-1, *[1] * (taken.ndim - 1))
                taken = jnp.where(held.reshape(lead), taken, jnp.asarray(empty, taken.dtype))
                at = row, start * size, *[0] * (old.ndim - 2)
                here = lax.dynamic_slice(old, at, (1, tile * size, *old.shape[2:]))[0]
                taken = jnp.where(mine_slots.reshape(lead), taken, here)
                return lax.dynamic_update_slice(old, taken[None], at)

            k, v = (
                jax.tree.map(lambda old, x: put(old, x, 0), *both)
                for both in ((pool.k, slab.k), (pool.v, slab.v))
            )
            pos = put(pool.pos, slab.pos, -1)
            here = lax.dynamic_slice(pool.owner, (row, start), (1, tile))[0]
            owners = lax.dynamic_update_slice(
                pool.owner, jnp.where(mine, owner, here)[None], (row, start)
            )
            return dataclasses.replace(pool, k=k, v=v, pos=pos, owner=owners)

        turns = (last[row] - first[row] + tile - 1) // tile
        return lax.fori_loop(jnp.int32(0), turns, some, pool)

    return lax.fori_loop(jnp.int32(0), jnp.int32(order.shape[0]), of_row, pool)


@_moved.defjvp
def _moved_derivative(size: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """Of all blocks at once: a loop whose length is data has no derivative."""
    pool, slab, order, layer, fresh = primals
    first, last = layer.span
    block = jnp.arange(pool.owner.shape[1], dtype=jnp.int32)[None]
    mine = (block >= first[:, None]) & (block < last[:, None]) & fresh[:, None]
    begins = layer.begins[:, None, 1:-1]
    owner = jnp.sum(block[:, :, None] >= begins, axis=2, dtype=jnp.int32)  # [B, M]
    begin = jnp.take_along_axis(layer.begins, owner, axis=1)
    place = jnp.arange(size, dtype=jnp.int32)[None, None]
    rank = (block - begin)[:, :, None] * size + place
    held = rank < jnp.take_along_axis(layer.counts, owner, axis=1)[:, :, None]
    row = jnp.arange(order.shape[0], dtype=jnp.int32)[:, None, None]
    slot = order[row, owner[:, :, None], jnp.clip(rank, 0, slab.slots - 1)]

    def put(old: Array, x: Array, tail: int) -> Array:
        taken = x[row, owner[:, :, None], slot]  # [B, M, C, ..]
        lead = (*held.shape, *[1] * tail)
        taken = jnp.where(held.reshape(lead), taken, 0)
        there = jnp.broadcast_to(mine[:, :, None], held.shape).reshape(lead)
        blocks = old.reshape(*held.shape, *old.shape[2:])
        return jnp.where(there, taken, blocks).reshape(old.shape)

    def moved(old: Any, new: Any) -> Any:
        return jax.tree.map(lambda x, y: put(x, y, x.ndim - 2), old, new)

    found = _moved(pool, slab, order, layer, fresh, size)
    before, after = ((pool.k, pool.v), (slab.k, slab.v))
    changes = (tangents[0].k, tangents[0].v), (tangents[1].k, tangents[1].v)
    _, (k, v) = jax.jvp(moved, (before, after), changes)
    none = jax.tree.map(_no_tangent, found)
    return found, dataclasses.replace(none, k=k, v=v)


def _no_tangent(x: Array) -> Any:
    """Of integers."""
    return np.zeros(x.shape, jax.dtypes.float0)
