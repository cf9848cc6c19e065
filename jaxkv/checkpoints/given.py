# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Parameters that no checkpoint held: looked through before a model is made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.checkpoints.table import DTYPES, Shape, flat_shapes, flatten, tree
from jaxkv.core.errors import InputError
from jaxkv.models.config import ModelConfig
from jaxkv.models.placed import placed
from jaxkv.models.weights import FORMS, Multiples, is_linear, to_arrays

_HASHED_WHOLE = 2**28  # bytes; of more, every so many rows


def checked_params(config: ModelConfig, params: Mapping[str, Any]) -> dict:
    """The tree of `parameter_shapes(config)`, on the default device.

    Args:
      config: what it must be like.
      params: the same tree of arrays; its layers may be any sequence of mappings.

    Raises:
      InputError: names the first parameter that is wrong, missing or surplus.
    """
    given, shapes = _by_path(params), flat_shapes(config)
    dtype = str(getattr(given.get("embed"), "dtype", None))
    forms = {
        path: str(held.values.dtype) for path, held in given.items() if isinstance(held, Multiples)
    }
    for path, shape in shapes.items():
        if path not in given:
            raise InputError(f"parameter {path!r} is missing; this configuration needs {shape}")
        held = given[path]
        if isinstance(held, Multiples) and is_linear(path):
            _check_multiples(path, held, shape, next(iter(forms.values())))
        else:
            _check_array(path, held, shape, dtype, form=forms if is_linear(path) else {})
    for path, held in given.items():
        if path not in shapes:
            found = getattr(held, "shape", None)
            raise InputError(
                f"parameter {path!r} with shape {found} is not one of this configuration, which "
                f"has {config.num_layers} layers and, at the top, {', '.join(_top(shapes))}"
            )
    # A copy of what is NumPy's: whoever gave it may write to it.
    own = {path: jnp.array(x) if isinstance(x, np.ndarray) else x for path, x in given.items()}
    return tree(config, {path: placed(config, path, own[path]) for path in shapes})


def fingerprint_of(config: ModelConfig, params: Mapping[str, Any]) -> str:
    """A hash of parameters: of all bytes, or of rows spread over each array of a large model.

    It is another one than of the file that they may have come from.
    """
    digest = hashlib.sha256()
    arrays = to_arrays(flatten(config, params))
    size = sum(array.nbytes for array in arrays.values())
    every = max(1, -(-size // _HASHED_WHOLE))
    for path, array in arrays.items():
        digest.update(f"{path} {array.shape} {array.dtype}".encode())
        rows = array if every == 1 else array[::every]
        digest.update(np.asarray(rows).tobytes())
    return digest.hexdigest()[:16]


def _by_path(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by "embed", "layers.0.wqkv" and so on."""
    layers = params.get("layers") if isinstance(params, Mapping) else None
    if not isinstance(layers, Sequence) or not all(isinstance(x, Mapping) for x in layers):
        raise InputError(
            "parameters must be a mapping, of which layers is a sequence of mappings, as in "
            "jaxkv.parameter_shapes(config)"
        )
    flat = {str(name): held for name, held in params.items() if name != "layers"}
    for index, layer in enumerate(layers):
        flat |= {f"layers.{index}.{name}": held for name, held in layer.items()}
    return flat


def _check_array(path: str, held: Any, shape: Shape, dtype: str, form: Mapping[str, str]) -> None:
    if not isinstance(held, np.ndarray | jax.Array):
        raise InputError(
            f"parameter {path!r} is a {type(held).__name__}; it must be an array of shape {shape}"
        )
    if tuple(held.shape) != shape:
        raise InputError(
            f"parameter {path!r} has shape {tuple(held.shape)}; this configuration needs {shape}"
        )
    if dtype not in DTYPES or str(held.dtype) != dtype:
        wanted = f"{dtype}, as embed is" if dtype in DTYPES else " or ".join(DTYPES)
        raise InputError(f"parameter {path!r} is {held.dtype}; it must be {wanted}")
    if form:
        other, kind = next(iter(form.items()))
        raise InputError(
            f"parameter {path!r} is {held.dtype} and {other!r} is {kind}; maps must be alike"
        )


def _check_multiples(path: str, held: Multiples, shape: Shape, form: str) -> None:
    if str(held.values.dtype) != form or form not in FORMS:
        raise InputError(
            f"parameter {path!r} is {held.values.dtype}; all linear maps must be the same of "
            f"{', '.join(FORMS)}"
        )
    inputs, groups = shape[0], held.scale.shape[0] if held.scale.ndim else 0
    right = groups and inputs % groups == 0 and held.scale.shape == (groups, shape[1])
    if tuple(held.values.shape) != shape or not right:
        raise InputError(
            f"parameter {path!r} has shape {tuple(held.values.shape)} and scales "
            f"{tuple(held.scale.shape)}; this configuration needs {shape} and scales of groups"
        )
    wanted = "float32" if groups == 1 else "float16"
    if str(held.scale.dtype) != wanted:
        raise InputError(f"the scales of {path!r} are {held.scale.dtype}; they must be {wanted}")


def _top(shapes: Mapping[str, Shape]) -> list[str]:
    return [path for path in shapes if "." not in path]
