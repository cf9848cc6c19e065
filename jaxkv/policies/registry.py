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


def make_policies(names: str, fields: Mapping[str, Any] | None = None) -> list[Policy]:
    """Several policies from "full,streaming"; each takes those of the fields that it has.

    Settings of one of them may follow its name: "streaming:sinks=1:window=1023,full".

    Raises:
      InputError: as `make_policy`, or a field that none of them has.
    """
    fields = dict(fields or {})
    policies, taken = [], set()
    for words in names.split(","):
        name, *own = words.strip().split(":")
        has = {f.name for f in dataclasses.fields(POLICIES[name])} if name in POLICIES else set()
        given = {key: value for key, value in fields.items() if key in has}
        taken |= set(given)
        for word in own:
            key, equals, value = word.partition("=")
            if not equals:
                raise InputError(f"policy {words!r}: {word!r} must be FIELD=VALUE")
            given[key] = plain_value(value)
        policies.append(make_policy(name, given))
    for key in fields:
        if key not in taken:
            raise InputError(f"none of the policies {names!r} has a field {key!r}")
    return policies


def plain_value(text: str) -> Any:
    """A number, a truth value or None where the text looks like one, else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)


def describe(policy: Policy) -> dict[str, Any]:
    """The name and settings of a policy, as `make_policy` takes them."""
    for name, cls in POLICIES.items():
        if type(policy) is cls:
            return {"name": name, **dataclasses.asdict(policy)}  # type: ignore[call-overload]
    return {"name": type(policy).__name__}
