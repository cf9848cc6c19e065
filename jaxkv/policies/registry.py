# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The policies by the names that users type, and their settings as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxkv.arguments import flags_named, scalar
from jaxkv.errors import InputError
from jaxkv.policies.adakv import AdaKV
from jaxkv.policies.base import Policy
from jaxkv.policies.duo import DuoAttention
from jaxkv.policies.full import Full
from jaxkv.policies.h2o import H2O
from jaxkv.policies.headkv import HeadKV
from jaxkv.policies.recompute import SlidingRecompute
from jaxkv.policies.recycled import RecycledAttention
from jaxkv.policies.snapkv import PyramidKV, SnapKV
from jaxkv.policies.streaming import StreamingLLM
from jaxkv.policies.streaming_plus import StreamingLLMPlus
from jaxkv.policies.tova import TOVA
from jaxkv.policies.window import Window

POLICIES: Mapping[str, type] = {
    "full": Full,
    "window": Window,
    "streaming": StreamingLLM,
    "recompute": SlidingRecompute,
    "duo": DuoAttention,
    "headkv": HeadKV,
    "snapkv": SnapKV,
    "pyramidkv": PyramidKV,
    "adakv": AdaKV,
    "recycled": RecycledAttention,
    "streaming-plus": StreamingLLMPlus,
    "h2o": H2O,
    "tova": TOVA,
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
    too_large = type(value) is int and not -(2**31) < value < 2**31
    if too_large or not any(type(value) in _KINDS.get(kind, ()) for kind in kinds):
        allowed = " or ".join(kinds)
        raise InputError(f"--policy.{field.name} of {name!r} is {value!r}; it must be {allowed}")


def with_budget(policy: Policy, budget: int) -> Policy:
    """The same policy with so many tokens to keep, or to read, in a head on average.

    That is `budget` where it has this field, `window` (less the sinks, where they come on top), or
    the `k` of recycling. A policy that has none of them is given back as it is.
    """
    fields = {field.name for field in dataclasses.fields(policy)}
    if "budget" in fields:
        change = {"budget": budget}
    elif "window" in fields:
        change = {"window": budget - getattr(policy, "sinks", 0)}
    elif "k" in fields:
        change = {"k": budget}
    else:
        return policy
    name = describe(policy)["name"]
    with flags_named(tuple(change), f"--budgets has {budget}, where of {name!r} "):
        return dataclasses.replace(policy, **change)


def make_policies(text: str, shared: Mapping[str, Any]) -> tuple[Policy, ...]:
    """Policies from a list such as "full,streaming:sinks=1:window=1023".

    Args:
      text: names separated by commas; settings of one follow after colons.
      shared: settings for every listed policy that has them; a policy's own win.

    Raises:
      InputError: an unknown name or setting, or a shared setting that no listed policy has.
    """
    named = [_named(part) for part in text.split(",")]
    policies, used = [], set()
    for name, own in named:
        cls = POLICIES.get(name)
        known = {field.name for field in dataclasses.fields(cls)} if cls else set()
        mine = {key: value for key, value in shared.items() if key in known}
        used |= set(mine)
        policies.append(make_policy(name, {**mine, **own}))
    for key in shared:
        if key not in used:
            raise InputError(f"--policy.{key}: none of the policies {text} has a field {key!r}")
    return tuple(policies)


def _named(part: str) -> tuple[str, dict[str, Any]]:
    name, *settings = part.strip().split(":")
    if not name:
        raise InputError("--policy has an empty name; give names separated by commas")
    own = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (equals and key and value):
            raise InputError(f"--policy {part.strip()}: {setting!r} must be FIELD=VALUE")
        own[key.replace("-", "_")] = scalar(value)
    return name, own


def describe(policy: Policy) -> dict[str, Any]:
    """The name and settings of a policy, as `make_policy` takes them."""
    for name, cls in POLICIES.items():
        if type(policy) is cls:
            return {"name": name, **dataclasses.asdict(policy)}
    return {"name": type(policy).__name__}
