# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Of a program that many devices run together, what one of them holds and asks of the others.

Every device runs the program of a smaller model. What it needs of the others is written out, a line
for each collective, and nothing is left to a partitioner.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

DATA, MODEL = "data", "model"  # axes of a mesh
LAYOUTS = ("heads", "rows", "slots")
T = TypeVar("T")  # a pytree
BLOCK = 512  # the most slots that follow one another on one device


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Shards:
    """How a model and its cache lie over devices.

    Attributes:
      data: devices that rows of a batch are shared out over.
      model: devices that weights are shared out over.
      layout: what of a cache is shared out over these: its KV heads, its rows, or the slots of what
        keeps everything.
    """

    data: int = 1
    model: int = 1
    layout: str = "heads"

    @property
    def by_heads(self) -> bool:
        """Whether each device has KV heads of its own."""
        return self.model > 1 and self.layout == "heads"

    @property
    def by_rows(self) -> bool:
        """Whether each device has rows of its own."""
        return self.model > 1 and self.layout == "rows"

    @property
    def by_slots(self) -> bool:
        """Whether each device has slots of its own."""
        return self.model > 1 and self.layout == "slots"

    def total(self, x: Array) -> Array:
        """The sum over the devices that share the weights."""
        return x if self.model == 1 else lax.psum(x, MODEL)

    def gathered(self, x: Array, axis: int = -1) -> Array:
        """Their parts of an axis, one after the other."""
        return x if self.model == 1 else lax.all_gather(x, MODEL, axis=axis % x.ndim, tiled=True)

    def mine(self, x: Array, axis: int) -> Array:
        """This device's part of an axis."""
        if self.model == 1:
            return x
        size = x.shape[axis] // self.model
        begin = lax.axis_index(MODEL).astype(jnp.int32) * size
        return lax.dynamic_slice_in_dim(x, begin, size, axis)

    def own_rows(self, tree: T) -> T:
        """Of arrays [B, ..], the rows that this device's cache has."""
        return jax.tree.map(lambda x: self.mine(x, 0), tree) if self.by_rows else tree

    def sized(self, x: Array, size: int, axis: int = -1) -> Array:
        """An axis that has `size` entries: gathered where it is a part, sliced where it is all."""
        if x.shape[axis] < size:
            return self.gathered(x, axis)
        return x if x.shape[axis] == size else self.mine(x, axis % x.ndim)

    def looked_up(self, table: Array, ids: Array, rows: int) -> Array:
        """Rows [.., D] of a table [V, D] that has `rows` of them on all devices together."""
        if table.shape[0] == rows:
            return table[ids]
        index = ids - lax.axis_index(MODEL).astype(ids.dtype) * table.shape[0]
        here = (index >= 0) & (index < table.shape[0])
        found = table[jnp.where(here, index, 0)]
        return self.total(jnp.where(here[..., None], found, jnp.zeros((), found.dtype)))

    def merged(self, out: Array, lse: Array) -> tuple[Array, Array]:
        """Attention over the slots of all devices, from that over each: see `softmax.merge`.

        Args:
          out: [..., H], 0 where a device has no visible key.
          lse: float32 [...], -inf there.
        """
        top = lax.pmax(lse, MODEL)
        top = jnp.where(jnp.isneginf(top), 0.0, top)
        weight = jnp.exp(lse - top)[..., None]
        both = jnp.concatenate([out.astype(jnp.float32) * weight, weight], axis=-1)
        both = lax.psum(both, MODEL)
        total = both[..., -1:]
        summed = both[..., :-1] / jnp.where(total == 0, 1.0, total)
        return summed.astype(out.dtype), jnp.log(total[..., 0]) + top


ONE = Shards()


def block_of(slots: int, model: int) -> int:
    """Slots of a block, of which the first lies on the first device, and so on in turn.

    A short context is so on all devices alike, and not on the first. 0 where so many slots cannot
    be shared out evenly.
    """
    size = slots // model
    if slots % model or size % 8:
        return 0
    return min(BLOCK, size & -size)
