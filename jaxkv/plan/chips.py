# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The chips that are planned for, by what is published of them."""

from __future__ import annotations

import dataclasses

from jaxkv.core.errors import InputError
from pallas_kernels.target import Target


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      name: as users type it.
      title: as its maker calls it.
      memory: bytes.
      bandwidth: of that memory, bytes a second.
      target: what kernels are chosen by.
      topology: a small machine of such chips, as libtpu calls it; empty for a GPU.
    """

    name: str
    title: str
    memory: int
    bandwidth: float
    target: Target
    topology: str = ""


def _tpu(name: str, title: str, gib: int, bandwidth: float, topology: str) -> Chip:
    return Chip(name, title, gib * 2**30, bandwidth, Target("tpu", title), topology)


def _hopper(name: str, title: str, memory: int, bandwidth: float) -> Chip:
    return Chip(name, title, memory, bandwidth, Target("gpu", title, "9.0"))


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", "TPU v4", 32, 1228e9, "v4:2x2x1"),
        _tpu("v5e", "TPU v5 lite", 16, 819e9, "v5e:2x2"),
        _tpu("v5p", "TPU v5", 95, 2765e9, "v5p:2x2x1"),
        _tpu("v6e", "TPU v6 lite", 32, 1640e9, "v6e:2x2"),
        _hopper("h100", "NVIDIA H100 80GB HBM3", 80_000_000_000, 3350e9),
        _hopper("h200", "NVIDIA H200", 141_000_000_000, 4800e9),
    )
}


def chip_named(name: str) -> Chip:
    """One of `CHIPS`.

    Raises:
      InputError: there is none of that name.
    """
    if name not in CHIPS:
        raise InputError(f"--chip has {name!r:.40}; each must be one of {', '.join(CHIPS)}")
    return CHIPS[name]
