# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Our configuration as JSON and back; nothing in the text is ever executed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxkv.checkpoints.families.llama import ExplicitScaling
from jaxkv.core.errors import InputError
from jaxkv.core.rope import LinearScaling, Llama3Scaling, LongScaling, Rope, YarnScaling
from jaxkv.models.config import ModelConfig

_SCALINGS: Mapping[str, type] = MappingProxyType(
    {
        cls.__name__: cls
        for cls in (LinearScaling, Llama3Scaling, YarnScaling, LongScaling, ExplicitScaling)
    }
)
_ROPES = ("rope", "local_rope")
_NUMBERS: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "str": (str,),
        "float | None": (int, float, type(None)),
    }
)


def to_json(config: ModelConfig) -> dict[str, Any]:
    """A dictionary of plain values; a scaling is written as its class name and its fields."""
    values = dataclasses.asdict(config)
    for name in _ROPES:
        rope = getattr(config, name)
        scaling = rope.scaling if rope else None
        if scaling is not None:
            if type(scaling).__name__ not in _SCALINGS:
                raise InputError(f"a rope scaling {scaling!r:.120} cannot be written")
            values[name]["scaling"] = {"type": type(scaling).__name__, **values[name]["scaling"]}
    return values


def from_json(values: Mapping[str, Any], where: str) -> ModelConfig:
    """The inverse of `to_json`; `where` names the file in errors."""
    if "rope" not in values:
        raise InputError(f"rope is missing from {where}")
    ropes = {name: _rope(values.get(name), name, where) for name in _ROPES}
    return _build(ModelConfig, {**values, **ropes}, where)


def _rope(rope: Any, name: str, where: str) -> Rope | None:
    if rope is None:
        return None
    if not isinstance(rope, dict):
        raise InputError(f"{name} is {rope!r:.60} in {where}; it must be an object or null")
    scaling = rope.get("scaling")
    if scaling is not None:
        kind = scaling.get("type") if isinstance(scaling, dict) else None
        if not isinstance(kind, str) or kind not in _SCALINGS:
            raise InputError(
                f"the rope scaling is {scaling!r:.60} in {where}; its type must be one of "
                f"{', '.join(_SCALINGS)}"
            )
        fields = {key: value for key, value in scaling.items() if key != "type"}
        scaling = _build(_SCALINGS[kind], fields, where)
    return _build(Rope, {**rope, "scaling": scaling}, where)


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise InputError(f"unknown field {name!r:.60} in {where}")
    taken = {}
    for name, field in fields.items():
        if name in values:
            taken[name] = _checked(name, values[name], str(field.type), where)
        elif field.default is dataclasses.MISSING:
            raise InputError(f"{name} is missing from {where}")
    return cls(**taken)


def _checked(name: str, value: Any, kind: str, where: str) -> Any:
    if kind == "tuple[float, ...]":
        if isinstance(value, list | tuple) and all(
            isinstance(x, int | float) and x > 0 for x in value
        ):
            return tuple(float(x) for x in value)
        raise InputError(f"{name} is {value!r:.60} in {where}; it must be numbers above 0")
    if kind == "tuple[int, ...]":
        if isinstance(value, list | tuple) and all(
            type(x) is int and 0 <= x < 2**31 for x in value
        ):
            return tuple(value)
        raise InputError(f"{name} is {value!r:.60} in {where}; it must be whole numbers from 0")
    allowed = _NUMBERS.get(kind)
    if allowed is None:  # an object, already built
        return value
    wrong_bool = isinstance(value, bool) and kind != "bool"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if wrong_bool or not isinstance(value, allowed) or is_number and not 0 < value < 1e30:
        raise InputError(f"{name} is {value!r:.60} in {where}; it must be a {kind} above 0")
    return value
