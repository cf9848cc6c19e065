# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The rules of which key a query sees."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def visible(q_pos: Array, k_pos: Array, sinks: int, window: int | None) -> Array:
    """Which keys a query may attend to.

    A key is there if its position is not negative, causal if it is not after the query, and in
    reach if it is a sink (one of the first `sinks` positions) or at most `window` tokens back.
    `window` counts past tokens: a query also sees itself. None is no limit.

    Args:
      q_pos: int32, absolute positions of the queries, broadcastable against `k_pos`; negative for
        a query that is padding and sees nothing.
      k_pos: int32, absolute position of the token in each slot, negative for an empty slot.
      sinks: how many first positions are always in reach.
      window: past tokens in reach.

    Returns:
      bool, the broadcast shape.
    """
    seen = (k_pos >= 0) & (k_pos <= q_pos)
    if window is None:
        return seen
    reach = q_pos - k_pos <= window
    return seen & (reach | (k_pos < sinks)) if sinks else seen & reach


def used_positions(k_pos: Array, num_slots: Array | None) -> Array:
    """Positions [B, P, S], -1 for slots from `num_slots` on."""
    if num_slots is None:
        return k_pos
    return jnp.where(lax.broadcasted_iota(jnp.int32, k_pos.shape, 2) < num_slots, k_pos, -1)
