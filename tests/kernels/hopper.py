# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How the GPU kernels are tested: on a Hopper GPU for real, or else interpreted."""

from __future__ import annotations

import jax
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

CAPABILITY = str(getattr(jax.local_devices()[0], "compute_capability", None))
ON_HOPPER = jax.default_backend() == "gpu" and CAPABILITY.startswith("9.")
INTERPRETS = jax.__version_info__ >= (0, 11)
# What lies beyond an array is zeros on a GPU; here it is NaN, which the kernels bear as well.
PARAMETERS = (
    plgpu.InterpretGPUParams(out_of_bounds_reads="uninitialized", detect_races=True)
    if INTERPRETS and not ON_HOPPER
    else None
)
# The interpreter's products are numpy's, which warns of the infinities that the tests put in.
quiet = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
runs = pytest.mark.skipif(
    not (ON_HOPPER or INTERPRETS),
    reason="before jax 0.11 the interpreter has no product with a transposed operand",
)
needs_hopper = pytest.mark.skipif(
    not ON_HOPPER, reason=f"no GPU of compute capability 9.x here: {CAPABILITY}"
)
