# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention over a slab: the calls into `pallas_kernels` that every policy is made of.

Keys and values are stores. Queries and keys are rotated; `rope` is what they were rotated with,
which may also bend scores.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array, lax

from jaxkv.cache.store import Packed, Store, as_slots
from jaxkv.core.scoring import bent
from jaxkv.core.typing import NewKeys, Positions, Queries, Rotation, SinkLogits, SlotPositions
from pallas_kernels import decode_attention, pool_attention, prefill_attention
from pallas_kernels.pool.spans import Span
from pallas_kernels.softmax import Partial, with_sink


def attend_one(
    q: Queries,
    k: Store,
    v: Store,
    q_pos: Positions,
    k_pos: SlotPositions,
    rope: Rotation | None,
    *,
    window: int | None = None,
    sinks: int = 0,
    q_sink: Queries | None = None,
) -> Partial:
    """One decoded token per row over a slab: out [B, 1, N, H] and lse [B, 1, N].

    `q_sink` is the query as rotated for slots [0, sinks); see `pallas_kernels.decode_attention`.
    """
    first = None if q_sink is None else q_sink[:, 0]
    scale = 1 / math.sqrt(q.shape[-1])
    out, lse = decode_attention(
        q[:, 0], as_slots(k), as_slots(v), q_pos[:, 0], k_pos,
        scale=scale, window=window, sinks=sinks, q_sink=first, **bent(rope),
    )  # fmt: skip
    return out[:, None], lse[:, None]


def attend_one_mass(
    q: Queries, k: Store, v: Store, q_pos: Positions, k_pos: SlotPositions,
    rope: Rotation | None, sink_logits: SinkLogits | None = None,
) -> tuple[Queries, Array]:  # fmt: skip
    """As `attend_one`, with the attention of each slot: out [B, 1, N, H], mass [B, N, S].

    The mass has no derivative: it tells what to keep. For `sink_logits` see `Chunk`.
    """
    out, lse, mass = decode_attention(
        q[:, 0], as_slots(k), as_slots(v), q_pos[:, 0], k_pos,
        scale=1 / math.sqrt(q.shape[-1]), with_mass=True, **bent(rope),
    )  # fmt: skip
    if sink_logits is not None:
        out, total = with_sink(out, lse, sink_logits[None])
        mass = mass * jnp.exp(lse - total)[..., None]
    return out[:, None], lax.stop_gradient(mass)


def attend_pool(
    q: Queries, k: Array | Packed, v: Array | Packed, q_pos: Positions, k_pos: Array,
    owner: Array, num_kv_heads: int, rope: Rotation | None, span: Span | None = None,
) -> Partial:  # fmt: skip
    """New tokens over the blocks of each head, all older: out [B, T, N, H], lse [B, T, N].

    For the arguments see `pallas_kernels.pool_attention`.
    """
    batch, count, heads, dim = q.shape
    bending = bent(rope)
    slopes = bending["slopes"]
    # They see the same: to the op, the tokens are more query heads of each KV head.
    rows = q.swapaxes(1, 2).reshape(batch, heads * count, dim)
    steep = None if slopes is None else jnp.repeat(slopes, count)
    out, lse = pool_attention(
        rows, as_slots(k), as_slots(v), q_pos[:, 0], k_pos, owner, num_kv_heads=num_kv_heads,
        scale=1 / math.sqrt(dim), slopes=steep, soft_cap=bending["soft_cap"], span=span,
    )  # fmt: skip
    out = out.reshape(batch, heads, count, dim).swapaxes(1, 2)
    lse = lse.reshape(batch, heads, count).swapaxes(1, 2)
    if slopes is not None and count > 1:
        # Each is as much farther from all keys as it stands behind the first.
        after = jnp.arange(count, dtype=jnp.float32)[None, :, None]
        lse = lse - after * slopes[None, None]
    return out, lse


def attend_slots(
    q: Queries,
    k: Store,
    v: Store,
    q_pos: Positions,
    k_pos: SlotPositions,
    rope: Rotation | None,
    *,
    window: int | None = None,
    num_slots: Array | None = None,
) -> Partial:
    """A chunk over slots: out [B, T, N, H] and lse [B, T, N]."""
    return prefill_attention(
        q, as_slots(k), as_slots(v), q_pos, k_pos,
        scale=1 / math.sqrt(q.shape[-1]), window=window, num_slots=num_slots, **bent(rope),
    )  # fmt: skip


def attend_chunk(
    q: Queries, k: NewKeys, v: NewKeys, q_pos: Positions, k_pos: Positions,
    rope: Rotation | None, *, window: int | None,
) -> Partial:  # fmt: skip
    """A chunk over its own keys [B, T, K, H]: out [B, T, N, H] and lse [B, T, N]."""
    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
    return attend_slots(q, keys, values, q_pos, k_pos[:, None], rope, window=window)
