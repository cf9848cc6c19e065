# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How fast the device reads memory, and medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def matvec_bandwidth(total_bytes: int = 2**29, runs: int = 9) -> float:
    """Bytes per second at which matrix-vector products read float32 matrices.

    The ceiling of a decode step, which reads every weight once for one row. The matrices together
    are larger than a cache holds, and are of the shape of a small model's, summed in two halves
    like the model's own products.
    """
    rows, columns = 1024, 4096
    count = max(1, total_bytes // (rows * columns * 4))
    rng = np.random.default_rng(0)
    one = rng.standard_normal((2, rows // 2, columns), dtype=np.float32)
    matrices = [jnp.asarray(one) + i for i in range(count)]

    @jax.jit
    def read(x: jax.Array, matrices: list[jax.Array]) -> jax.Array:
        for matrix in matrices:
            y = jnp.einsum("si,sio->so", x, matrix).sum(axis=0)
            x = (y[:rows] * 1e-6).reshape(2, rows // 2)
        return x

    x = jnp.ones((2, rows // 2), jnp.float32)
    seconds = median_seconds(lambda: jax.block_until_ready(read(x, matrices)), runs)
    return count * rows * columns * 4 / seconds


def copy_bandwidth(total_bytes: int = 2**28, runs: int = 9) -> float:
    """Bytes per second, read and written, at which the device changes a large array."""
    held = [jnp.zeros((total_bytes // 4,), jnp.float32)]
    change = jax.jit(lambda x: x + 1, donate_argnums=0)

    def once() -> None:  # in place: fresh memory would be paid for page by page
        held[0] = jax.block_until_ready(change(held[0]))

    return 2 * total_bytes / median_seconds(once, runs)


def median_seconds(call: Callable[[], Any], runs: int) -> float:
    """The median over `runs` calls, after one that is not counted."""
    call()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
