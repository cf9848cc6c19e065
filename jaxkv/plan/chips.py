# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The chips that are planned for, by what is published of them."""

from __future__ import annotations

import dataclasses
import math

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
      generation: of a TPU, as libtpu calls it; empty for a GPU.
      axes: of the torus that such chips are joined in.
    """

    name: str
    title: str
    memory: int
    bandwidth: float
    target: Target
    generation: str = ""
    axes: int = 1

    def slice_of(self, count: int) -> str:
        """A slice with at least so many TPUs, as libtpu calls it: v5e:2x4.

        Raises:
          InputError: slices do not come in that size.
        """
        if count not in SLICES:
            raise InputError(
                f"{count} chips of {self.name}; slices have {', '.join(map(str, SLICES))}"
            )
        sizes = [1] * self.axes
        while math.prod(sizes) < max(count, 4):
            sizes[sizes.index(min(sizes))] *= 2
        shape = sorted(sizes, reverse=self.axes == 3 and math.prod(sizes) == 4)
        return f"{self.generation}:{'x'.join(map(str, shape))}"


# Seconds that a collective of few bytes takes: assumed, nobody has measured it here.
LATENCY = {"tpu": 3e-6, "gpu": 8e-6}
SLICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def _tpu(name: str, title: str, gib: int, bandwidth: float, axes: int) -> Chip:
    return Chip(name, title, gib * 2**30, bandwidth, Target("tpu", title), name, axes)


def _hopper(name: str, title: str, memory: int, bandwidth: float) -> Chip:
    return Chip(name, title, memory, bandwidth, Target("gpu", title, "9.0"))


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", "TPU v4", 32, 1228e9, 3),
        _tpu("v5e", "TPU v5 lite", 16, 819e9, 2),
        _tpu("v5p", "TPU v5", 95, 2765e9, 3),
        _tpu("v6e", "TPU v6 lite", 32, 1640e9, 2),
        _hopper("h100", "NVIDIA H100 80GB HBM3", 80_000_000_000, 3350e9),
        _hopper("h200", "NVIDIA H200", 141_000_000_000, 4800e9),
    )
}


def chips_named(text: str) -> tuple[Chip, int | None]:
    """One of `CHIPS`, and how many: "v5e-8"; None where that is not said.

    Raises:
      InputError: there is none of that name, or they do not come in that number.
    """
    name, _, count = text.partition("-")
    if name not in CHIPS or (count and not (count.isdecimal() and int(count) in SLICES)):
        raise InputError(
            f"--chip has {text!r:.40}; each must be one of {', '.join(CHIPS)}, with a count such "
            f"as v5e-8, of {', '.join(map(str, SLICES))}"
        )
    return CHIPS[name], int(count) if count else None
