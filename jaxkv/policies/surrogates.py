# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""KVzap's surrogates: files of small networks that tell from a token's state what it is worth.

A safetensors file as NVIDIA publishes them (arXiv 2601.07891): for each layer `layers.I.weight`
[K, D] and `layers.I.bias` [K], or an MLP, `layers.I.0.*` [W, D] and `layers.I.2.*` [K, W] with an
exact GELU between them. Files of `jaxkv.calibrate kvzap` are the same, and name their model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.core.errors import InputError, one_line
from jaxkv.core.files import whole_file
from jaxkv.core.typing import Params
from jaxkv.layers.base import Geometry
from jaxkv.policies.head_scores import check_model

_FORMAT = "jaxkv.kvzap"
_PACKAGE = Path(__file__).parent.parent
_SHIPPED = (_PACKAGE / "patterns", _PACKAGE.parent / "configs" / "patterns")

Surrogate = dict[str, Array]  # w [D, K] and b [K], and of an MLP before them w_in [D, W], b_in [W]


def surrogates(path: str | None, geometry: Geometry, width: int) -> tuple[Surrogate, ...]:
    """A file's networks, float32, one a layer.

    Args:
      path: of the file, or of the folder that holds it as `model.safetensors`; None for the one
        that is shipped for the model.
      geometry: the model's.
      width: D.

    Raises:
      InputError: the file is missing, damaged, or of another model.
    """
    where, tensors = _read(path, geometry)
    found = []
    for layer in range(geometry.num_layers):
        names = {f"layers.{layer}.{end}" for end in ("weight", "bias")}
        inner = {f"layers.{layer}.{i}.{end}" for i in (0, 2) for end in ("weight", "bias")}
        if names <= tensors.keys():
            w, b = (tensors[f"layers.{layer}.{end}"] for end in ("weight", "bias"))
            parts = {"w": w.T, "b": b}
        elif inner <= tensors.keys():
            first, last = (
                [tensors[f"layers.{layer}.{i}.{end}"] for end in ("weight", "bias")] for i in (0, 2)
            )
            parts = {"w_in": first[0].T, "b_in": first[1], "w": last[0].T, "b": last[1]}
        else:
            raise InputError(f"{where} has no network for layer {layer} of {geometry.num_layers}")
        _check(parts, layer, geometry, width, where)
        found.append({name: jnp.asarray(x, jnp.float32) for name, x in parts.items()})
    if f"layers.{geometry.num_layers}" in {".".join(name.split(".")[:2]) for name in tensors}:
        raise InputError(f"{where} has more than the model's {geometry.num_layers} layers")
    return tuple(found)


def save_surrogates(
    path: str | Path, networks: tuple[Mapping[str, np.ndarray], ...], model: str, about: str
) -> None:
    """Writes networks as `surrogates` reads them, whole or not at all.

    Args:
      path: where to.
      networks: one a layer, arrays as in `Surrogate`.
      model: `ModelConfig.identity`, or empty.
      about: how they were made.
    """
    from safetensors.numpy import save

    tensors = {}
    for layer, parts in enumerate(networks):
        last = "2." if "w_in" in parts else ""
        tensors[f"layers.{layer}.{last}weight"] = _stored(parts["w"].T)
        tensors[f"layers.{layer}.{last}bias"] = _stored(parts["b"])
        if "w_in" in parts:
            tensors[f"layers.{layer}.0.weight"] = _stored(parts["w_in"].T)
            tensors[f"layers.{layer}.0.bias"] = _stored(parts["b_in"])
    note = {"format": _FORMAT, "model": model, "about": about}
    with whole_file(path) as part:
        # Not by `save_file`, whose file nobody else may read.
        part.write_bytes(save(tensors, metadata=note))


def worth(surrogate: Surrogate, hidden: Array) -> Array:
    """What the networks say of states: [B, S, D] -> float32 [B, K, S]."""

    x = hidden.astype(jnp.float32)
    if "w_in" in surrogate:
        x = jnp.einsum("bsd,dw->bsw", x, surrogate["w_in"]) + surrogate["b_in"][None, None]
        x = jax.nn.gelu(x, approximate=False)
    return jnp.einsum("bsd,dk->bks", x, surrogate["w"]) + surrogate["b"][None, :, None]


def with_surrogates(params: Params, found: tuple[Surrogate, ...]) -> Params:
    """A model's parameters, in which each layer has its surrogate."""
    layers = [
        {**layer, "surrogate": mine} for layer, mine in zip(params["layers"], found, strict=True)
    ]
    return {**params, "layers": type(params["layers"])(layers)}


def _stored(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(x, np.float32))


def _check(
    parts: Mapping[str, np.ndarray], layer: int, geometry: Geometry, width: int, where: str
) -> None:
    inner = parts["w_in"].shape[-1] if "w_in" in parts else width
    shapes = {"w": (inner, geometry.num_kv_heads), "b": (geometry.num_kv_heads,)}
    if "w_in" in parts:
        shapes |= {"w_in": (width, inner), "b_in": (inner,)}
    for name, shape in shapes.items():
        if parts[name].shape != shape:
            raise InputError(
                f"{where}, layer {layer}: {name} has shape {parts[name].shape}; for this model it "
                f"is {shape}"
            )
        if not np.isfinite(parts[name]).all():
            raise InputError(f"{where}, layer {layer}: {name} has numbers that are not finite")


def _read(path: str | None, geometry: Geometry) -> tuple[str, Mapping[str, np.ndarray]]:
    if path is None:
        for folder in _SHIPPED:
            for source in sorted(folder.glob("*.kvzap.safetensors")):
                where = f"shipped {source.name}"
                note, tensors = _load(source, where)
                if note.get("model") == geometry.model:
                    return where, tensors
        raise InputError(
            "gate is not given and none is shipped for this model; give a file of KVzap's, or make "
            "one with python -m jaxkv.calibrate kvzap"
        )
    source, where = Path(path), f"gate {path}"
    if source.is_dir():
        source = source / "model.safetensors"
    note, tensors = _load(source, where)
    if note.get("format") == _FORMAT:
        check_model(note, geometry, where)
    return where, tensors


def _load(source: Path, where: str) -> tuple[Mapping[str, str], Mapping[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    if not source.is_file():
        raise InputError(f"{where} is not there: {source} is no file")
    try:
        with safe_open(str(source), "np") as file:
            note = file.metadata() or {}
            return note, {name: _wide(file.get_tensor(name)) for name in file.keys()}
    except (SafetensorError, OSError, json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{where} cannot be read: {one_line(error)}") from None


def _wide(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).astype(np.float32)
