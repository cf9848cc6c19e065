# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention of a chunk of tokens over a slab of keys and values."""

from __future__ import annotations

from jax import Array

from pallas_kernels.dispatch import Implementation, dispatch, for_hopper, for_tpu
from pallas_kernels.prefill import reference, xla
from pallas_kernels.slots import Slots, answered, asked

IMPLEMENTATIONS = {
    "mosaic_tpu": for_tpu("pallas_kernels.prefill.mosaic_tpu", "prefill_attention"),
    "mosaic_gpu": for_hopper("pallas_kernels.prefill.mosaic_gpu", "prefill_attention"),
    "xla": xla.prefill_attention,
    "reference": reference.prefill_attention,
}


def prefill_attention(
    q: Array,
    k: Slots,
    v: Slots,
    q_pos: Array,
    k_pos: Array,
    *,
    scale: float,
    window: int | None = None,
    sinks: int = 0,
    num_slots: Array | None = None,
    slopes: Array | None = None,
    soft_cap: float | None = None,
    implementation: Implementation = None,
) -> tuple[Array, Array]:
    """A chunk of T query tokens per row over S slots, blocked over the slots.

    Args:
      q: [B, T, N, H], rotated; N = G K, query head n uses KV head n // G.
      k: [B, K, S, H], rotated; or as `Int8` or `Int4`.
      v: [B, K, S, H], as `k`.
      q_pos: int32 [B, T]; negative for padding, which sees nothing.
      k_pos: int32 [B, P, S], P is K, or 1 where all heads keep the same tokens; -1 is empty.
      scale: multiplies the scores.
      window: past tokens in reach; None is no limit.
      sinks: the first positions, always in reach.
      num_slots: int32 scalar, may be traced: slots from here on are empty in every row, and are
        not visited. None visits all.
      slopes: float32 [N], ALiBi's: slope times distance is taken from a score; None is no bias.
      soft_cap: scaled scores s become cap tanh(s / cap); None leaves them.
      implementation: see `dispatch`.

    Returns:
      out [B, T, N, H] in the dtype of `q`, and lse [B, T, N] float32, the natural log of the sum
      of exponentials of the scores. A query that sees no key gives zeros and -inf.
    """
    out, lse = dispatch(
        IMPLEMENTATIONS, implementation, asked(q, k), k, v, q_pos, k_pos,
        scale=scale, window=window, sinks=sinks, num_slots=num_slots,
        slopes=slopes, soft_cap=soft_cap,
    )  # fmt: skip
    return answered(out, v), lse
