# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Arrays that lie on the devices of several processes, as one process reads them."""

from __future__ import annotations

import jax
import numpy as np
from jax import Array


def fetch(x: Array | np.ndarray) -> np.ndarray:
    """The whole array, in every process; all of them must ask for it."""
    if isinstance(x, Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0
