# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Chooses an implementation of an op."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from pallas_kernels.target import target

Implementation = str | Sequence[str] | None

PLATFORM_ORDER: Mapping[str, tuple[str, ...]] = {
    "tpu": ("mosaic_tpu", "xla"),
    "gpu": ("mosaic_gpu", "xla"),
    "cpu": ("xla",),
}


def order() -> tuple[str, ...]:
    """What is tried on this platform, the first first."""
    return PLATFORM_ORDER.get(target().platform, ("xla",))


def for_tpu(module: str, name: str) -> Callable[..., Any]:
    """A function of a module of Pallas kernels: slow to import, and of no use but on a TPU."""

    def call(*args: Any, **kw: Any) -> Any:
        if (platform := target().platform) != "tpu":
            raise NotImplementedError(f"mosaic_tpu needs a TPU, not a {platform}")
        return getattr(importlib.import_module(module), name)(*args, **kw)

    return call


def for_hopper(module: str, name: str) -> Callable[..., Any]:
    """A function of a module of Pallas kernels whose matrix instructions only Hopper GPUs have."""

    def call(*args: Any, **kw: Any) -> Any:
        device = target()
        if device.platform != "gpu":
            raise NotImplementedError(f"mosaic_gpu needs an NVIDIA GPU, not a {device.platform}")
        capability = str(device.capability)
        # The instructions came with 9.0 and left with 10.0.
        if capability.split(".")[0] != "9":
            raise NotImplementedError(f"mosaic_gpu needs compute capability 9.x, not {capability}")
        return getattr(importlib.import_module(module), name)(*args, **kw)

    return call


def dispatch(table: Mapping[str, Callable[..., Any]], implementation: Implementation, *args, **kw):
    """Calls the first implementation that can take the case.

    Args:
      table: name -> function. A function raises NotImplementedError for a case, or a device, that
        it does not serve; the next one is then tried.
      implementation: None for the platform's order, which ends in "xla"; a name, which never
        falls back; or a sequence of names.
      *args: passed on.
      **kw: passed on.

    Raises:
      ValueError: a name that is not in the table.
      NotImplementedError: the one explicit name cannot take the case.
      ExceptionGroup: none of several can.
    """
    if implementation is None:
        names = tuple(name for name in order() if name in table)
    else:
        names = (implementation,) if isinstance(implementation, str) else tuple(implementation)
    if unknown := [name for name in names if name not in table] or not names:
        raise ValueError(f"implementation={unknown!r} is not one of {sorted(table)}")
    errors: list[Exception] = []
    for name in names:
        try:
            # Mosaic takes Python's numbers for integers of 64 bits where the process asked for
            # those; its kernels have none.
            with contextlib.nullcontext() if name == "xla" else jax.enable_x64(False):
                return table[name](*args, **kw)
        except NotImplementedError as error:
            if len(names) == 1:
                raise
            errors.append(error)
    raise ExceptionGroup("no implementation can take this case", errors)
