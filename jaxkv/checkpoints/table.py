# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint's named tensors to our tree of parameters, one tensor at a time.

A family describes its checkpoints by a table of rules. Because every rule is a template that works
both ways, the tensors a configuration needs are known by name before one byte is read: what is
missing, unknown or of the wrong shape is named in the error.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress, no_progress
from jaxkv.models.config import ModelConfig, parameter_shapes
from jaxkv.models.placed import placed
from jaxkv.models.weights import Multiples, is_linear, rounded

Shape = tuple[int, ...]
# Of a matrix [out, in]: whole numbers, and float16 scales [out, in / n] of n of them each.
Blocks = tuple[np.ndarray, np.ndarray]

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(jnp.bfloat16),
}


@runtime_checkable
class Tensors(Protocol):
    """A checkpoint: the shape of every tensor is known at once, the data come one by one."""

    where: str

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def read(self, name: str) -> np.ndarray:
        """A float array that the caller may keep."""
        ...

    def blocks(self, name: str, form: str) -> Blocks | None:
        """A matrix as it is stored, if that is a form of `models.weights`; else None."""
        ...


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor lies in a checkpoint, given how it lies in our tree."""

    stored: Callable[[Shape], Shape]  # our shape -> the checkpoint's
    arrange: Callable[[np.ndarray, Shape, ModelConfig], np.ndarray]  # to ours; views are welcome
    # And back, to the checkpoint's shape; None for a format that is not written.
    restore: Callable[[np.ndarray, Shape, ModelConfig], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of one of our arrays that one tensor fills: `size` entries along `axis`.

    `view` is the shape that has that axis: our array has it folded into another.
    """

    axis: int
    size: Callable[[ModelConfig], int]
    view: Callable[[ModelConfig], Shape]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table. In both names `#` stands for the number of the layer.

    Rules with the same `ours` fill it together, in the order of the table. One that is not of a
    configuration is as if it were not there.
    """

    theirs: str
    ours: str
    layout: Layout
    share: Share | None = None
    of: Callable[[ModelConfig], bool] = lambda config: True


KEEP = Layout(lambda shape: shape, lambda x, shape, config: x, lambda x, shape, config: x)
FLAT = Layout(
    lambda shape: (math.prod(shape),),
    lambda x, shape, config: x.reshape(shape),
    lambda x, shape, config: x.reshape(shape),
)
# [out, in] with one input axis in ours: [in, ..., out]
LINEAR = Layout(
    lambda shape: (math.prod(shape[1:]), shape[0]),
    lambda x, shape, config: np.moveaxis(x.reshape(*shape[1:], shape[0]), -1, 0),
    lambda x, shape, config: np.moveaxis(x, 0, -1).reshape(shape),
)


def check_dtype(dtype: str) -> np.dtype:
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def assemble(
    config: ModelConfig,
    rules: tuple[Rule, ...],
    ignored: tuple[str, ...],
    tensors: Tensors,
    dtype: str,
    progress: Progress = no_progress,
    weights: str | None = None,
) -> dict:
    """Reads every parameter of a model.

    Args:
      config: what the tree must look like.
      rules: the family's table.
      ignored: regular expressions of tensors that are known and not needed.
      tensors: the checkpoint.
      dtype: "float32" or "bfloat16"; data are cast as they are read.
      progress: called after every tensor.
      weights: "int8" or "int4" for linear maps of layers, one rounded after another; None is
        `dtype`.

    Returns:
      The tree of `parameter_shapes(config)`, with jax arrays on the default device, or where they
      belong on the model's mesh; with `weights` linear maps of layers are `Multiples`.
    """
    target = check_dtype(dtype)
    wanted = _wanted(config, rules)
    _check_names(wanted, ignored, tensors)
    shapes = flat_shapes(config)
    arrays: dict[str, jax.Array | Multiples] = {}
    for path, shape in shapes.items():
        sources = {name: source for name, source in wanted.items() if source.path == path}
        form = weights if is_linear(path) else None
        found = _as_stored(sources, shape, form, tensors, config) if form else None
        if found is None:
            # Cast first and let the runtime lay the axes out: it is faster than NumPy.
            # What is rounded is not rounded to bfloat16 before.
            kind = DTYPES["float32"] if form else target
            read = {name: functools.partial(_read, tensors, name, kind) for name in sources}
            found = _filled(sources, shape, kind, read, config)
            if form:
                found = rounded(path, jax.device_put(found), form)
        arrays[path] = found = placed(config, path, found)
        # Transfers are asynchronous: waiting keeps one array in flight, not the whole model.
        jax.block_until_ready(found)
        progress("loading", len(arrays), len(shapes))
    return tree(config, arrays)


def _read(tensors: Tensors, name: str, dtype: np.dtype) -> np.ndarray:
    return tensors.read(name).astype(dtype, copy=False)


def _as_stored(
    sources: Mapping[str, Source], shape: Shape, form: str, tensors: Tensors, config: ModelConfig
) -> Multiples | None:
    """One of our linear maps from blocks that are what it should be, or None if they are not."""
    blocks = {name: tensors.blocks(name, form) for name in sources}
    if any(found is None for found in blocks.values()):
        return None
    parts = []
    for which in range(2):  # values, and scales
        read = {name: lambda x=found[which]: x for name, found in blocks.items() if found}
        some = next(iter(read.values()))()
        inputs = shape[0] * some.shape[-1] // tensors.shapes[next(iter(sources))][-1]
        parts.append(_filled(sources, shape, some.dtype, read, config, inputs))
    return Multiples(*parts)


def disassemble(
    config: ModelConfig, rules: tuple[Rule, ...], params: Mapping
) -> Iterator[tuple[str, Shape, Callable[[], np.ndarray]]]:
    """The inverse of `assemble`: every tensor's name, shape, and a function that makes it."""
    arrays = flatten(config, params)
    begins: dict[str, int] = {}
    for name, source in _wanted(config, rules).items():
        share, layout = source.rule.share, source.rule.layout
        begin = begins.get(source.path, 0)
        if share:
            begins[source.path] = begin + share.size(config)
        stored = layout.stored(source.shape)

        def make(
            path: str = source.path, share: Share | None = share, layout: Layout = layout,
            begin: int = begin, stored: Shape = stored,
        ) -> np.ndarray:  # fmt: skip
            x = np.asarray(arrays[path])
            if share:
                place = slice(begin, begin + share.size(config))
                x = x.reshape(share.view(config))[(slice(None),) * share.axis + (place,)]
            assert layout.restore is not None
            return np.ascontiguousarray(layout.restore(x, stored, config))

        yield name, stored, make


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a tensor goes, the shape of what it fills there, and by which rule."""

    path: str
    shape: Shape
    rule: Rule


def _filled(
    sources: Mapping[str, Source], shape: Shape, dtype: np.dtype,
    read: Mapping[str, Callable[[], np.ndarray]], config: ModelConfig, inputs: int | None = None,
) -> np.ndarray:  # fmt: skip
    """One of our arrays from its tensors, each laid into its place.

    With `inputs`, of something that has so many along the first axis, and is else of that shape:
    the scales of a linear map.
    """

    def of(shape: Shape) -> Shape:
        return shape if inputs is None else (inputs, *shape[1:])

    if len(sources) == 1:
        ((name, source),) = sources.items()
        return source.rule.layout.arrange(read[name](), of(shape), config)
    out = np.empty(of(shape), dtype)
    begin = 0
    for name, source in sources.items():
        share = source.rule.share
        assert share is not None
        size = share.size(config)
        place = (slice(None),) * share.axis + (slice(begin, begin + size),)
        part = source.rule.layout.arrange(read[name](), of(source.shape), config)
        out.reshape(of(share.view(config)))[place] = part
        begin += size
    return out


def _wanted(config: ModelConfig, rules: tuple[Rule, ...]) -> dict[str, Source]:
    """Every tensor that the configuration needs, by its name in the checkpoint."""
    wanted = {}
    for path, shape in flat_shapes(config).items():
        number = re.search(r"\d+", path)
        pattern = re.sub(r"\d+", "#", path, count=1)
        for rule in (rule for rule in rules if rule.ours == pattern and rule.of(config)):
            name = rule.theirs.replace("#", number.group()) if number else rule.theirs
            part = list(shape)
            if rule.share:
                part = list(rule.share.view(config))
                part[rule.share.axis] = rule.share.size(config)
            wanted[name] = Source(path, tuple(part), rule)
    return wanted


def flat_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shapes by path: "embed", "layers.0.wqkv" and so on."""
    flat: dict[str, Shape] = {}
    for key, value in parameter_shapes(config).items():
        if key == "layers":
            for i, layer in enumerate(value):
                flat |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
        else:
            flat[key] = value
    return flat


