# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A layer whose KV heads fall into groups, each with a policy of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxkv.cache import store as stores
from jaxkv.cache.grouped import Grouped
from jaxkv.cache.slab import Slab
from jaxkv.core.errors import InputError
from jaxkv.core.typing import Queries, Rotation
from jaxkv.layers.base import Chunk, Constants, Facts, FromFull, Geometry, LayerPolicy, take_heads


@dataclasses.dataclass(frozen=True)
class HeadGroups(FromFull):
    """Gives each group of KV heads, and the query heads that read them, its own layer policy.

    The new q, k and v are brought to the groups' order, and the outputs back; a cache is never
    moved. Heads that are in order already, as in an even split, are sliced and not taken.

    Attributes:
      geometry: of the whole layer.
      groups: KV heads of each group, a partition; a group may be empty.
      layers: the policy of each, made for `part(geometry, heads)`; an empty group's is not used.
    """

    geometry: Geometry
    groups: tuple[tuple[int, ...], ...]
    layers: tuple[LayerPolicy, ...]

    def __post_init__(self) -> None:
        if sorted(head for heads in self.groups for head in heads) != list(
            range(self.geometry.num_kv_heads)
        ):
            raise InputError(
                f"the head groups {self.groups} must hold each of the {self.geometry.num_kv_heads} "
                "KV heads once"
            )
        if len(self.groups) != len(self.layers):
            raise InputError(
                f"there are {len(self.groups)} head groups and {len(self.layers)} policies; each "
                "group needs one"
            )

    def init(self) -> Grouped:
        """An empty cache for each group with heads."""
        parts, g = self._parts(), self.geometry
        names = tuple(heads for heads, _ in parts)
        if g.shards.by_heads and len(parts) == 1:  # this device's heads are named as all are
            names = (tuple(range(g.whole.num_kv_heads)),)
        return Grouped(tuple(layer.init() for _, layer in parts), names)

    def take(self, cache: Grouped, chunk: Chunk) -> tuple[Grouped, Queries]:
        """Each group takes its heads of the chunk."""
        order = head_order(self.groups, self.geometry)
        size = self.geometry.num_heads // self.geometry.num_kv_heads
        chunk = chunk.heads(order.queries, order.keys)
        slabs, outs, begin = [], [], 0
        for (heads, layer), slab in zip(self._parts(), cache.slabs, strict=True):
            end = begin + len(heads)
            mine = chunk.heads(range(begin * size, end * size), range(begin, end))
            slab, out = layer.take(slab, mine)
            slabs.append(slab)
            outs.append(out)
            begin = end
        out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=2)
        return Grouped(tuple(slabs), cache.heads), take_heads(out, order.undo)

    def from_full(
        self, empty: Grouped, kept: Any, rope: Rotation | None, constants: Constants | None
    ) -> Grouped:
        """Each group chooses from its heads."""
        slab = kept if isinstance(kept, Slab) else kept.slab
        slabs = []
        for (heads, layer), none in zip(self._parts(), empty.slabs, strict=True):
            if not isinstance(layer, FromFull):
                raise InputError(f"{type(layer).__name__} cannot choose from a full cache")
            k, v = stores.heads((slab.k, slab.v), heads)
            mine = dataclasses.replace(slab, k=k, v=v)
            slabs.append(layer.from_full(none, mine, rope, constants))
        return Grouped(tuple(slabs), empty.heads)

    def facts(self) -> Facts:
        """What the groups say, and what each head keeps in the model's order of heads."""
        keeps, every = [0] * self.geometry.num_kv_heads, []
        for heads, layer in self._parts():
            every.append(layer.facts())
            for head, most in zip(heads, every[-1].keeps, strict=True):
                keeps[head] = most
        return Facts(
            tuple(keeps),
            grows=any(facts.grows for facts in every),
            far=any(facts.far for facts in every),
            couples_heads=any(facts.couples_heads for facts in every),
            heads_alike=False,
        )

    def _parts(self) -> list[tuple[tuple[int, ...], LayerPolicy]]:
        """The groups that have heads."""
        return [(h, layer) for h, layer in zip(self.groups, self.layers, strict=True) if h]


def part(geometry: Geometry, heads: Sequence[int]) -> Geometry:
    """The geometry of a group: these KV heads, and the query heads that read them."""
    size = geometry.num_heads // geometry.num_kv_heads
    return dataclasses.replace(geometry, num_heads=size * len(heads), num_kv_heads=len(heads))


@dataclasses.dataclass(frozen=True)
class HeadOrder:
    """Heads group by group.

    Attributes:
      keys: KV heads.
      queries: the query heads that read them.
      undo: the order that brings query heads back.
    """

    keys: tuple[int, ...]
    queries: tuple[int, ...]
    undo: tuple[int, ...]


def head_order(groups: Sequence[Sequence[int]], geometry: Geometry) -> HeadOrder:
    """The order in which grouped caches hold a layer's heads."""
    size = geometry.num_heads // geometry.num_kv_heads
    keys = tuple(head for heads in groups for head in heads)
    queries = tuple(head * size + i for head in keys for i in range(size))
    undo = tuple(sorted(range(len(queries)), key=queries.__getitem__))
    return HeadOrder(keys, queries, undo)
