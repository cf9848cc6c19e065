# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The device that programs are made for: the one that is here, or one that is only described."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar

import jax


@dataclasses.dataclass(frozen=True)
class Target:
    """A device, as far as kernels are chosen by it.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      kind: as jax names it: see `tuned`.
      capability: of an NVIDIA GPU, such as "9.0"; None for others.
    """

    platform: str
    kind: str
    capability: str | None = None


_AIMED: ContextVar[Target | None] = ContextVar("aimed at", default=None)


def target() -> Target:
    """What was aimed at, or else what jax runs on."""
    aimed = _AIMED.get()
    if aimed is not None:
        return aimed
    device = jax.local_devices()[0]
    capability = getattr(device, "compute_capability", None)
    return Target(jax.default_backend(), device.device_kind, capability and str(capability))


@contextlib.contextmanager
def aimed_at(device: Target) -> Iterator[None]:
    """Programs are traced for another device, to be compiled and not run.

    What was traced for one must not be taken for the other: jax forgets it before and after.
    """
    jax.clear_caches()
    before = _AIMED.set(device)
    try:
        yield
    finally:
        _AIMED.reset(before)
        jax.clear_caches()
