# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The machine that a result was made on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

from jaxkv.core.errors import InputError


def where() -> dict[str, Any]:
    """The device, the versions and the date of a measurement."""
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu":
        name = f"{_processor()}, {_cores()} cores"
    return {
        "device": name,
        "platform": device.platform,
        "jaxkv": _version(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def check_memory(size: int, what: str) -> None:
    """Refuses what the default device could never hold.

    Args:
      size: bytes.
      what: would take them; the message begins with it.

    Raises:
      InputError: says how many there are.
    """
    there = memory()
    if there is not None and size > there:
        raise InputError(
            f"{what} would take {size / 1e9:.1f} GB, and this device has {there / 1e9:.1f} GB"
        )


def memory() -> int | None:
    """Bytes of the default device's memory, if that is known."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _version() -> str:
    try:
        return importlib.metadata.version("jaxkv")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from its source


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
