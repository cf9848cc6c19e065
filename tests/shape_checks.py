# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Annotations of the packages are checked at every call that a test makes, shapes included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# A share of 1 is a float as well.
_annotations = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """What jaxtyping wraps functions in.

    All but the making of dataclasses: jax makes those of caches with other things in place of
    arrays, as `jax.tree.map` may give anything.
    """
    return function if function.__name__ == "__init__" else _annotations(function)


def install() -> None:
    """Before the packages are imported."""
    install_import_hook(["jaxkv", "pallas_kernels"], f"{__name__}.check")
