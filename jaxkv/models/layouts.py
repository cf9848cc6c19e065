# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How caches lie over a mesh, and which of the three ways suits a policy.

What is held where is not written down a second time: a device's part of a cache is the cache that
the policy makes for the device's part of the model, and the axes in which the two differ are those
that are shared out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jaxkv.cache.bytes import nbytes
from jaxkv.cache.geometry import part_of
from jaxkv.core.errors import InputError
from jaxkv.core.hosts import fetch
from jaxkv.core.shards import DATA, LAYOUTS, MODEL, Shards, block_of
from jaxkv.layers.base import Geometry
from jaxkv.models.mesh import Meshed, check_layout, on_all, spread
from jaxkv.models.plan import Plan

SLOTS = 2  # the axis
Planner = Callable[[Geometry], Any]  # what a policy keeps of streams of a geometry; has `init`


def settled(config: Meshed, planner: Planner, geometry: Geometry) -> Meshed:
    """The model with the layout that was asked for, or with the one that suits.

    That is by heads where they divide and the policy keeps them alike and apart; else by slots
    where it keeps everything somewhere; else by rows where the batch divides; else every device has
    the whole cache.

    Args:
      config: the model.
      planner: gives what the policy keeps of a geometry.
      geometry: of the cache.

    Raises:
      InputError: the layout would be another result, or cannot be; says what would work.
    """
    check_layout(config.layout)
    if geometry.batch_size % config.mesh.shape[DATA]:
        raise InputError(
            f"the batch is {geometry.batch_size}; it must be a multiple of data="
            f"{config.mesh.shape[DATA]} of the mesh"
        )
    if config.layout is None:
        layout = suiting(config, planner, geometry)
        if layout is None:
            why = "; ".join(f"by {x}, {against(x, config, planner, geometry)}" for x in LAYOUTS)
            raise InputError(f"the cache cannot lie over model={config.mesh.shape[MODEL]}: {why}")
        return config.with_layout(layout)
    why = against(config.layout, config, planner, geometry)
    if why is not None:
        fits = [x for x in LAYOUTS if against(x, config, planner, geometry) is None]
        allowed = f"; {' or '.join(fits)} would work" if fits else ""
        raise InputError(f"cache-layout is {config.layout!r}, and {why}{allowed}")
    return config


def suiting(config: Meshed, planner: Planner, geometry: Geometry) -> str | None:
    """The layout that suits, if the cache can lie over the mesh at all; see `settled`."""
    possible = [x for x in LAYOUTS if against(x, config, planner, geometry) is None]
    if "slots" in possible and "heads" not in possible:
        _, shares = _apart(config, "slots")
        if nbytes(_made(planner, part_of(geometry, shares))) < nbytes(_made(planner, geometry)):
            return "slots"
    return next((layout for layout in ("heads", "rows", "slots") if layout in possible), None)


def against(layout: str, config: Meshed, planner: Planner, geometry: Geometry) -> str | None:
    """Why a cache cannot lie in a layout; None if it can."""
    devices, planned = config.mesh.shape[MODEL], planner(geometry)
    if devices == 1:
        return None
    rows = devices * config.mesh.shape[DATA]
    if layout == "rows":
        if not isinstance(planned, Plan):
            return "the policy runs the model again over whole batches"
        if geometry.batch_size % rows:
            return f"the batch of {geometry.batch_size} does not divide by {rows} devices"
        return None
    if layout == "slots":
        if isinstance(planned, Plan) and planned.repeats is not None:
            return "the policy reads a prompt twice"
        if planned.grows and not block_of(geometry.max_length, devices):
            return f"max-length {geometry.max_length} is not a multiple of {8 * devices}"
        return None
    if geometry.num_kv_heads % devices:
        return f"{geometry.num_kv_heads} KV heads do not divide by model={devices}"
    if config.alibi:
        return "the model's scores depend on the number of a head"
    if not isinstance(planned, Plan):
        return None
    if planned.couples_heads:
        return "the policy's heads choose together"
    if not all(facts.heads_alike for facts in planned.facts):
        return "the policy keeps some heads in another way than others"
    try:
        planner(part_of(geometry, Shards(model=devices)))
    except InputError as error:
        return f"a part of the heads has no policy ({error})"
    return None


def _apart(config: Meshed, layout: str) -> tuple[Shards, Shards]:
    """The shares of either axis alone."""
    shape = config.mesh.shape
    return Shards(data=shape[DATA], layout=layout), Shards(model=shape[MODEL], layout=layout)


def _made(planner: Planner, geometry: Geometry) -> Any:
    return jax.eval_shape(planner(geometry).init)


