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

from jaxkv.cache.arrays import from_arrays, to_arrays
from jaxkv.cache.packed import FORMS
from jaxkv.core.checksums import check_sums, sums_of
from jaxkv.core.errors import InputError, one_line
from jaxkv.core.files import reserve, whole_folder
from jaxkv.core.reading import read_json
from jaxkv.generate.recompute import Remembered
from jaxkv.generate.running import running
from jaxkv.layers.base import Cache, Geometry, Policy
from jaxkv.policies.registry import describe, make_policy

_FORMAT = 2
_MOST_LAYERS = 4096  # no model comes near; an empty cache of a billion takes for ever to describe
_ARRAYS, _NOTE = "cache.safetensors", "cache.json"


def save_cache(
    path: str | os.PathLike[str],
    cache: Cache | Remembered,
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
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    check_target(path)
    arrays = {f"cache.{name}": np.asarray(x) for name, x in to_arrays(cache).items()}
    arrays |= {f"extra.{name}": np.asarray(x) for name, x in (extras or {}).items()}
    note = {
        "format": _FORMAT,
        "model": model,
        "policy": describe(policy),
        "geometry": dataclasses.asdict(cache.geometry),
    }
    with whole_folder(path) as part:
        reserve(part, sum(x.nbytes for x in arrays.values()) + 2**20)
        try:
            save_file(arrays, str(part / _ARRAYS))
        except SafetensorError as error:
            raise InputError(f"{os.fspath(path)} cannot be written: {error}") from None
        note["files"] = sums_of(part)
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
) -> Cache | Remembered:
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
) -> tuple[Cache | Remembered, Policy, dict[str, Array]]:
    """As `load_cache`, with the policy and the further arrays."""
    from safetensors.numpy import load_file

    where = os.fspath(path)
    folder = Path(path)
    if not (folder / _NOTE).exists():
        raise InputError(f"{where} is not a saved cache: {folder / _NOTE} is missing")
    try:
        note = read_json(folder / _NOTE)
    except InputError as error:
        raise InputError(f"{where} is damaged: {error}") from None
    try:
        if note.get("format") != _FORMAT:
            raise InputError(
                f"it has format {note.get('format')!r:.60}, and this version reads {_FORMAT}"
            )
        check_sums(folder, note.get("files"))
        stored = _policy(dict(note["policy"]), policy)
        mark = str(note["model"])
        arrays = load_file(str(folder / _ARRAYS))
        geometry = _geometry(note["geometry"])
        shapes = jax.eval_shape(lambda: running(stored, geometry).init())
    except InputError as error:
        raise InputError(f"{where} cannot be used: {error}") from None
    except Exception as error:  # a damaged file shows itself in many ways
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{where} is damaged: {reason:.200}") from None
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


def _policy(kept: dict[str, Any], given: Policy | None) -> Policy:
    """The policy of a note. No module is imported because a file says so."""
    if given is not None and json.loads(json.dumps(describe(given))) == kept:
        return given
    name = kept.pop("name")
    if ":" in str(name):
        raise InputError(f"it was made for {name!r:.80}, which is not registered; give the policy")
    return make_policy(name, kept)


def _geometry(values: Any) -> Geometry:
    """The shapes that a cache was made for; each field is what it should be, or it is refused."""
    if not isinstance(values, dict):
        raise InputError(f"geometry is {values!r:.60}; it must be an object")
    fields = {field.name: str(field.type) for field in dataclasses.fields(Geometry)}
    for name, value in values.items():
        kind = fields.get(name)
        if kind == "int":
            most = _MOST_LAYERS if name == "num_layers" else 2**31 - 1
            right = type(value) is int and 1 <= value <= most
        elif name == "windows":
            right = isinstance(value, list) and all(
                type(x) is int and 0 <= x < 2**31 for x in value
            )
            right = right and len(value) in (0, values.get("num_layers"))
        elif name == "dtype":
            right = value in FORMS
        else:
            right = kind == "str" and isinstance(value, str)
        if not right:
            raise InputError(f"{name} in geometry is {value!r:.60}, which no cache can have")
    missing = [name for name in fields if name not in values]
    if missing:
        raise InputError(f"{missing[0]} is missing from geometry")
    return Geometry(**{**values, "windows": tuple(values["windows"])})


def _restore(where: str, shapes: Cache | Remembered, arrays: Mapping[str, np.ndarray]) -> Any:
    mine = {
        name.removeprefix("cache."): x for name, x in arrays.items() if name.startswith("cache.")
    }
    try:
        return from_arrays(mine, shapes)
    except InputError as error:
        raise InputError(f"{where} is damaged: {error}") from None
