# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a cache costs and holds, counted from its arrays."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.cache.grouped import Grouped
from jaxkv.cache.pool import Pool, owned_positions
from jaxkv.cache.refreshed import Refreshed
from jaxkv.cache.shared import Shared
from jaxkv.cache.slab import Slab
from jaxkv.core.hosts import fetch


def nbytes(cache: Any) -> int:
    """Physical bytes: the sum over the arrays of any pytree, also of abstract ones."""
    return sum(-(-math.prod(x.shape) * _bits(x.dtype) // 8) for x in jax.tree.leaves(cache))


def _bits(dtype: Any) -> int:
    """Of an element on a device: NumPy has no type of less than a byte, and says so of int4.

    A PRNG key's type is JAX's own, and knows its size.
    """
    return jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8 * dtype.itemsize


def kept_tokens(layers: tuple[Any, ...], row: int = 0) -> list[list[int]]:
    """Tokens in the slots of each KV head, per layer, in one row of the batch."""
    return [_of_layer(layer, row) for layer in layers]


def tokens_seen(layers: tuple[Any, ...]) -> np.ndarray:
    """Tokens that each row has ever taken in, int [B]."""
    parts = jax.tree.leaves(layers, is_leaf=lambda x: isinstance(x, Slab))
    return fetch(next(part.seen for part in parts if isinstance(part, Slab)))


def steps_taken(layers: tuple[Any, ...], row: int = 0) -> dict[str, Any] | None:
    """How a row was decoded, where a policy counts full and partial steps; None elsewhere.

    Returns:
      `decoded` steps since the prompt; `full` ones of each layer; `effective_stride`, decoded steps
      for one full step of a layer on average (None if there was none); and `key_bytes_per_step`, of
      keys and values that a step read on average, at the present length.
    """
    counted = [layer for layer in layers if isinstance(layer, Refreshed)]
    if not counted:
        return None
    decoded = int(fetch(counted[0].steps)[row])
    full = [int(fetch(layer.full_steps)[row]) for layer in counted]
    read = 0.0
    for layer, often in zip(counted, full, strict=True):
        part, everything = _row_bytes(layer.part), _row_bytes(layer.full)
        share = often / decoded if decoded else 1.0
        filled = min(int(fetch(layer.full.seen)[row]), layer.full.slots) / layer.full.slots
        read += share * everything * filled + (1 - share) * part
    return {
        "decoded": decoded,
        "full": full,
        "effective_stride": decoded * len(full) / sum(full) if sum(full) else None,
        "key_bytes_per_step": round(read),
    }


def bytes_read(layers: tuple[Any, ...], row: int = 0) -> int:
    """Bytes of kept keys and values that a decode step of one row reads, at the present length.

    Where a policy has full and partial steps: on average over those it took.
    """
    if steps := steps_taken(layers, row):
        return steps["key_bytes_per_step"]
    total = 0
    for layer in layers:
        leaves = jax.tree.leaves(layer, is_leaf=lambda x: isinstance(x, Slab | Pool))
        parts = [part for part in leaves if isinstance(part, Slab | Pool)]
        if parts:
            total += sum(_of_layer(layer, row)) * _token_bytes(parts[0])
    return total


def _token_bytes(part: Slab | Pool) -> int:
    """Of the key and the value in a slot of one head."""
    slots = (
        part.pos.size if isinstance(part, Pool) else part.seen.shape[0] * part.heads * part.slots
    )
    return nbytes((part.k, part.v)) // slots


def _row_bytes(slab: Slab) -> int:
    """Of keys and values, of one row."""
    return nbytes((slab.k, slab.v)) // slab.seen.shape[0]


def _of_layer(layer: Any, row: int) -> list[int]:
    """In the model's order of heads, however a cache groups them."""
    if isinstance(layer, Grouped):
        grouped = [_of_layer(slab, row) for slab in layer.slabs]
        by_head = {
            head: count
            for heads, found in zip(layer.heads, grouped, strict=True)
            for head, count in zip(heads, found, strict=True)
        }
        return [by_head[head] for head in sorted(by_head)]
    if isinstance(layer, Shared):
        both = zip(_of_layer(layer.ring, row), fetch(layer.counts)[row], strict=True)
        return [count + int(pooled) for count, pooled in both]
    # A layer may hold tokens of the same heads in several places.
    parts = jax.tree.leaves(layer, is_leaf=lambda x: isinstance(x, Slab | Pool))
    counts = [_per_head(part, row) for part in parts if isinstance(part, Slab | Pool)]
    return [sum(of_head) for of_head in zip(*counts, strict=True)]


def _per_head(part: Slab | Pool, row: int) -> list[int]:
    if isinstance(part, Pool):
        return [int(n) for n in (fetch(owned_positions(part))[row] >= 0).sum(axis=-1)]
    counts = (fetch(part.pos)[row] >= 0).sum(axis=-1)
    return [int(n) for n in np.broadcast_to(counts, (part.heads,))]