def cache_specs(config: Meshed, planner: Planner, geometry: Geometry) -> Any:
    """How each array of a cache lies, in the cache's tree; its layout is settled."""
    whole = _made(planner, geometry)
    apart = [_made(planner, part_of(geometry, x)) for x in _apart(config, config.lies.layout)]
    sizes = config.mesh.shape
    return specs_of(whole, {DATA: (apart[0], sizes[DATA]), MODEL: (apart[1], sizes[MODEL])})


def specs_of(whole: Any, parts: Mapping[str, tuple[Any, int]]) -> Any:
    """How arrays lie, from what a device has of them.

    Args:
      whole: a tree of shapes.
      parts: of axes of a mesh, the same tree as a device has it where that axis alone shares it
        out, and the size of the axis.

    Returns:
      The tree, with specs.
    """

    def of(x: Any, *shares: Any) -> PartitionSpec:
        found = []
        for axis, size in enumerate(x.shape):
            names = []
            for (name, (_, devices)), share in zip(parts.items(), shares, strict=True):
                assert share.shape[axis] in (size, size // devices), (x.shape, share.shape)
                names += [name] * (share.shape[axis] != size)
            found.append(tuple(names) if len(names) > 1 else names[0] if names else None)
        return PartitionSpec(*found)

    return jax.tree.map(of, whole, *(part for part, _ in parts.values()))


def abstract(config: Meshed, planner: Planner, geometry: Geometry) -> Any:
    """Shapes of a cache, and how each array of it lies; nothing is allocated."""
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(config.mesh, spec)
        ),
        _made(planner, geometry),
        cache_specs(config, planner, geometry),
    )


def begun(config: Meshed, planner: Planner, geometry: Geometry) -> Any:
    """An empty cache, each device's part made by itself: the whole is nowhere."""
    specs = cache_specs(config, planner, geometry)
    mine = planner(part_of(geometry, config.lies))
    return jax.jit(on_all(mine.init, config, (), specs))()


def dealt(config: Meshed, planner: Planner, cache: Any, rows: int) -> Any:
    """A cache of one device, over the mesh, as the first of `rows` rows; the others are empty."""
    devices, geometry = config.mesh.shape[MODEL], cache.geometry
    missing = rows - geometry.batch_size
    geometry = dataclasses.replace(geometry, batch_size=rows)
    specs = cache_specs(config, planner, geometry)
    if missing:
        empty = planner(dataclasses.replace(geometry, batch_size=missing)).init()
        cache = jax.tree.map(
            lambda *x: np.concatenate(x), *(jax.tree.unflatten(jax.tree.structure(specs), parts)
            for parts in (jax.tree.leaves(cache), jax.tree.leaves(empty)))
        )  # fmt: skip

    def put(x: Any, spec: PartitionSpec) -> Array:
        found = np.asarray(x)
        if len(spec) > SLOTS and spec[SLOTS] == MODEL:
            found = _in_turn(found, devices)
        return spread(found, NamedSharding(config.mesh, spec))

    leaves = zip(jax.tree.leaves(cache), jax.tree.leaves(specs), strict=True)
    return jax.tree.unflatten(jax.tree.structure(specs), [put(*pair) for pair in leaves])


def gathered(config: Any, cache: Any, rows: int | None = None) -> Any:
    """A cache of a mesh as it lies on one device, in the host's memory.

    Args:
      config: the model's.
      cache: any; of a model on one device it is given back as it is.
      rows: its first ones, if not all are wanted.
    """
    if not isinstance(config, Meshed):
        return cache

    def take(x: Array) -> np.ndarray:
        found, how = fetch(x), x.sharding
        spec = how.spec if isinstance(how, NamedSharding) else PartitionSpec()
        if len(spec) > SLOTS and spec[SLOTS] == MODEL:
            found = _in_order(found, config.mesh.shape[MODEL])
        return found[:rows]

    taken = jax.tree.map(take, cache)
    size = rows or cache.geometry.batch_size
    whole = dataclasses.replace(cache.geometry, batch_size=size)
    return dataclasses.replace(taken, geometry=whole)


def _in_turn(x: np.ndarray, devices: int) -> np.ndarray:
    """Slots [0, S) as blocks that lie on each device in turn."""
    block = block_of(x.shape[SLOTS], devices)
    parts = x.reshape(*x.shape[:SLOTS], -1, devices, block, *x.shape[SLOTS + 1 :])
    return parts.swapaxes(SLOTS, SLOTS + 1).reshape(x.shape)


def _in_order(x: np.ndarray, devices: int) -> np.ndarray:
    """The inverse of `_in_turn`."""
    block = block_of(x.shape[SLOTS], devices)
    parts = x.reshape(*x.shape[:SLOTS], devices, -1, block, *x.shape[SLOTS + 1 :])
    return parts.swapaxes(SLOTS, SLOTS + 1).reshape(x.shape)
