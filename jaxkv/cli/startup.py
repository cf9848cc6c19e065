# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What every command does before it works: quiet logs, and programs compiled once per machine."""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
from pathlib import Path

from jaxkv.core.files import home


def prepare() -> None:
    """Turns on jax's compilation cache on disk, unless `$JAX_COMPILATION_CACHE_DIR` says where."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # one line
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = home() / "compiled" / processor()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def processor() -> str:
    """A name for this kind of processor: code compiled for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    text = "\n".join([platform.machine(), platform.processor(), *model])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
