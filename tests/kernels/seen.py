# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Which slots a query may see, written once more, in NumPy."""

from __future__ import annotations

import numpy as np


def seen(q_pos: np.ndarray, k_pos: np.ndarray, sinks: int, window: int | None) -> np.ndarray:
    """bool, the shape to which positions broadcast."""
    distance = q_pos.astype(np.int64) - k_pos
    near = np.full(distance.shape, True) if window is None else distance <= window
    first = np.broadcast_to(k_pos < sinks, distance.shape)
    return (k_pos >= 0) & (distance >= 0) & (near | first)
