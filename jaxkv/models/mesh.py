# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A model over many devices, and what one of them runs: the program of a smaller model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxkv.cache.bytes import nbytes
from jaxkv.core.errors import InputError
from jaxkv.core.shards import DATA, LAYOUTS, MODEL, ONE, Shards
from jaxkv.models.config import ModelConfig


def mesh(*, data: int = 1, model: int = 1) -> Mesh:
    """Devices in two axes: rows of a batch are shared out over "data", weights over "model".

    A cache is shared out over both. Devices that follow one another, which are near each other,
    share weights. With `jax.distributed` these are the devices of all processes.

    Args:
      data: devices of the one axis.
      model: of the other.

    Raises:
      InputError: there are fewer devices than asked for.
    """
    for name, size in (("data", data), ("model", model)):
        if size < 1:
            raise InputError(f"{name} of the mesh is {size}; it must be at least 1")
    there = jax.devices()
    if data * model > len(there):
        raise InputError(
            f"a mesh of data={data}, model={model} takes {data * model} devices, and there "
            f"{'is' if len(there) == 1 else 'are'} {len(there)}"
        )
    if data * model < len(there) and jax.process_count() > 1:
        raise InputError(
            f"a mesh of data={data}, model={model} takes {data * model} of {len(there)} devices; "
            "over several processes it must take all of them"
        )
    if data * model == len(there):
        return jax.make_mesh((data, model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)
    chosen = np.asarray(there[: data * model]).reshape(data, model)
    return Mesh(chosen, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Meshed(ModelConfig):
    """A model whose parameters lie over the devices of a mesh.

    Attributes:
      over: the mesh.
      layout: of caches, see `Shards`; None is what suits the policy.
    """

    over: Mesh | AbstractMesh | None = None
    layout: str | None = None

    @property
    def mesh(self) -> Mesh | AbstractMesh:
        """The mesh; one without devices is for what is planned."""
        assert self.over is not None
        return self.over

    @property
    def lies(self) -> Shards:
        """How caches lie, once their layout is known."""
        assert self.layout is not None, "of a model whose caches' layout is not chosen yet"
        return Shards(self.mesh.shape[DATA], self.mesh.shape[MODEL], self.layout)

    @property
    def part(self) -> ModelConfig:
        """What each of the devices runs."""
        heads = self.lies.model if self.lies.by_heads else 1
        values = _fields(self)
        counts = {name: values[name] // heads for name in ("num_heads", "num_kv_heads")}
        return Part(**{**values, **counts}, on=self.lies, of=plain(self))

    def with_layout(self, layout: str | None) -> Meshed:
        """The same with another layout of caches."""
        return dataclasses.replace(self, layout=layout)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Part(ModelConfig):
    """What one of several devices runs.

    Attributes:
      on: the devices.
      of: the whole model.
    """

    on: Shards = ONE
    of: ModelConfig | None = None

    @property
    def shards(self) -> Shards:
        """The devices."""
        return self.on

    @property
    def whole(self) -> ModelConfig:
        """The model of all devices together."""
        return self if self.of is None else self.of


def meshed(config: ModelConfig, over: Mesh | AbstractMesh | None) -> ModelConfig:
    """The model on a mesh; on the default device with None.

    Raises:
      InputError: its axes are others than `mesh` makes.
    """
    if over is None:
        return config
    if set(over.axis_names) != {DATA, MODEL}:
        raise InputError(
            f"the mesh has the axes {', '.join(map(str, over.axis_names))}; it must have {DATA} "
            f"and {MODEL}, as jaxkv.mesh makes them"
        )
    return Meshed(**_fields(config), over=over)


def plain(config: ModelConfig) -> ModelConfig:
    """The model on one device."""
    return ModelConfig(**_fields(config)) if isinstance(config, Meshed) else config


def _fields(config: ModelConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(ModelConfig)}


def check_layout(layout: str | None) -> None:
    """Refuses what is no layout of a cache.

    Raises:
      InputError: says which there are.
    """
    if layout not in (None, *LAYOUTS):
        *most, last = LAYOUTS
        raise InputError(f"cache-layout is {layout!r}; it must be {', '.join(most)} or {last}")


def sharding(config: ModelConfig, *axes: Any) -> NamedSharding | None:
    """How an array whose axes lie so lies; None of a model on one device."""
    if not isinstance(config, Meshed):
        return None
    return NamedSharding(config.mesh, PartitionSpec(*axes))


def put(config: ModelConfig, x: Any, *axes: Any) -> Array:
    """A host's array where the model is; every process has it, and gives its devices their part."""
    how = sharding(config, *axes)
    if how is None:
        return jnp.asarray(x)
    if isinstance(x, Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(config, jax.random.key_data(x), *axes))
    return spread(np.asarray(x), how)


def lying(config: Meshed, x: Array, *axes: Any) -> Array:
    """An array in a program of somebody's, in which types may say how arrays lie."""
    if AxisType.Explicit not in config.mesh.axis_types:
        return x
    return jax.sharding.reshard(x, NamedSharding(config.mesh, PartitionSpec(*axes)))


def spread(x: np.ndarray, how: NamedSharding) -> Array:
    """A host's array over devices: each process reads what its own take."""
    return jax.make_array_from_callback(x.shape, how, lambda index: x[index])


def spec_of(x: Any) -> PartitionSpec:
    """How an array lies over a mesh; of one that does not, on all devices alike."""
    how = getattr(x, "sharding", None)
    return how.spec if isinstance(how, NamedSharding) else PartitionSpec()


def on_all(
    function: Callable[..., Any], config: Meshed, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """A function of arrays that lie so, which every device of the mesh runs on its parts."""
    return jax.shard_map(
        function, mesh=config.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def device_bytes(tree: Any) -> int:
    """Bytes that arrays take on each device."""

    def of(x: Any) -> jax.ShapeDtypeStruct:
        how = getattr(x, "sharding", None)
        return jax.ShapeDtypeStruct(x.shape if how is None else how.shard_shape(x.shape), x.dtype)

    return nbytes(jax.tree.map(of, tree))
