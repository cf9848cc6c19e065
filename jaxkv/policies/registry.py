# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The policies by the names that users type, and their settings as plain data."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxkv.core.errors import InputError, one_line
from jaxkv.core.settings import flags_named, scalar
from jaxkv.layers.base import Policy
from jaxkv.policies.adakv import AdaKV
from jaxkv.policies.chunkkv import ChunkKV
from jaxkv.policies.compactor import Compactor
from jaxkv.policies.cur import CUR
from jaxkv.policies.duo import DuoAttention
from jaxkv.policies.expected import ExpectedAttention
from jaxkv.policies.full import Full
from jaxkv.policies.h2o import H2O
from jaxkv.policies.headkv import HeadKV
from jaxkv.policies.keydiff import KeyDiff
from jaxkv.policies.knorm import KNorm
from jaxkv.policies.kvzap import KVzap
from jaxkv.policies.kvzip import KVzip
from jaxkv.policies.lagkv import LagKV
from jaxkv.policies.random import Random
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
    "chunkkv": ChunkKV,
    "compactor": Compactor,
    "cur": CUR,
    "lagkv": LagKV,
    "keydiff": KeyDiff,
    "knorm": KNorm,
    "random": Random,
    "recycled": RecycledAttention,
    "streaming-plus": StreamingLLMPlus,
    "h2o": H2O,
    "tova": TOVA,
    "expected": ExpectedAttention,
    "kvzip": KVzip,
    "kvzap": KVzap,
}


_REGISTERED: dict[str, type] = {}
_MODULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def register(name: str) -> Callable[[type], type]:
    """Gives a policy of one's own a name, for `--policy`, reports and saved caches.

    Args:
      name: not one that there is already.

    Returns:
      A decorator of the class.

    Raises:
      InputError: the name is taken, or the class is not a frozen dataclass with `at`.
    """

    def named(cls: type) -> type:
        other = POLICIES.get(name) or _REGISTERED.get(name)
        # The same class again, as a notebook's cell makes it, takes its own place.
        if other is not None and (other.__module__, other.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise InputError(f"policy {name!r} is {other.__name__}; take another name")
        if check_class(cls) not in _REGISTERED.values():
            jax.tree_util.register_static(cls)  # so that a jitted function takes it, as ours
        _REGISTERED[name] = cls
        return cls

    return named


def check_class(cls: Any) -> type:
    """The class, if it can be a policy.

    Raises:
      InputError: says what it lacks.
    """
    if not isinstance(cls, type):
        raise InputError(f"{cls!r:.80} is no class; a policy is a frozen dataclass with `at`")
    settings = getattr(cls, "__dataclass_params__", None)
    if settings is None or not settings.frozen:
        raise InputError(f"{cls.__name__} is not a frozen dataclass; a policy is one")
    if not callable(getattr(cls, "at", None)):
        raise InputError(f"{cls.__name__} has no method at(layer, geometry); a policy has one")
    return cls


def check_policy_given(policy: Any) -> Policy:
    """What was given as a policy, if it is one.

    Raises:
      InputError: says what it is instead.
    """
    if isinstance(policy, str):
        raise InputError(f"policy is the text {policy!r:.80}; give make_policy({policy!r:.80})")
    if isinstance(policy, type):
        raise InputError(f"policy is the class {policy.__name__}; give one of it, as in "
                         f"{policy.__name__}()")  # fmt: skip
    check_class(type(policy))
    try:
        hash(policy)
    except TypeError as error:
        raise InputError(
            f"{type(policy).__name__} cannot be hashed ({one_line(error)}); a policy's fields are "
            "numbers, texts and tuples"
        ) from None
    for field in dataclasses.fields(policy):
        if "in_caches" not in field.metadata:
            what = f"{field.name} of {type(policy).__name__}"
            _check(what, field, getattr(policy, field.name))
    return policy


def class_of(name: str) -> type:
    """The class of a policy: by its name, or as `module:Class`, which is imported.

    Raises:
      InputError: there is none.
    """
    if name in POLICIES or name in _REGISTERED:
        return POLICIES.get(name) or _REGISTERED[name]
    if not _MODULE.fullmatch(name):
        names = ", ".join([*POLICIES, *_REGISTERED])
        raise InputError(f"policy {name!r:.80} is unknown; choose one of {names}, or module:Class")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise InputError(f"policy {name!r}: the module has no {attribute}") from None
    except Exception as error:  # of the user's own code: where it is wrong is what it says
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"policy {name!r} cannot be imported: {reason}") from None
    return check_class(found)


