# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One layer's cache by itself, for attention that is written elsewhere.

A `KeptLayer` is the cache and the policy that keeps it in one pytree: it goes through `jax.jit`,
`jax.lax.scan` and donation as arrays do, and what is static in it is part of its type. Where a
mesh is given, every device keeps and reads heads and rows of its own and asks nothing of others.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxkv.cache.bytes import nbytes
from jaxkv.cache.geometry import part_of
from jaxkv.cache.packed import FORMS
from jaxkv.core.errors import InputError
from jaxkv.core.scoring import Scoring
from jaxkv.core.shards import DATA, MODEL, Shards
from jaxkv.core.typing import (
    Hidden,
    Lengths,
    NewKeys,
    OutputWeight,
    Queries,
    Rotation,
    SinkLogits,
)
from jaxkv.layers.api import prefill, step
from jaxkv.layers.base import FromFull, Geometry, LayerCache, LayerPolicy, Policy, WholePrompt
from jaxkv.layers.ring import of_window
from jaxkv.models.layouts import specs_of
from jaxkv.policies.registry import check_policy_given

Maker = Callable[[Geometry], LayerPolicy]


@dataclasses.dataclass(frozen=True)
class Over:
    """How one layer's cache lies over a mesh.

    Attributes:
      mesh: the mesh.
      rows: the axis that rows are shared out over, or None.
      heads: the axis that KV heads are shared out over, with the query heads that read them.
      specs: of each array of the cache, in the order of its leaves.
    """

    mesh: Mesh
    rows: str | None
    heads: str | None
    specs: tuple[PartitionSpec, ...]


@flax.struct.dataclass
class KeptLayer:
    """One layer's cache, with the policy that keeps it: see `layer_cache`.

    Attributes:
      kept: what the policy keeps, the only arrays.
      policy: of the layer; over a mesh, of each device's part of it.
      geometry: the static shapes, of all devices together.
      over: how it lies over a mesh; None on one device.
    """

    kept: LayerCache
    policy: LayerPolicy = flax.struct.field(pytree_node=False)
    geometry: Geometry = flax.struct.field(pytree_node=False)
    over: Over | None = flax.struct.field(pytree_node=False, default=None)

    def attend(
        self,
        q: Queries,
        k: NewKeys,
        v: NewKeys,
        *,
        rope: Rotation | None = None,
        scale: float | None = None,
        soft_cap: float | None = None,
        lengths: Lengths | None = None,
        hidden: Hidden | None = None,
        wo: OutputWeight | None = None,
        sink_logits: SinkLogits | None = None,
    ) -> tuple[KeptLayer, Queries]:
        """Takes new tokens into the cache and attends.

        With T > 1 they are a prompt, or a part of one: they attend to all that is kept and to
        themselves, then a policy that selects does so. With T = 1 they are a decode step.

        Args:
          q: [B, T, N, H], un-rotated.
          k: [B, T, K, H], un-rotated.
          v: [B, T, K, H].
          rope: rotates (x [B, T, N, H], positions int32 [B, T]), as `jaxkv.Rope` or a function of
            your own; None for a model without. A program is made anew for another object.
          scale: of the products of queries and keys; None is 1 / sqrt(H).
          soft_cap: scaled scores s become cap tanh(s / cap); None leaves them.
          lengths: int32 [B], valid tokens in each row, padding on the right; None if all are. A row
            of length 0 leaves its cache as it was.
          hidden: [B, T, D], the states that q, k and v were projected from, for policies that look
            at those of a prompt.
          wo: [N, H, D], the layer's output projection, likewise.
          sink_logits: [N], of models whose heads have a learned score that goes to no key.

        Returns:
          The layer after the tokens, and out [B, T, N, H], undefined where padded; NaN in rows that
          are full, or past the last int32 position.

        Raises:
          InputError: shapes or numbers that cannot be, or nothing where the policy needs it.
        """
        self._check(q, k, v)
        q, rope = _scaled(q, scale), _capped(rope, soft_cap)
        over = self.over
        if over is not None and over.heads and isinstance(rope, Scoring) and rope.slopes:
            raise InputError("slopes depend on the number of a head; over a mesh they cannot be")

        def run(
            kept: LayerCache, q: Array, k: Array, v: Array,
            lengths: Array | None, hidden: Array | None, wo: Array | None, sinks: Array | None,
        ) -> tuple[LayerCache, Array]:  # fmt: skip
            how: dict[str, Any] = {"rope": rope, "lengths": lengths, "sink_logits": sinks}
            if q.shape[1] == 1:
                return step(self.policy, kept, q, k, v, **how)
            return prefill(self.policy, kept, q, k, v, **how, hidden=hidden, wo=wo)

        if over is not None:
            specs = jax.tree.unflatten(jax.tree.structure(self.kept), over.specs)
            tokens, rows = PartitionSpec(over.rows, None, over.heads), PartitionSpec(over.rows)
            heads = PartitionSpec(over.heads)
            run = jax.shard_map(
                run, mesh=over.mesh, check_vma=False, out_specs=(specs, tokens),
                in_specs=(specs, tokens, tokens, tokens, rows, rows, heads, heads),
            )  # fmt: skip
        kept, out = run(self.kept, q, k, v, lengths, hidden, wo, sink_logits)
        return dataclasses.replace(self, kept=kept), out

    def _check(self, q: Array, k: Array, v: Array) -> None:
        g = self.geometry
        for name, x, heads in (("q", q, g.num_heads), ("k", k, g.num_kv_heads),
                               ("v", v, g.num_kv_heads)):  # fmt: skip
            if x.ndim != 4 or (x.shape[0], *x.shape[2:]) != (g.batch_size, heads, g.head_dim):
                raise InputError(
                    f"{name} has shape {x.shape}; this cache takes "
                    f"({g.batch_size}, T, {heads}, {g.head_dim})"
                )

    def __repr__(self) -> str:
        g = self.geometry
        size = f"{nbytes(self.kept):,} bytes, {g.dtype}"
        rows = f"{g.batch_size} row{'s' * (g.batch_size > 1)}"
        return f"<KeptLayer: {type(self.policy).__name__}, {rows}, {size}>"


