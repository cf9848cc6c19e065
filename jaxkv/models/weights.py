# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Linear maps of layers as whole multiples of scales: a quarter or an eighth of float32's bytes.

int8 has a scale an output, int4 one of every `GROUP` inputs of an output. A block of a GGUF file is
the same thing and is taken as it lies. Nothing but the product knows of it: what policies, caches
and norms see is as wide as ever.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxkv.core.errors import InputError
from pallas_kernels import compiler

FORMS = ("int8", "int4")
GROUP = 32  # inputs that share a scale in int4
# Rows that are multiplied group by group, and the groups' sums scaled: nothing is made wide. Of
# more rows those sums would be larger than the map, which then is made wide, once for all of them.
FEW = 16
_LINEAR = ("wqkv", "wo", "w_gate_up", "w_up", "w_down")
# Of the number that would just reach the largest weight of a group: a few large weights are worth
# less than steps that fit the many.
_NARROWER = tuple(1 - step / 32 for step in range(9))


@flax.struct.dataclass
class Multiples:
    """A linear map [I, O]: `values` times `scale`, that of the group which an input is in.

    Attributes:
      values: int8 or int4 [I, O].
      scale: [I / n, O], n inputs a group: float32 if there is one group, else float16.
    """

    values: Array
    scale: Array

    @property
    def size(self) -> int:
        """I O."""
        return self.values.size


def is_linear(path: str) -> bool:
    """Whether the parameter at a path, such as "layers.3.wqkv", is a linear map of a layer."""
    return path.startswith("layers.") and path.rpartition(".")[2] in _LINEAR


def check_form(weights: str | None) -> None:
    """Refuses what weights cannot be held in; None is the dtype of the rest.

    Raises:
      InputError: says what is allowed.
    """
    if weights not in (None, *FORMS):
        raise InputError(f"weights is {weights!r}; it must be {' or '.join(FORMS)}")


def rounded(path: str, held: Array | Multiples, form: str | None) -> Array | Multiples:
    """The parameter at a path, in one of `FORMS` if it is a linear map of a layer."""
    if form is None or not is_linear(path) or isinstance(held, Multiples):
        return held
    return multiples(held, form)


@functools.partial(jax.jit, static_argnums=1)
def multiples(weight: Array, form: str) -> Multiples:
    """A linear map [I, O] rounded to multiples of scales.

    In int8 the largest weight of an output is 127 scales. In int4 the one that is furthest from 0
    is -8 scales or up to a quarter more than the least and most that 4 bits hold: of nine scales
    the one with the least sum of squares of errors is taken.

    Args:
      weight: [I, O], any float type.
      form: one of `FORMS`.
    """
    inputs, outputs = weight.shape
    wide = weight.astype(jnp.float32)
    if form == "int8":
        scale = jnp.max(jnp.abs(wide), axis=0, keepdims=True) / 127
        return Multiples(_whole(wide, scale, -127, 127).astype(jnp.int8), scale)
    size = GROUP if inputs % GROUP == 0 else inputs
    groups = wide.reshape(-1, size, outputs)
    furthest = jnp.argmax(jnp.abs(groups), axis=1, keepdims=True)
    reach = jnp.take_along_axis(groups, furthest, axis=1) / -8

    def tried(factor: float) -> tuple[Array, Array]:
        scale = (reach * factor).astype(_scale_dtype(inputs // size)).astype(jnp.float32)
        error = groups - _whole(groups, scale, -8, 7) * scale
        return scale, jnp.sum(error * error, axis=1, keepdims=True)

    best, least = tried(_NARROWER[0])
    for factor in _NARROWER[1:]:
        scale, error = tried(factor)
        best, least = jnp.where(error < least, scale, best), jnp.minimum(error, least)
    values = _whole(groups, best, -8, 7).reshape(inputs, outputs)
    scale = best[:, 0].astype(_scale_dtype(inputs // size))
    return Multiples(values.astype(jnp.int4), scale)


def _whole(x: Array, scale: Array, low: int, high: int) -> Array:
    return jnp.clip(jnp.round(x / jnp.where(scale == 0, 1.0, scale)), low, high)


def _scale_dtype(groups: int) -> DTypeLike:
    return jnp.float32 if groups == 1 else jnp.float16


def widened(weight: Array | Multiples, dtype: DTypeLike) -> Array:
    """What it stands for: [I, O]."""
    if not isinstance(weight, Multiples):
        return weight
    values, scale = weight.values.astype(dtype), weight.scale.astype(dtype)
    groups, outputs = scale.shape
    return (values.reshape(groups, -1, outputs) * scale[:, None]).reshape(values.shape)


def times(rows: Array, weight: Array | Multiples) -> Array:
    """[R, I] and [I, O] -> float32 [R, O]."""
    multiplied = compiler.row_product if rows.shape[0] == 1 else compiler.product
    if not isinstance(weight, Multiples):
        return multiplied(rows, weight)
    if weight.scale.shape[0] == 1:
        # float16 where it is one of many groups, and the others are on other devices
        return multiplied(rows, weight.values.astype(rows.dtype)) * weight.scale.astype(jnp.float32)
    if rows.shape[0] > FEW:
        return multiplied(rows, widened(weight, rows.dtype))
    groups, outputs = weight.scale.shape
    values = weight.values.reshape(groups, -1, outputs)
    return compiler.grouped_product(rows.reshape(len(rows), groups, -1), values, weight.scale)


def inputs_of(weight: Array | Multiples) -> int:
    """I of a linear map [I, O]."""
    return (weight.values if isinstance(weight, Multiples) else weight).shape[0]


def count(params: Any) -> int:
    """Numbers that a tree of parameters holds; scales are none."""
    held = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Multiples))
    return sum(x.size for x in held)


def form_of(params: Any) -> str | None:
    """One of `FORMS`, or None where all is as wide as the embedding."""
    held = params["layers"][0]["wqkv"]
    return str(held.values.dtype) if isinstance(held, Multiples) else None


def part_names(path: str) -> tuple[str, str]:
    """What the arrays of the linear map at a path are called in a checkpoint."""
    return f"{path}.values", f"{path}.scale"


def to_arrays(flat: Mapping[str, Any]) -> dict[str, Array | np.ndarray]:
    """Parameters by path, with a linear map as its two arrays."""
    arrays: dict[str, Array | np.ndarray] = {}
    for path, held in flat.items():
        if isinstance(held, Multiples):
            arrays |= dict(zip(part_names(path), (held.values, held.scale), strict=True))
        else:
            arrays[path] = held
    return arrays


def from_arrays(arrays: Mapping[str, Array]) -> dict[str, Array | Multiples]:
    """The inverse of `to_arrays`."""
    flat: dict[str, Array | Multiples] = {}
    for name, array in arrays.items():
        path, _, part = name.rpartition(".")
        if part not in ("values", "scale"):
            flat[name] = array
        elif part == "values":
            flat[path] = Multiples(array, arrays[part_names(path)[1]])
    return flat
