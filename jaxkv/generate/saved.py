# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Caches on disk: a compressed prompt is kept, and asked again later, bit for bit.

A saved cache is a folder with `cache.safetensors` (the arrays, by their path in the tree) and
`cache.json` (the policy and the static shapes). Nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.errors import InputError
from jaxkv.files import whole_folder
from jaxkv.policies.base import Cache, Geometry, Policy
from jaxkv.policies.layers import init
from jaxkv.policies.registry import describe, make_policy

_FORMAT = 1
_ARRAYS, _NOTE = "cache.safetensors", "cache.json"


def save_cache(
    path: str | os.PathLike[str],
    cache: Cache,
    policy: Policy,
    *,
    model: str = "",
    extras: Mapping[str, Array] | None = None,
) -> None:
    """Writes a cache to a folder, whole or not at all.

    Args:
      path: the folder; one that is there is replaced.
      cache: any cache.
      policy: the one that it was made for.
      model: the fingerprint of the model whose keys these are.
      extras: further arrays to keep beside it.
    """
    from safetensors.numpy import save_file

    check_target(path)
    arrays = {f"cache{name}": np.asarray(x) for name, x in _named(cache)}
    arrays |= {f"extra.{name}": np.asarray(x) for name, x in (extras or {}).items()}
    note = {
        "format": _FORMAT,
        "model": model,
        "policy": describe(policy),
        "geometry": dataclasses.asdict(cache.geometry),
    }
    with whole_folder(path) as part:
        save_file(arrays, str(part / _ARRAYS))
        (part / _NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuses to replace what is no saved cache.

    Raises:
      InputError: something else is there.
    """
    target = Path(path)
    if (target.exists() or target.is_symlink()) and not (target / _NOTE).is_file():
        raise InputError(f"{os.fspath(path)} exists and is not a saved cache; it is left as it is")


def load_cache(
    path: str | os.PathLike[str], policy: Policy | None = None, *, model: str | None = None
) -> Cache:
    """Reads a cache that `save_cache` wrote.

    Args:
      path: the folder.
      policy: the policy it must have been made for; None takes whichever it was.
      model: the fingerprint that it must have been made with; None takes any.

    Raises:
      InputError: it is missing, damaged, or was made for another policy or model.
    """
    return load_with_extras(path, policy, model=model)[0]


def load_with_extras(
    path: str | os.PathLike[str], policy: Policy | None = None, *, model: str | None = None
) -> tuple[Cache, Policy, dict[str, Array]]:
    """As `load_cache`, with the policy and the further arrays."""
    from safetensors.numpy import load_file

    where = os.fspath(path)
    folder = Path(path)
    try:
        note: Any = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        arrays = load_file(str(folder / _ARRAYS))
        if note["format"] != _FORMAT:
            raise InputError(f"it has format {note['format']!r}, and this version reads {_FORMAT}")
        kept = dict(note["policy"])
        stored = make_policy(kept.pop("name"), kept)
        shape = {**note["geometry"], "windows": tuple(note["geometry"].get("windows", ()))}
        geometry = Geometry(**shape)
        mark = str(note["model"])
        shapes = jax.eval_shape(lambda: init(stored, geometry))
    except FileNotFoundError as error:
        raise InputError(f"{where} is not a saved cache: {error.filename} is missing") from None
    except InputError as error:
        raise InputError(f"{where} cannot be used: {error}") from None
    except Exception as error:  # a damaged file shows itself in many ways
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where} is damaged: {type(error).__name__}: {reason}") from None
    if policy is not None and policy != stored:
        raise InputError(f"{where} was made for {describe(stored)}, not for {describe(policy)}")
    if model is not None and mark != model:
        raise InputError(f"{where} was made with another model: {mark!r}, not {model!r}")
    cache = _restore(where, shapes, arrays)
    extras = {
        name.removeprefix("extra."): jnp.asarray(x)
        for name, x in arrays.items()
        if name.startswith("extra.")
    }
    return cache, stored, extras


def _named(cache: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(cache)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _restore(where: str, shapes: Cache, arrays: Mapping[str, np.ndarray]) -> Cache:
    leaves = []
    for name, shape in _named(shapes):
        found = arrays.get(f"cache{name}")
        if found is None or (found.shape, found.dtype) != (shape.shape, shape.dtype):
            raise InputError(f"{where} is damaged: cache{name} is missing or has another shape")
        leaves.append(jnp.asarray(found))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