def layer_cache(
    policy: Policy,
    layer: int = 0,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    batch_size: int,
    max_length: int,
    num_layers: int = 1,
    dtype: Any = "float32",
    window: int | None = None,
    mesh: Mesh | None = None,
    axes: tuple[str | None, str | None] = (DATA, MODEL),
) -> KeptLayer:
    """An empty cache of one layer, for a model that is written elsewhere.

    Args:
      policy: what to keep; not one whose layers choose together, or that reads a prompt twice.
      layer: which of the model's layers it is.
      num_heads: N query heads.
      num_kv_heads: K.
      head_dim: H.
      batch_size: B.
      max_length: tokens that a cache which keeps everything can hold; others ignore it.
      num_layers: of the model: budgets of some policies depend on it.
      dtype: of keys and values: float32, bfloat16, or "int8" or "int4" with scales.
      window: past tokens that the model itself lets this layer see beside the query; the layer
        then keeps these under any policy. None if it sees everything.
      mesh: devices that share out the cache, with axes of type Auto, as `jaxkv.mesh` makes them.
      axes: of the mesh, the ones that rows and that heads are shared out over; None for neither.

    Raises:
      InputError: a number that cannot be, or a policy that one layer alone cannot run.
    """
    policy = check_policy_given(policy)
    geometry = _geometry(
        {
            "num_layers": num_layers, "num_heads": num_heads, "num_kv_heads": num_kv_heads,
            "head_dim": head_dim, "batch_size": batch_size, "max_length": max_length,
        },
        dtype,
    )  # fmt: skip
    if not 0 <= _whole("layer", layer, 0) < geometry.num_layers:
        raise InputError(f"layer is {layer}; with num_layers {num_layers} it must be below that")
    past = None if window is None else _whole("window", window, 1)

    def at(g: Geometry) -> LayerPolicy:
        return of_window(min(past, g.max_length), g) if past else policy.at(layer, g)

    return begun(at, geometry, mesh, axes)


