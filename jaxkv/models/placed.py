# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Where each parameter lies on a mesh: maps into heads and MLP by columns, maps back by rows.

What does not divide lies on all devices. Gates and what they gate are columns of one array; over M
devices they lie in the order [M, 2, F / M], so that each device has both of its share.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jaxkv.core.hosts import fetch
from jaxkv.core.shards import MODEL
from jaxkv.core.typing import Params
from jaxkv.models.config import ModelConfig
from jaxkv.models.mesh import Meshed, spread
from jaxkv.models.weights import Multiples

_COLUMNS = ("wqkv", "bqkv", "w_gate_up", "b_gate_up", "w_up", "b_up")
_ROWS = ("wo", "w_down", "embed", "lm_head")
_PAIRS = ("w_gate_up", "b_gate_up")


def param_specs(config: Meshed, params: Params) -> Any:
    """How each parameter of a tree lies, by its name and shape."""

    def of(path: tuple, held: Any) -> Any:
        return _specs(config, _name(path), held)

    return jax.tree_util.tree_map_with_path(of, params, is_leaf=_is_map)


def placed(config: ModelConfig, path: str, held: Any) -> Any:
    """A parameter, or the two arrays of a rounded one, where it belongs.

    Args:
      config: the model; on one device, that is the default one.
      path: such as "layers.3.wqkv".
      held: arrays of NumPy or jax, in the order of `parameter_shapes`.
    """
    if not isinstance(config, Meshed):
        return jax.device_put(held)
    name = path.rpartition(".")[2]

    def put(x: Any, spec: PartitionSpec) -> Array:
        if name in _PAIRS and MODEL in spec:
            x = _paired(x, config.mesh.shape[MODEL])
        how = NamedSharding(config.mesh, spec)
        if isinstance(x, Array) and jax.process_count() == 1:
            return jax.device_put(x, how)
        return spread(np.asarray(x), how)

    return jax.tree.map(put, held, _specs(config, name, held))


def beside(config: ModelConfig, params: Params) -> Params:
    """A placed tree, in which what was put beside the parameters lies on all devices."""
    if not isinstance(config, Meshed):
        return params
    everywhere = NamedSharding(config.mesh, PartitionSpec())

    def put(x: Array) -> Array:
        there = isinstance(x.sharding, NamedSharding) and x.sharding.mesh == config.mesh
        return x if there else spread(np.asarray(x), everywhere)

    return jax.tree.map(put, params)


def taken_back(config: ModelConfig, params: Params) -> Params:
    """The tree as it lies on one device, in the host's memory."""
    if not isinstance(config, Meshed):
        return params

    def of(path: tuple, x: Array) -> np.ndarray:
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        found = fetch(x)
        if set(names) & set(_PAIRS) and isinstance(x.sharding, NamedSharding):
            found = _unpaired(found, config.mesh.shape[MODEL] if MODEL in x.sharding.spec else 1)
        return found

    return jax.tree_util.tree_map_with_path(of, params)


def _name(path: tuple) -> str:
    return str(getattr(path[-1], "key", ""))


def _is_map(x: Any) -> bool:
    return isinstance(x, Multiples)


def _specs(config: Meshed, name: str, held: Any) -> Any:
    """A `PartitionSpec`, or one for each array of a rounded map."""
    pair: Any = Multiples
    devices = config.mesh.shape[MODEL]
    values = held.values if isinstance(held, Multiples) else held
    if name in _COLUMNS:
        columns = values.shape[-1] // (2 if name in _PAIRS else 1)
        axes = [None] * (values.ndim - 1) + [MODEL] if columns % devices == 0 else []
        spec = PartitionSpec(*axes)
        return pair(spec, spec) if isinstance(held, Multiples) else spec
    spec = PartitionSpec(MODEL) if name in _ROWS and values.shape[0] % devices == 0 else None
    if not isinstance(held, Multiples):
        return spec or PartitionSpec()
    groups = held.scale.shape[0]
    if spec is None or groups % devices and groups > 1:
        return pair(PartitionSpec(), PartitionSpec())
    return pair(spec, spec if groups > 1 else PartitionSpec())


def _paired(x: Any, devices: int) -> Any:
    """[.., 2 F] -> the same columns in the order [M, 2, F / M]."""
    return x.reshape(*x.shape[:-1], 2, devices, -1).swapaxes(-3, -2).reshape(x.shape)


def _unpaired(x: Any, devices: int) -> Any:
    """The inverse of `_paired`."""
    return x.reshape(*x.shape[:-1], devices, 2, -1).swapaxes(-3, -2).reshape(x.shape)


def abstract(config: ModelConfig, params: Params) -> Params:
    """Shapes of parameters, and how each lies; nothing is allocated."""
    if not isinstance(config, Meshed):
        return params

    def of(x: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        how = NamedSharding(config.mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=how)

    return jax.tree.map(of, params, param_specs(config, params))