def flatten(config: ModelConfig, params: Mapping) -> dict[str, jax.Array | np.ndarray]:
    """The inverse of `tree`."""
    flat = {key: value for key, value in params.items() if key != "layers"}
    for i, layer in enumerate(params["layers"]):
        flat |= {f"layers.{i}.{name}": array for name, array in layer.items()}
    return {path: flat[path] for path in flat_shapes(config)}


def tree(config: ModelConfig, arrays: Mapping[str, Any]) -> dict:
    """Puts everything that has a path, such as "layers.3.wqkv", in its place in the tree."""
    grown: dict = {"layers": [{} for _ in range(config.num_layers)]}
    for path, array in arrays.items():
        top, _, rest = path.partition(".")
        if not rest:
            grown[top] = array
        else:
            number, _, name = rest.partition(".")
            grown["layers"][int(number)][name] = array
    grown["layers"] = tuple(grown["layers"])
    return grown


def _check_names(wanted: Mapping[str, Source], ignored: tuple[str, ...], tensors: Tensors) -> None:
    present = tensors.shapes
    for name in present:
        if name not in wanted and not any(re.fullmatch(pattern, name) for pattern in ignored):
            raise InputError(f"unknown tensor {name!r:.120} in {tensors.where}")
    for name, source in wanted.items():
        if name not in present:
            raise InputError(f"tensor {name!r} is missing from {tensors.where}")
        stored = source.rule.layout.stored(source.shape)
        if tuple(present[name]) != stored:
            raise InputError(
                f"tensor {name!r} of {tensors.where} has shape {tuple(present[name])}; "
                f"its configuration needs {stored}"
            )
