# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiles programs for TPU chips on a machine that has none: XLA and Mosaic are in libtpu."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

COMPILED: list[str] = []  # the chip of each program so far
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# Without these libtpu asks the network what machine it is on.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Only the compiler is used: there is no chip that two processes could quarrel about.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
MOVES = re.compile(r"= \(?\w+\[([\d,]+)\]\S* (?:copy|copy-start|transpose|reshape|pad|convert)\(")

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install '.[tpu]' brings the compiler for TPUs",
)


@functools.cache
def sharding(chip: str) -> SingleDeviceSharding:
    """One device of a kind of chip."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    found = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip])
    return SingleDeviceSharding(found.devices[0])


def compile_for(
    chip: str, function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()
) -> jax.stages.Compiled:
    """Compiles for one chip; the arguments are `jax.ShapeDtypeStruct`s in any tree."""
    place = functools.partial(jax.ShapeDtypeStruct, sharding=sharding(chip))
    args = jax.tree.map(lambda x: place(x.shape, x.dtype), args)
    compiled = jax.jit(function, donate_argnums=donate).lower(*args).compile()
    COMPILED.append(chip)
    return compiled


def moves(text: str, size: int) -> list[str]:
    """The lines of a compiled program that move `size` numbers or more without using them."""
    found = ((line.strip(), MOVES.search(line)) for line in text.splitlines())
    return [
        line
        for line, match in found
        if match and math.prod(int(x) for x in match[1].split(",")) >= size
    ]


def every_step(text: str) -> list[str]:
    """The lines of a decode program that run at every step or around them: `ENTRY` and its loop.

    What runs in a branch or in a loop within that one is not there, nor what is fused.
    """
    parts: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.split()[0].lstrip("%")
            parts[name] = []
        elif name:
            parts[name].append(line)
    entry = parts["ENTRY"]
    bodies = [
        match[1] for line in entry if (match := re.search(r" while\(.*body=%([^,\s]+)", line))
    ]
    assert bodies, "there is no loop"
    return entry + [line for body in bodies for line in parts[body]]
