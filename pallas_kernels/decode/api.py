# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention of one new token per row over a slab of cached keys and values."""

from __future__ import annotations

from jax import Array

from pallas_kernels.decode import xla
from pallas_kernels.dispatch import Implementation, dispatch, for_hopper, for_tpu
from pallas_kernels.slots import Slots, answered, asked

IMPLEMENTATIONS = {
    "mosaic_tpu": for_tpu("pallas_kernels.decode.mosaic_tpu", "decode_attention"),
    "mosaic_gpu": for_hopper("pallas_kernels.decode.mosaic_gpu", "decode_attention"),
    "xla": xla.decode_attention,
}


def decode_attention(
    q: Array,
    k: Slots,
    v: Slots,
    q_pos: Array,
    k_pos: Array,
    *,
    scale: float,
    window: int | None = None,
    sinks: int = 0,
    q_sink: Array | None = None,
    with_mass: bool = False,
    slopes: Array | None = None,
    soft_cap: float | None = None,
    implementation: Implementation = None,
) -> tuple[Array, ...]:
    """One query token per row over a slab whose slots are in any order.

    All G query heads of a KV head are taken together: K and V are read once, never repeated.

    Args:
      q: [B, N, H], rotated; N = G K, query head n uses KV head n // G.
      k: [B, K, S, H], rotated; or as `Int8` or `Int4`.
      v: [B, K, S, H], as `k`.
      q_pos: int32 [B].
      k_pos: int32 [B, P, S], P is K, or 1 where all heads keep the same tokens; -1 is empty.
      scale: multiplies the scores.
      window: past tokens in reach; None is no limit.
      sinks: slots [0, sinks) hold the tokens at positions [0, sinks), which are always in reach.
      q_sink: [B, N, H], the query as rotated for the sink slots (StreamingLLM's in-cache
        positions, where they are at most `sinks + window` away); None scores them with `q`.
      with_mass: whether to give the attention of each slot too, from the same pass.
      slopes: float32 [N], ALiBi's: slope times distance is taken from a score; None is no bias.
      soft_cap: scaled scores s become cap tanh(s / cap); None leaves them.
      implementation: see `dispatch`.

    Returns:
      out [B, N, H] in the dtype of `q`, and lse [B, N] float32, the natural log of the sum of
      exponentials of the scores. A row that sees no key gives zeros and -inf. With `with_mass`
      also the mass, float32 [B, N, S]: the weights, which sum to 1 over the slots.
    """
    out, *others = dispatch(
        IMPLEMENTATIONS, implementation, asked(q, k), k, v, q_pos, k_pos,
        scale=scale, window=window, sinks=sinks,
        q_sink=None if q_sink is None else asked(q_sink, k), with_mass=with_mass,
        slopes=slopes, soft_cap=soft_cap,
    )  # fmt: skip
    return answered(out, v), *others
