# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a policy declares of its fields: which is its size, and which its caches hold."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from jaxkv.core.errors import InputError
from jaxkv.layers.base import Policy


class _InCache:
    """Stands in a program where a policy has a setting that the cache holds."""

    def __repr__(self) -> str:
        return "<in the cache>"

    def _refuse(self, *_: Any) -> Any:
        raise InputError(
            "a setting that caches hold is read from the policy; programs are shared by all its "
            "values, so a layer reads it from its cache"
        )

    __bool__ = __index__ = __int__ = __float__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _refuse


_IN_CACHE = _InCache()


def in_caches(default: Any) -> Any:
    """A field of a policy that its caches hold as an array, so that no program depends on it.

    Layers read it from their cache, and know of themselves only whether it is None.
    """
    return dataclasses.field(default=default, metadata={"in_caches": True})


def swept(default: Any, less: str | None = None) -> Any:
    """A field of a policy that is its size in tokens, which a sweep over budgets sets.

    Args:
      default: of the field.
      less: another field, whose tokens are part of the budget too.
    """
    return dataclasses.field(default=default, metadata={"swept": True, "less": less})


def as_compiled(policy: Policy) -> Policy:
    """The policy that programs are made for: the same for all that differ in `in_caches` alone.

    What is in caches cannot be read from it.
    """
    held = [field.name for field in dataclasses.fields(policy) if "in_caches" in field.metadata]
    shared = copy.copy(policy)
    for name in held:
        if getattr(policy, name) is not None:
            object.__setattr__(shared, name, _IN_CACHE)  # no value, so nothing to check
    return shared


def is_shared(policy: Policy) -> bool:
    """Whether it comes from `as_compiled` and lacks settings, so that it can make no cache."""
    return any(getattr(policy, field.name) is _IN_CACHE for field in dataclasses.fields(policy))
