# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The policies by the names that users type, and their settings as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxkv.errors import InputError
from jaxkv.policies.base import Policy
from jaxkv.policies.full import Full
from jaxkv.policies.recompute import SlidingRecompute
from jaxkv.policies.streaming import StreamingLLM
from jaxkv.policies.window import Window

POLICIES: Mapping[str, type] = {
    "full": Full,
    "window": Window,
    "streaming": StreamingLLM,
    "recompute": SlidingRecompute,
}


def make_policy(name: str, fields: Mapping[str, Any] | None = None) -> Policy:
    """A policy from its name and settings.

    Raises:
      InputError: an unknown name or field, or a value that the policy does not allow.
    """
    if name not in POLICIES:
        raise InputError(f"policy {name!r} is unknown; choose one of {', '.join(POLICIES)}")
    cls = POLICIES[name]
    fields = dict(fields or {})
    known = {field.name: field for field in dataclasses.fields(cls)}
    for field, value in fields.items():
        if field not in known:
            allowed = ", ".join(known) if known else "none"
            raise InputError(f"policy {name!r} has no field {field!r}; it has {allowed}")
        _check(name, known[field], value)
    return cls(**fields)


_KINDS: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}


def _check(name: str, field: dataclasses.Field, value: Any) -> None:
    """Annotations are text such as "int" or "float | None"; a bool is no number here."""
    kinds = [kind.strip() for kind in str(field.type).split("|")]
    if not any(type(value) in _KINDS.get(kind, ()) for kind in kinds):
        allowed = " or ".join(kinds)
        raise InputError(f"--policy.{field.name} of {name!r} is {value!r}; it must be {allowed}")


def describe(policy: Policy) -> dict[str, Any]:
    """The name and settings of a policy, as `make_policy` takes them."""
    for name, cls in POLICIES.items():
        if type(policy) is cls:
            return {"name": name, **dataclasses.asdict(policy)}  # type: ignore[call-overload]
    return {"name": type(policy).__name__}