def begun(
    at: Maker,
    geometry: Geometry,
    mesh: Mesh | None = None,
    axes: tuple[str | None, str | None] = (DATA, MODEL),
) -> KeptLayer:
    """An empty cache of a layer's policy.

    Args:
      at: gives the policy of the layer for a geometry: that of the whole, or of a device's part.
      geometry: of the whole.
      mesh: see `layer_cache`.
      axes: likewise.

    Raises:
      InputError: see `layer_cache`.
    """
    policy = at(geometry)
    if not isinstance(policy, LayerPolicy):
        raise InputError(f"the layer's policy is {policy!r:.60}; it has init, take and facts")
    if isinstance(policy, WholePrompt) and policy.joint:
        raise InputError(
            "allocation 'global' is over all layers of a model; a layer alone has no pool"
        )
    if isinstance(policy, FromFull) and "replay" in policy.looks_at()[0]:
        raise InputError(
            "the policy lets a model repeat its prompt; a layer alone cannot, jaxkv.generate does"
        )
    if mesh is None:
        return KeptLayer(policy.init(), policy, geometry)
    over, part = _lying(at, geometry, mesh, axes)
    specs = jax.tree.unflatten(jax.tree.structure(jax.eval_shape(part.init)), over.specs)
    # Each device makes its own part: the whole is nowhere.
    make = jax.shard_map(part.init, mesh=mesh, in_specs=(), out_specs=specs, check_vma=False)
    return KeptLayer(jax.jit(make)(), part, geometry, over)


def _lying(
    at: Maker, geometry: Geometry, mesh: Mesh, axes: tuple[str | None, str | None]
) -> tuple[Over, LayerPolicy]:
    """How a cache lies, and the policy of a device's part."""
    if unknown := [name for name in axes if name is not None and name not in mesh.axis_names]:
        raise InputError(
            f"axes names {unknown[0]!r}; the mesh has {', '.join(map(str, mesh.axis_names))}"
        )
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise InputError("the mesh has explicit axes; they must be AxisType.Auto, as jaxkv.mesh's")
    rows, heads = (1 if name is None else mesh.shape[name] for name in axes)
    if geometry.batch_size % rows:
        raise InputError(f"batch_size {geometry.batch_size} does not divide by {axes[0]}={rows}")
    if geometry.num_kv_heads % heads:
        raise InputError(
            f"num_kv_heads {geometry.num_kv_heads} does not divide by {axes[1]}={heads}"
        )
    facts = at(geometry).facts()
    if heads > 1 and (facts.couples_heads or not facts.heads_alike):
        raise InputError(
            f"the policy's heads are not kept apart and alike, so they cannot lie over {axes[1]}="
            f"{heads}; share out rows, with axes=({axes[0]!r}, None)"
        )

    def made(shards: Shards) -> Any:
        return jax.eval_shape(at(part_of(geometry, shards)).init)

    parts: Mapping[str, tuple[Any, int]] = {
        name: (made(shards), size)
        for name, shards, size in (
            (axes[0], Shards(data=rows), rows),
            (axes[1], Shards(model=heads), heads),
        )
        if name is not None
    }
    specs = tuple(jax.tree.leaves(specs_of(made(Shards()), parts)))
    part = at(part_of(geometry, Shards(data=rows, model=heads)))
    return Over(mesh, *axes, specs), part


def _geometry(sizes: Mapping[str, Any], dtype: Any) -> Geometry:
    sizes = {name: _whole(name, value, 1) for name, value in sizes.items()}
    try:
        form = jnp.dtype(dtype).name
    except TypeError:
        form = str(dtype)
    if form not in FORMS:
        raise InputError(f"dtype is {form!r:.60}; it must be one of {', '.join(FORMS)}")
    if sizes["num_heads"] % sizes["num_kv_heads"]:
        raise InputError(
            f"num_heads is {sizes['num_heads']} and num_kv_heads {sizes['num_kv_heads']}; query "
            "heads must be a multiple of KV heads"
        )
    return Geometry(**sizes, dtype=form)


def _whole(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise InputError(f"{name} is {value!r:.60}; it must be a whole number of at least {least}")
    return number


def _positive(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(f"{name} is {value!r:.60}; it must be a number above 0")
    return number


def _scaled(q: Array, scale: float | None) -> Array:
    """Queries whose products with keys, over sqrt(H), are those times the scale."""
    if scale is None:
        return q
    factor = _positive("scale", scale) * math.sqrt(q.shape[-1])
    if math.isclose(factor, 1, rel_tol=1e-7):
        return q
    return (q.astype(jnp.float32) * jnp.float32(factor)).astype(q.dtype)


def _capped(rope: Rotation | None, soft_cap: float | None) -> Rotation | None:
    if soft_cap is None:
        return rope
    cap = _positive("soft_cap", soft_cap)
    if isinstance(rope, Scoring):
        return dataclasses.replace(rope, soft_cap=cap)
    return Scoring(rope, soft_cap=cap)
