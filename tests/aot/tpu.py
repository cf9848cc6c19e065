# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiles programs for TPU chips on a machine that has none: XLA and Mosaic are in libtpu."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import pytest

from jaxkv.plan import aot, chips

COMPILED: list[str] = []  # the chip of each program so far
CHIPS = ("v5e", "v5p", "v6e")
MOVES = re.compile(r"= \(?\w+\[([\d,]+)\]\S* (?:copy|copy-start|transpose|reshape|pad|convert)\(")

needs_libtpu = pytest.mark.skipif(not aot.has_compiler("tpu"), reason=aot.NEEDS["tpu"])


def compile_for(
    chip: str, function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()
) -> jax.stages.Compiled:
    """Compiles for one chip; the arguments are `jax.ShapeDtypeStruct`s in any tree."""
    compiled = aot.compile_for(chips.CHIPS[chip], function, *args, donate=donate)
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
