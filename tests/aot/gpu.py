# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Lowers and compiles programs for an H100 on a machine that has none."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

# What XLA would read off the device.
COMPILED: list[str] = []  # as in `tpu`
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  memory_bandwidth: 3350000000000
  device_memory_size: 84942979072
}
dnn_version_info { major: 9 minor: 12 patch: 0 }
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def _has_compiler() -> bool:
    plugin = importlib.util.find_spec("jax_cuda13_plugin")
    if plugin is None or plugin.origin is None:
        return False
    # XLA looks beside the plugin and where CUDA installs itself. Where libdevice is missing it does
    # not raise, it ends the process.
    beside = Path(plugin.origin).parents[1] / "nvidia" / "cu13"
    return any(
        (root / "bin" / "ptxas").exists() and (root / "nvvm" / "libdevice").exists()
        for root in (beside, Path("/usr/local/cuda"))
    )


needs_cuda_compiler = pytest.mark.skipif(
    not _has_compiler(),
    reason="no compiler for NVIDIA GPUs: pip install '.[cuda]' brings it, or with --no-deps "
    "jax-cuda13-plugin and jax-cuda13-pjrt of jax's version, nvidia-cuda-nvcc and nvidia-nvvm",
)


@functools.cache
def sharding() -> SingleDeviceSharding:
    """The one device of an H100."""
    found = topologies.get_topology_desc("1x1x1", "cuda", target_config=H100, topology="1x1x1")
    return SingleDeviceSharding(found.devices[0])


def compile_for(function: Callable[..., Any], *args: Any) -> jax.stages.Compiled:
    """Compiles for one H100; the arguments are `jax.ShapeDtypeStruct`s in any tree."""
    place = functools.partial(jax.ShapeDtypeStruct, sharding=sharding())
    args = jax.tree.map(lambda x: place(x.shape, x.dtype), args)
    compiled = jax.jit(function).lower(*args).compile()
    COMPILED.append("h100")
    return compiled


def lower_for(function: Callable[..., Any], *args: Any) -> str:
    """The program as it would go to XLA for CUDA, which needs no plugin."""
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
