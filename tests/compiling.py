# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How tests compile: fast rather than well, once per machine, and with few memory maps."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

# Programs are tiny and many here: compiling them well would take most of the time.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # A module is one piece of work: splitting it takes a fifth of the time, and every core has its
    # own process of tests.
    "--xla_cpu_parallel_codegen_split_count=1",
]
# The older emitters compile in 0.6 of the time. Later versions of jax have them no longer.
OLD_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
MOST_BYTES = 4 << 30


def set_flags() -> None:
    """Before jax is imported."""
    old = importlib.metadata.version("jaxlib").startswith("0.10.")
    os.environ.setdefault("XLA_FLAGS", " ".join([*FLAGS, *[OLD_EMITTERS] * old]))


def use_disk_cache(folder: Path) -> None:
    """Every program is kept in `folder`, which the processes that tests start use as well.

    What a program depends on is in its name there: jax, flags, the compiler and the processor.
    """
    import jax

    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def drop_if_large(folder: Path) -> None:
    """Starts afresh rather than fill the disk with programs that no test makes any more."""
    if folder.exists() and sum(x.stat().st_size for x in folder.rglob("*")) > MOST_BYTES:
        shutil.rmtree(folder)


def memory_maps() -> int:
    """Of this process, which may have 65,530: a program takes a hundred or more of them."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0
