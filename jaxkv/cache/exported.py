# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Caches in programs that `jax.export` writes: trees get names, what is static in them is JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jax import export

C = TypeVar("C", bound=type)


def exportable(
    cls: C,
    to_json: Callable[[Any], Any] = lambda x: x,
    from_json: Callable[[Any], Any] = lambda x: x,
) -> C:
    """Lets `jax.export` write programs that take and give caches of a class.

    Args:
      cls: a `flax.struct.dataclass`.
      to_json: of each static field.
      from_json: undoes it. Lists, also within lists, are tuples again before.
    """
    fields = dataclasses.fields(cls)
    names = {field.name: field.metadata.get("pytree_node", True) for field in fields}
    dynamic = [name for name, is_array in names.items() if is_array]
    static = [name for name, is_array in names.items() if not is_array]

    def write(values: Any) -> bytes:
        return json.dumps([to_json(value) for value in values]).encode()

    def read(text: bytes) -> Any:
        return tuple(from_json(_tuples(value)) for value in json.loads(text))

    def build(aux_data: Any, children: Sequence[Any]) -> Any:
        made = object.__new__(cls)  # children may be anything: a tree is made of them, not a cache
        for name, value in [*zip(dynamic, children), *zip(static, aux_data)]:  # noqa: B905
            object.__setattr__(made, name, value)
        return made

    export.register_pytree_node_serialization(
        cls,
        serialized_name=f"jaxkv.{cls.__name__}",
        serialize_auxdata=write,
        deserialize_auxdata=read,
        from_children=build,
    )
    return cls


def _tuples(value: Any) -> Any:
    return tuple(_tuples(x) for x in value) if isinstance(value, list) else value
