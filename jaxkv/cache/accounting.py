# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a cache costs and holds, counted from its arrays."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxkv.cache.slab import Slab


def nbytes(cache: Any) -> int:
    """Physical bytes: the sum over the arrays of any pytree, also of abstract ones."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(cache))


def kept_tokens(layers: tuple[Any, ...], row: int = 0) -> list[list[int]]:
    """Tokens in the slots of each KV head, per layer, in one row of the batch."""
    return [[count for slab in _slabs(layer) for count in _per_head(slab, row)] for layer in layers]


def _slabs(layer: Any) -> list[Slab]:
    is_slab = lambda x: isinstance(x, Slab)  # noqa: E731
    return [x for x in jax.tree.leaves(layer, is_leaf=is_slab) if is_slab(x)]


def _per_head(slab: Slab, row: int) -> list[int]:
    counts = (np.asarray(slab.pos[row]) >= 0).sum(axis=-1)
    return [int(n) for n in np.broadcast_to(counts, (slab.k.shape[1],))]