def fields_of(name: str) -> list[str]:
    """The names of a policy's settings; none if there is no such policy."""
    try:
        return [field.name for field in dataclasses.fields(class_of(name))]
    except InputError:
        return []


def usual_settings(name: str) -> dict[str, Any]:
    """Defaults of the settings that are given by name alone, or are no numbers.

    None if there is no such policy.
    """
    cls = POLICIES.get(name) or _REGISTERED.get(name)
    fields = () if cls is None else dataclasses.fields(cls)
    return {
        field.name: field.default
        for field in fields
        if field.kw_only or field.default is None or isinstance(field.default, bool)
    }


def make_policy(name: str, fields: Mapping[str, Any] | None = None) -> Policy:
    """A policy from its name and settings.

    Args:
      name: one of `POLICIES`, one that was registered, or `module:Class`.
      fields: its settings.

    Raises:
      InputError: an unknown name or field, or a value that the policy does not allow.
    """
    cls = class_of(name)
    fields = dict(fields or {})
    known = {field.name: field for field in dataclasses.fields(cls)}
    for field, value in fields.items():
        if field not in known:
            allowed = ", ".join(known) if known else "none"
            raise InputError(f"policy {name!r} has no field {field!r}; it has {allowed}")
        _check(f"--policy.{field} of {name!r}", known[field], value)
    return cls(**fields)


_KINDS: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}


def _check(what: str, field: dataclasses.Field, value: Any) -> None:
    """Annotations are such as "int" or "float | None"; a bool is no number here."""
    told = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    kinds = [kind.strip() for kind in told.split("|")]
    too_large = type(value) is int and not -(2**31) < value < 2**31
    if not too_large and not _KINDS.keys() & set(kinds):
        return  # a type of its own, in a policy from elsewhere
    if too_large or not any(type(value) in _KINDS.get(kind, ()) for kind in kinds):
        allowed = " or ".join(kinds)
        raise InputError(f"{what} is {value!r}; it must be {allowed}")


def with_budget(policy: Policy, budget: int) -> Policy:
    """The same policy with so many tokens to keep, or to read, in a head on average.

    It declares which field that is, by `swept`. One that declares none is given back as it is.
    """
    sizes = [field for field in dataclasses.fields(policy) if "swept" in field.metadata]
    if not sizes:
        return policy
    (size,) = sizes
    beside = getattr(policy, size.metadata["less"]) if size.metadata["less"] else 0
    change = {size.name: budget - beside}
    name = describe(policy)["name"]
    with flags_named(tuple(change), f"--budgets has {budget}, where of {name!r} "):
        return dataclasses.replace(policy, **change)


def budget_of(policy: Mapping[str, Any]) -> int | float | None:
    """The size of a described policy as `with_budget` takes it, or None if it has none."""
    try:
        sizes = [f for f in dataclasses.fields(class_of(policy["name"])) if "swept" in f.metadata]
    except InputError:  # of a report that another program made
        return None
    if not sizes or policy.get(sizes[0].name) is None:
        return None
    return policy[sizes[0].name] + policy.get(sizes[0].metadata["less"], 0)


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
        known = set(fields_of(name))
        mine = {key: value for key, value in shared.items() if key in known}
        used |= set(mine)
        policies.append(make_policy(name, {**mine, **own}))
    for key in shared:
        if key not in used:
            raise InputError(f"--policy.{key}: none of the policies {text} has a field {key!r}")
    return tuple(policies)


def _named(part: str) -> tuple[str, dict[str, Any]]:
    name, *settings = part.strip().split(":")
    known = name in POLICIES or name in _REGISTERED
    if settings and "=" not in settings[0] and not known:  # module:Class
        name = f"{name}:{settings.pop(0)}"
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
    cls = type(policy)
    named = {**_REGISTERED, **POLICIES}.items()
    name = next((name for name, known in named if known is cls), None)
    settings = dataclasses.asdict(policy) if dataclasses.is_dataclass(policy) else {}
    return {"name": name or f"{cls.__module__}:{cls.__qualname__}", **settings}


def label(policy: Mapping[str, Any]) -> str:
    """A described policy in one line, such as "streaming sinks=4 window=1020".

    Settings that are given by name alone, or are no numbers, are left out where they are the
    default.
    """
    usual = usual_settings(policy["name"])
    told = {name: value for name, value in policy.items() if name != "name"}
    fields = [f"{x}={told[x]}" for x in told if x not in usual or told[x] != usual[x]]
    return " ".join([policy["name"], *fields])
