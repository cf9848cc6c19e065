# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A cache as a flat dict of arrays and back, for code that knows nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.core.errors import InputError

C = TypeVar("C")


def to_arrays(cache: Any) -> dict[str, Array | np.ndarray]:
    """The arrays of a cache by their places in it, such as "layers[0].k".

    Args:
      cache: of a model, of a layer, or any other pytree of dataclasses; also within a program.
    """
    return dict(_named(cache))


def from_arrays(arrays: Mapping[str, Any], like: C) -> C:
    """The cache that `to_arrays` took apart.

    Args:
      arrays: what it gave; also within a program.
      like: a cache of the same policy and shapes, which may be abstract, as `jax.eval_shape` gives
        it. What is static in it is in the result too.

    Raises:
      InputError: they are of another shape, or another kind of cache; names the first that differs.
        Policies whose caches hold the same arrays cannot be told apart by them.
    """
    expected = _named(like)
    known = dict(expected)
    if other := next((name for name in arrays if name not in known), None):
        raise InputError(f"the arrays are of another cache: {other!r:.80} is none of this one's")
    leaves = []
    for name, shape in expected:
        if name not in arrays:
            raise InputError(f"the arrays are of another cache: {name!r} is missing")
        found = arrays[name]
        if _told(found) != _told(shape):
            raise InputError(
                f"the arrays are of another cache: {name!r} is {_told(found)}, and it should be "
                f"{_told(shape)}"
            )
        leaves.append(jnp.asarray(found))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path).removeprefix("."), leaf) for path, leaf in leaves]


def _told(x: Any) -> str:
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    return type(x).__name__ if shape is None or dtype is None else f"{dtype}{list(shape)}"
