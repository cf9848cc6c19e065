# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Lowers and compiles programs for an H100 on a machine that has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import pytest

from jaxkv.plan import aot
from jaxkv.plan.chips import CHIPS

COMPILED: list[str] = []  # as in `tpu`
needs_cuda_compiler = pytest.mark.skipif(not aot.has_compiler("gpu"), reason=aot.NEEDS["gpu"])


def compile_for(function: Callable[..., Any], *args: Any) -> jax.stages.Compiled:
    """Compiles for one H100; the arguments are `jax.ShapeDtypeStruct`s in any tree."""
    compiled = aot.compile_for(CHIPS["h100"], function, *args)
    COMPILED.append("h100")
    return compiled


def lower_for(function: Callable[..., Any], *args: Any) -> str:
    """The program as it would go to XLA for CUDA, which needs no plugin."""
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
