# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys and values of heads whose budgets are only known with the input: blocks of one pool."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.cache.exported import exportable
from jaxkv.cache.packed import zeros
from jaxkv.cache.slab import Slab
from jaxkv.cache.store import Packed


@exportable
@flax.struct.dataclass
class Pool:
    """M blocks of C slots, S in all; each belongs to one KV head, and which it is is data.

    The slots lie in one row: few of them a block would leave a TPU's tiles half empty.

    Attributes:
      k: [B, S, H], rotated at write; or `Packed`, its arrays without the axis of heads.
      v: [B, S, H], as `k`.
      pos: int32 [B, S], absolute position of the token in each slot, -1 for an empty one.
      owner: int32 [B, M], the KV head of each block.
      heads: K.
    """

    k: Array | Packed
    v: Array | Packed
    pos: Array
    owner: Array
    heads: int = flax.struct.field(pytree_node=False)


def empty_pool(batch: int, heads: int, blocks: int, size: int, head_dim: int, dtype: str) -> Pool:
    """A pool with no tokens, whose blocks belong to the first head."""
    shape = batch, blocks * size
    return Pool(
        k=zeros((*shape, head_dim), dtype),
        v=zeros((*shape, head_dim), dtype),
        pos=jnp.full(shape, -1, jnp.int32),
        owner=jnp.zeros((batch, blocks), jnp.int32),
        heads=heads,
    )


def owned_positions(pool: Pool) -> Array:
    """Positions as each head sees the pool: int32 [B, K, S], -1 in blocks of other heads."""
    owner = jnp.repeat(pool.owner, pool.pos.shape[1] // pool.owner.shape[1], axis=1)
    mine = owner[:, None] == jnp.arange(pool.heads, dtype=jnp.int32)[None, :, None]
    return jnp.where(mine, pool.pos[:, None], -1)


def as_slab(pool: Pool, seen: Array) -> Slab:
    """The pool as a slab in which every head has room for all of it: K times the memory."""

    def spread(x: Array) -> Array:
        return jnp.broadcast_to(x[:, None], (x.shape[0], pool.heads, *x.shape[1:]))

    k, v = jax.tree.map(spread, (pool.k, pool.v))
    return Slab(k, v, owned_positions(pool), seen)


def fill(slab: Slab, order: Array, caps: Array, blocks: int, size: int) -> Pool:
    """Moves the first `caps` slots of each head, by `order`, into blocks.

    Args:
      slab: S slots, P = K.
      order: int32 [B, K, R], slots, best first.
      caps: int32 [B, K], how many of them each head keeps, at most R; their blocks must fit.
      blocks: M.
      size: C.
    """
    batch, heads, slots = slab.pos.shape
    ends = jnp.cumsum(-(-caps // size), axis=1, dtype=jnp.int32)  # blocks up to and with each head
    block = jnp.arange(blocks, dtype=jnp.int32)
    # [B, M]; K where none
    owner = jnp.sum(block[None, None] >= ends[:, :, None], axis=1, dtype=jnp.int32)
    begins = jnp.pad(ends, ((0, 0), (1, 0)))
    first = jnp.take_along_axis(begins, owner, axis=1)
    rank = (block[None] - first)[..., None] * size + jnp.arange(size, dtype=jnp.int32)[None, None]
    owner, used = jnp.minimum(owner, heads - 1), owner < heads
    held = used[..., None] & (rank < jnp.take_along_axis(caps, owner, axis=1)[..., None])
    # Which slot of which head each slot of the pool takes, among all slots of all heads.
    rank = jnp.clip(rank, 0, order.shape[-1] - 1) + owner[..., None] * order.shape[-1]
    index = jnp.take_along_axis(order.reshape(batch, -1), rank.reshape(batch, -1), axis=1)
    index = index + jnp.repeat(owner, size, axis=1) * slots

    held = held.reshape(batch, -1)

    def moved(x: Array) -> Array:
        flat, lead = x.reshape(batch, -1, *x.shape[3:]), (*index.shape, *[1] * (x.ndim - 3))
        taken = jnp.take_along_axis(flat, index.reshape(lead), axis=1)
        return jnp.where(held.reshape(lead), taken, 0)

    k, v = jax.tree.map(moved, (slab.k, slab.v))
    at = jnp.take_along_axis(slab.pos.reshape(batch, -1), index, axis=1)
    return Pool(k, v, jnp.where(held, at, -1), owner.astype(jnp.int32), heads)
