# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention of one new token per row over a pool of blocks that belong to different heads."""

from __future__ import annotations

from jax import Array

from pallas_kernels.dispatch import Implementation, dispatch, for_hopper, for_tpu
from pallas_kernels.pool import reference, xla
from pallas_kernels.pool.spans import Span
from pallas_kernels.slots import Slots, answered, asked

IMPLEMENTATIONS = {
    "mosaic_tpu": for_tpu("pallas_kernels.pool.mosaic_tpu", "pool_attention"),
    "mosaic_gpu": for_hopper("pallas_kernels.pool.mosaic_gpu", "pool_attention"),
    "xla": xla.pool_attention,
    "reference": reference.pool_attention,
}


def pool_attention(
    q: Array,
    k: Slots,
    v: Slots,
    q_pos: Array,
    k_pos: Array,
    owner: Array,
    *,
    num_kv_heads: int,
    scale: float,
    slopes: Array | None = None,
    soft_cap: float | None = None,
    span: Span | None = None,
    implementation: Implementation = None,
) -> tuple[Array, Array]:
    """One query token per row, whose heads read as many blocks as each has, of one pool.

    Which head has how many blocks is data: budgets may change from prompt to prompt without a new
    program. A block is read once, by the G query heads of the KV head that it belongs to.

    Args:
      q: [B, N, H], rotated; N = G K, query head n uses KV head n // G.
      k: [B, S, H], the slots of M blocks one after the other, S / M in each, rotated; or as `Int8`
        or `Int4`.
      v: [B, S, H], as `k`.
      q_pos: int32 [B].
      k_pos: int32 [B, S], -1 is empty.
      owner: int32 [B, M], the KV head of each block.
      num_kv_heads: K.
      scale: multiplies the scores.
      slopes: float32 [N], ALiBi's: slope times distance is taken from a score; None is no bias.
      soft_cap: scaled scores s become cap tanh(s / cap); None leaves them.
      span: int32 [B] twice, the first block that is read and the one after the last; None is all.
        No other block's keys are moved.
      implementation: see `dispatch`.

    Returns:
      out [B, N, H] in the dtype of `q`, and lse [B, N] float32. A head that sees no key gives zeros
      and -inf.
    """
    out, lse = dispatch(
        IMPLEMENTATIONS, implementation, asked(q, k), k, v, q_pos, k_pos, owner,
        num_kv_heads=num_kv_heads, scale=scale, slopes=slopes, soft_cap=soft_cap,
        span=span,
    )  # fmt: skip
    return answered(out, v), lse
