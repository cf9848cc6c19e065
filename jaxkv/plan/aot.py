# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiles programs for chips that are not here: their compilers need none."""

from __future__ import annotations

import functools
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from jaxkv.core.errors import InputError
from jaxkv.plan.chips import Chip
from pallas_kernels.target import aimed_at

# Without these libtpu asks the network what machine it is on.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Only the compiler is used: there is no chip that two processes could quarrel about.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# What XLA would read off a Hopper GPU.
_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
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
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory}
}}
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
platform_name: "CUDA"
device_description_str: "{title}"
"""
NEEDS = {
    "tpu": "libtpu is not installed: pip install 'jaxkv[tpu]' brings the compiler for TPUs",
    "gpu": "no compiler for NVIDIA GPUs: pip install 'jaxkv[cuda]' brings it, or with --no-deps "
    "jax-cuda13-plugin and jax-cuda13-pjrt of jax's version, nvidia-cuda-nvcc and nvidia-nvvm",
}


def has_compiler(platform: str) -> bool:
    """Whether programs for "tpu" or "gpu" can be compiled here."""
    if platform == "tpu":
        return importlib.util.find_spec("libtpu") is not None
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


def check_compiler(platform: str) -> None:
    """Refuses to compile for what has no compiler here.

    Raises:
      InputError: says what brings it.
    """
    if not has_compiler(platform):
        raise InputError(NEEDS[platform])


def device_of(chip: Chip) -> SingleDeviceSharding:
    """One chip that is not here; see `devices_of`."""
    return SingleDeviceSharding(devices_of(chip, 1)[0])


@functools.cache
def devices_of(chip: Chip, count: int) -> tuple[Any, ...]:
    """Chips that are not here, `count` of one machine or slice.

    Raises:
      InputError: their compiler is not installed, or they do not come in such a number.
    """
    from jax.experimental import topologies

    check_compiler(chip.target.platform)
    if chip.target.platform == "tpu":
        for name, value in _LIBTPU.items():
            os.environ.setdefault(name, value)
        name = chip.slice_of(count)
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    else:
        # XLA takes a card of 80 GB for one of 79.1 GiB, as its driver says.
        told = _HOPPER.format(
            bandwidth=chip.bandwidth, memory=int(chip.memory * 1.06), title=chip.title
        )
        name = f"1x1x{count}"
        found = topologies.get_topology_desc(name, "cuda", target_config=told, topology=name)
    return tuple(found.devices[:count])


def compile_for(
    chip: Chip, function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()
) -> jax.stages.Compiled:
    """Compiles for one chip; the arguments are `jax.ShapeDtypeStruct`s in any tree.

    It is not told which kernels to take: see `aimed_at`.
    """
    args = on_one(chip, args)
    return jax.jit(function, donate_argnums=donate).lower(*args).compile()


def on_one(chip: Chip, args: Any) -> Any:
    """Abstract arrays of any tree, on one chip."""
    place = functools.partial(jax.ShapeDtypeStruct, sharding=device_of(chip))
    return jax.tree.map(lambda x: place(x.shape, x.dtype), args)


def measured(chip: Chip, lower: Callable[[], jax.stages.Lowered]) -> dict[str, Any]:
    """What the compiler says that a program takes on a chip, with the chip's own kernels.

    Args:
      chip: what it is for.
      lower: traces it, for devices that are not here.

    Returns:
      Bytes of the arguments, of what is computed beside them (`temporary_bytes`), and of all at
      once (`peak_bytes`, arguments that are given back in place counted once); calls of kernels;
      and the seconds that compiling took.
    """
    began = time.perf_counter()
    with aimed_at(chip.target):
        compiled = lower().compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    call = "tpu_custom_call" if chip.target.platform == "tpu" else "mosaic_gpu_v2"
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": kept + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        "kernels": text.count(f'"{call}"'),
        "compile_s": round(time.perf_counter() - began, 1),
    }
