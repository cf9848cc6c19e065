# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How much attention each key of a slab received from some queries."""

from __future__ import annotations

from jax import Array

from pallas_kernels.dispatch import Implementation, dispatch, for_hopper, for_tpu
from pallas_kernels.mass import reference, xla
from pallas_kernels.slots import Slots, asked

IMPLEMENTATIONS = {
    "mosaic_tpu": for_tpu("pallas_kernels.mass.mosaic_tpu", "attention_mass"),
    "mosaic_gpu": for_hopper("pallas_kernels.mass.mosaic_gpu", "attention_mass"),
    "xla": xla.attention_mass,
    "reference": reference.attention_mass,
}


def attention_mass(
    q: Array,
    lse: Array,
    k: Slots,
    q_pos: Array,
    k_pos: Array,
    *,
    scale: float,
    num_slots: Array | None = None,
    slopes: Array | None = None,
    soft_cap: float | None = None,
    implementation: Implementation = None,
) -> Array:
    """Column sums of an attention matrix that is never made.

    A second pass over the keys, with the log-sum-exp that the first one returned:
    mass[s] = sum over t of exp(scale q[t] . k[s] - lse[t]), over the queries that see slot s. It
    takes O(S) memory at any T.

    Args:
      q: [B, T, N, H], rotated; N = G K, query head n uses KV head n // G.
      lse: float32 [B, T, N], as attention over these (and maybe other) keys returned it.
      k: [B, K, S, H], rotated; or as `Int8` or `Int4`.
      q_pos: int32 [B, T]; negative for a query that counts for nothing.
      k_pos: int32 [B, P, S], P is K, or 1 where all heads keep the same tokens; -1 is empty.
      scale: multiplies the scores.
      num_slots: int32 scalar, may be traced: slots from here on are empty in every row, and are
        not visited. None visits all.
      slopes: float32 [N], ALiBi's: slope times distance is taken from a score; None is no bias.
      soft_cap: scaled scores s become cap tanh(s / cap); None leaves them.
      implementation: see `dispatch`.

    Returns:
      float32 [B, N, S]; 0 for an empty slot.
    """
    return dispatch(
        IMPLEMENTATIONS, implementation, asked(q, k), lse, k, q_pos, k_pos,
        scale=scale, num_slots=num_slots, slopes=slopes, soft_cap=soft_cap,
    )  # fmt: skip
