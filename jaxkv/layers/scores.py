# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a prompt its last queries looked at: SnapKV's scores, and the best of them."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array, lax

from jaxkv.cache.store import Store, as_slots
from jaxkv.core.scoring import bent
from jaxkv.core.typing import Positions, Queries, Rotation, SlotPositions
from pallas_kernels import attention_mass


def mass_of(
    q: Queries, lse: Array, k: Store, q_pos: Positions, k_pos: SlotPositions,
    rope: Rotation | None, num_slots: Array | None = None,
) -> Array:  # fmt: skip
    """Attention that each slot received from the queries, summed over them: float32 [B, N, S].

    It tells what to keep, which has no derivative.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    q, lse, slots = lax.stop_gradient((q, lse, as_slots(k)))
    return attention_mass(
        q, lse, slots, q_pos, k_pos, scale=scale, num_slots=num_slots, **bent(rope)
    )


def pooled_scores(mass: Array, pos: SlotPositions, chosen_from: Array, kernel: int) -> Array:
    """SnapKV's score of each slot (arXiv 2404.14469, section 4; the order of steps is kvpress').

    Per query head the mass is max-pooled over `kernel` neighbouring tokens, so that what surrounds
    an attended token is kept with it, then averaged over the query heads that share a KV head.
    Neighbours are tokens next to each other by position among those to choose from, in whatever
    order the slots hold them.

    Args:
      mass: float32 [B, N, S].
      pos: int32 [B, K, S].
      chosen_from: bool [B, K, S]; other slots score -inf and lend nothing to their neighbours.
      kernel: odd.

    Returns:
      float32 [B, K, S].
    """
    b, n, slots = mass.shape
    heads = pos.shape[1]
    order = jnp.argsort(jnp.where(chosen_from, pos, -1), axis=-1)
    back = jnp.argsort(order, axis=-1)
    mass = jnp.where(chosen_from[:, :, None], mass.reshape(b, heads, n // heads, slots), -jnp.inf)
    mass = jnp.take_along_axis(mass, order[:, :, None], axis=-1)
    mass = jnp.take_along_axis(max_pool(mass, kernel), back[:, :, None], axis=-1)
    return jnp.where(chosen_from, jnp.mean(mass, axis=2), -jnp.inf)


def max_pool(x: Array, kernel: int) -> Array:
    """Maximum over `kernel` neighbours of the last axis, centred; nothing lies beyond the ends."""
    reach = min(kernel // 2, x.shape[-1] - 1)
    ones = (1,) * (x.ndim - 1)
    around = [(0, 0)] * (x.ndim - 1) + [(reach, reach)]
    return lax.reduce_window(
        x, jnp.asarray(-jnp.inf, x.dtype), lax.max, (*ones, 2 * reach + 1), (*ones, 1), around
    )


def best_slots(scores: Array, count: int) -> tuple[Array, Array]:
    """The `count` best slots of each head, best first; of equal ones the first.

    Args:
      scores: float32 [B, K, S], -inf for slots that may not be taken.
      count: may be above S.

    Returns:
      index int32 [B, K, count], and bool [B, K, count]: whether there was such a slot.
    """
    taken = min(count, scores.shape[-1])
    best, index = lax.top_k(scores, taken)
    padding = [(0, 0), (0, 0), (0, count - taken)]
    return jnp.pad(index, padding), jnp.pad(jnp.logical_not(jnp.isneginf(best)), padding)
