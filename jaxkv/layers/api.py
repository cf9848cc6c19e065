# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One layer's cache for other codebases: their attention call becomes one of these two."""

from __future__ import annotations

from jaxkv.cache.slab import nan_past_the_end
from jaxkv.core.errors import InputError
from jaxkv.core.typing import (
    Hidden,
    Lengths,
    NewKeys,
    OutputWeight,
    Queries,
    Rotation,
    SinkLogits,
)
from jaxkv.layers.base import Chunk, Constants, LayerCache, LayerPolicy


def prefill(
    policy: LayerPolicy,
    cache: LayerCache,
    q: Queries,
    k: NewKeys,
    v: NewKeys,
    *,
    rope: Rotation | None = None,
    lengths: Lengths | None = None,
    hidden: Hidden | None = None,
    wo: OutputWeight | None = None,
    sink_logits: SinkLogits | None = None,
) -> tuple[LayerCache, Queries]:
    """Takes (a part of) a prompt into one layer's cache and attends.

    Args:
      policy: from `some_policy.at(layer, geometry)`; `policy.init()` gives the first cache.
      cache: the layer's cache.
      q: [B, T, N, H], un-rotated.
      k: [B, T, K, H], un-rotated.
      v: [B, T, K, H].
      rope: rotates (x [B, T, N, H], positions [B, T]); None for a model without.
      lengths: int32 [B], valid tokens in each row, padding on the right; None if all are.
      hidden: [B, T, D], the states that q, k and v were projected from; for policies that need
        "hidden".
      wo: [N, H, D], the layer's output projection; for policies that need "constants".
      sink_logits: [N], of models that have them; see `Chunk`.

    Returns:
      The cache after the tokens, and out [B, T, N, H]; NaN in rows past the last int32 position.

    Raises:
      InputError: shapes that do not fit together, or nothing where the policy needs it.
    """
    _check(q, k, v, sink_logits)
    if hidden is not None and (hidden.ndim != 3 or hidden.shape[:2] != q.shape[:2]):
        raise InputError(f"hidden has shape {hidden.shape} and q {q.shape}; it must be [B, T, D]")
    if wo is not None and (wo.ndim != 3 or wo.shape[:2] != q.shape[2:]):
        raise InputError(f"wo has shape {wo.shape} and q {q.shape}; it must be [N, H, D]")
    constants = None if wo is None else Constants(wo)
    chunk = Chunk(q, k, v, lengths, rope, False, hidden, constants, sink_logits)
    after, out = policy.take(cache, chunk)
    return after, nan_past_the_end(cache, chunk.count, out)


def step(
    policy: LayerPolicy,
    cache: LayerCache,
    q: Queries,
    k: NewKeys,
    v: NewKeys,
    *,
    rope: Rotation | None = None,
    lengths: Lengths | None = None,
    sink_logits: SinkLogits | None = None,
) -> tuple[LayerCache, Queries]:
    """Takes one decoded token per row: as `prefill`, with T = 1."""
    _check(q, k, v, sink_logits)
    if q.shape[1] != 1:
        raise InputError(f"a step takes 1 token per row, not {q.shape[1]}; use prefill")
    chunk = Chunk(q, k, v, lengths, rope, decoding=True, sink_logits=sink_logits)
    after, out = policy.take(cache, chunk)
    return after, nan_past_the_end(cache, chunk.count, out)


def _check(q: Queries, k: NewKeys, v: NewKeys, sink_logits: SinkLogits | None) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise InputError(f"q, k, v have shapes {q.shape}, {k.shape}, {v.shape}; see the docstring")
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise InputError(
            f"q has shape {q.shape} and k {k.shape}; rows, tokens and head size must be equal and "
            "query heads a multiple of KV heads"
        )
    if sink_logits is not None and sink_logits.shape != q.shape[2:3]:
        raise InputError(
            f"sink_logits have shape {sink_logits.shape} and q {q.shape}; they must be [N]"
        )
