# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A full cache that also notes where each query head looks while it answers."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxkv.attention import attend_one_mass
from jaxkv.cache.slab import Slab
from jaxkv.core.typing import Queries
from jaxkv.layers.base import Cache, Chunk, Facts, Geometry, rotate
from jaxkv.layers.full import FullLayer


@flax.struct.dataclass
class Probed:
    """A full cache, and for each decoded token what HeadKV's scores are made of.

    Attributes:
      slab: the token at position p is in slot p.
      target: int32 [B, 3]: positions [begin, end) that hold the answer, and how many of the
        largest weights of a query count.
      steps: int32 [B], decoded tokens.
      mass: float32 [B, M, N], the weights inside the target among those that count, summed.
      top: int32 [B, M, N], the position of the largest weight.
    """

    slab: Slab
    target: Array
    steps: Array
    mass: Array
    top: Array


@dataclasses.dataclass(frozen=True)
class Probe:
    """`Full`, with notes. The prompt and the target are data: one program serves all of them.

    Attributes:
      steps: M, decoded tokens that are noted; later ones are not.
      most: the largest count that any target has.

    Memory: that of `Full`, and eight bytes for each query head and noted token. A query's weights
    are looked at where they arise, so there is never a matrix of them.
    """

    steps: int
    most: int

    def at(self, layer: int, geometry: Geometry) -> ProbeLayer:
        """The same for every layer."""
        del layer
        return ProbeLayer(geometry, self.steps, self.most)


@dataclasses.dataclass(frozen=True)
class ProbeLayer:
    """One layer of `Probe`. It attends as `FullLayer` does, and notes decoded tokens alone."""

    geometry: Geometry
    steps: int
    most: int

    def init(self) -> Probed:
        """An empty cache without a target."""
        g = self.geometry
        notes = (g.batch_size, self.steps, g.num_heads)
        return Probed(
            slab=FullLayer(g).init(),
            target=jnp.zeros((g.batch_size, 3), jnp.int32),
            steps=jnp.zeros((g.batch_size,), jnp.int32),
            mass=jnp.zeros(notes, jnp.float32),
            top=jnp.zeros(notes, jnp.int32),
        )

    def take(self, cache: Probed, chunk: Chunk) -> tuple[Probed, Queries]:
        """As `FullLayer`; then notes where the query of a decoded token looked."""
        at = chunk.positions(cache.slab)
        slab, out = FullLayer(self.geometry).take(cache.slab, chunk)
        cache = dataclasses.replace(cache, slab=slab)
        if not chunk.decoding:
            return cache, out
        q = rotate(chunk.rope, chunk.q, at)
        # `FullLayer` keeps the weights [B, N, S] to itself.
        _, weights = attend_one_mass(q, slab.k, slab.v, at, slab.pos, chunk.rope, chunk.sink_logits)
        return self._note(cache, weights, at[:, 0] >= 0), out

    def facts(self) -> Facts:
        """Everything."""
        return FullLayer(self.geometry).facts()

    def _note(self, cache: Probed, weights: Array, active: Array) -> Probed:
        """Notes a step's weights [B, N, S] in the rows that took one, active bool [B]."""
        largest, where = lax.top_k(weights, min(self.most, weights.shape[-1]))  # [B, N, most]
        begin, end, count = (cache.target[:, i, None, None] for i in range(3))
        rank = jnp.arange(where.shape[-1], dtype=jnp.int32)[None, None]
        hit = (where >= begin) & (where < end) & (rank < count)
        mass = jnp.sum(jnp.where(hit, largest, 0.0), axis=-1)
        row = jnp.arange(weights.shape[0])
        index = jnp.where(active, cache.steps, self.steps)  # past the end: dropped
        return dataclasses.replace(
            cache,
            steps=cache.steps + active.astype(jnp.int32),
            mass=cache.mass.at[row, index].set(mass, mode="drop"),
            top=cache.top.at[row, index].set(where[..., 0], mode="drop"),
        )


def aim(cache: Cache, target: np.ndarray) -> Cache:
    """A cache that looks for other answers: target int [B, 3], as in `Probed`."""
    # Each layer has its own copy: a cache is donated, and a buffer can be donated once.
    layers = [
        dataclasses.replace(layer, target=jnp.array(target, jnp.int32)) for layer in cache.layers
    ]
    return dataclasses.replace(cache, layers=tuple(layers))


def notes(cache: Cache, row: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What a row's first steps noted: mass float64 [L, M, N] and top int32 [L, M, N]."""
    mass = [np.asarray(layer.mass[row, :steps], np.float64) for layer in cache.layers]
    return np.stack(mass), np.stack([np.asarray(layer.top[row, :steps]) for layer in cache.layers])
