# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Decode attention on Hopper GPUs: what the kernel is given, and its parts merged."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels import tuned
from pallas_kernels.decode import xla
from pallas_kernels.decode.blocks import block_range
from pallas_kernels.decode.gpu_kernel import call, plan
from pallas_kernels.decode.gpu_slots import marks
from pallas_kernels.derivative import with_derivative_of
from pallas_kernels.gpu import ROWS, TILE, from_tile, refuse, slot_scales, to_slots, whole_blocks
from pallas_kernels.int4 import Int4
from pallas_kernels.int8 import Int8
from pallas_kernels.slots import Slots, parts_of
from pallas_kernels.softmax import merge_along
from pallas_kernels.visibility import visible

MAX_BLOCK = 128  # slots


@functools.partial(with_derivative_of, xla.decode_attention)
def decode_attention(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array,
    *, scale: float, window: int | None, sinks: int, q_sink: Array | None, with_mass: bool,
    slopes: Array | None = None, soft_cap: float | None = None, max_block: int | None = None,
    interpret: Any = None,
) -> tuple[Array, ...]:  # fmt: skip
    """See `api.decode_attention`.

    `max_block` bounds the slots a block; None is what was measured to be best, or the default.
    `interpret`, parameters of Pallas, runs the kernel without a GPU.
    """
    (keys, k_scale), (values, v_scale) = parts_of(k), parts_of(v)
    refuse(q, keys=keys, values=values)
    b, n, h = q.shape
    heads, slots = keys.shape[1], keys.shape[2]
    group, lanes = n // heads, b * heads

    seen = visible(q_pos[:, None, None], k_pos, sinks, window)
    slot = lax.broadcasted_iota(jnp.int32, seen.shape, 2)
    if not sinks:
        q_sink = None
    kernel_seen = seen if q_sink is None else seen & (slot >= sinks)
    out, lse, *scores = attend(
        q, keys, values, [x for x in (k_scale, v_scale) if x is not None], kernel_seen, None,
        None if slopes is None else q_pos[:, None, None] - k_pos,
        scale=scale, slopes=slopes, soft_cap=soft_cap, with_mass=with_mass, mixed=1,
        max_block=max_block, interpret=interpret,
    )  # fmt: skip
    sink_mass = None
    if q_sink is not None:
        # A few slots, as one more part: the kernel knows one query a row.
        near = jnp.broadcast_to(seen[..., :sinks], (b, heads, min(sinks, slots)))
        sink_k, sink_v = jax.tree.map(lambda x: x[:, :, :sinks], (k, v))
        # Which of them are seen is the same from where the sinks have the query.
        stands = q_pos if window is None else jnp.minimum(q_pos, sinks + window)
        sink_out, sink_lse, *sink_mass = xla.decode_attention(
            q_sink.astype(jnp.float32), sink_k, _only(near, sink_v), stands, k_pos[..., :sinks],
            scale=scale, window=window, sinks=sinks, q_sink=None, with_mass=with_mass,
            slopes=slopes, soft_cap=soft_cap,
        )  # fmt: skip
        sink_out, sink_lse = sink_out.reshape(lanes, 1, group, h), sink_lse.reshape(lanes, 1, group)
        out = jnp.concatenate([out.astype(jnp.float32), sink_out], axis=1)
        lse = jnp.concatenate([lse, sink_lse], axis=1)
    out, total = merge_along(out, lse, axis=1)
    out, total = out.reshape(b, n, h).astype(q.dtype), total.reshape(b, n)
    if not with_mass:
        return out, total
    level = jnp.where(jnp.isneginf(total), 0.0, total)
    mass = to_slots(scores[0], slots).reshape(b, heads, group, slots)
    mass = jnp.exp(mass - level.reshape(b, heads, group, 1))
    # The kernel leaves out blocks that nobody sees.
    mass = jnp.where(kernel_seen[:, :, None], mass, 0.0).reshape(b, n, slots)
    if sink_mass:
        share = jnp.exp(lse[:, -1].reshape(b, n) - level)[..., None]
        mass = mass.at[..., :sinks].set(sink_mass[0] * share)
    return out, total, mass


def _only(seen: Array, v: Slots) -> Slots:
    """Values whose weight may be 0 although they are NaN: zeros in slots that are not seen."""
    if isinstance(v, Int8 | Int4):
        return v._replace(scale=jnp.where(seen, v.scale, 0.0))
    return jnp.where(seen[..., None], v, jnp.zeros((), v.dtype))


def attend(
    q: Array, k: Array, v: Array, scales: list[Array], seen: Array, owner: Array | None,
    distance: Array | None,
    *, scale: float, slopes: Array | None, soft_cap: float | None, with_mass: bool, mixed: int,
    max_block: int | None, interpret: Any,
) -> tuple[Array, ...]:  # fmt: skip
    """The parts of decode attention, which are to be merged.

    Args:
      q: [B, N, H].
      k: [B, K, S, H], or what `Int4` holds of it; with an owner K is 1.
      v: as `k`.
      scales: where they are whole numbers, of K and of V, [B, K, S].
      seen: bool [B, P, S], P = 1 or K.
      owner: int32 [B, S]: where slots of several heads lie mixed, the head of each.
      distance: int32 [B, P, S], with slopes.
      scale: see `api.decode_attention`.
      slopes: see there.
      soft_cap: see there.
      with_mass: whether scores come as well.
      mixed: how many heads' slots lie mixed along S.
      max_block: see `decode_attention`.
      interpret: see `decode_attention`.

    Returns:
      Outputs bfloat16 [B K, splits, G, H], their lse float32 [B K, splits, G], where G = N / K, and
      with mass scores float32 [B K, G, width] of the slots as the kernel counts them.
    """
    b, n, h = q.shape
    heads, slots = k.shape[1], k.shape[2]
    group, lanes = n // heads, b * heads
    if group > ROWS:
        raise NotImplementedError(f"{group} query heads of one block of slots are more than {ROWS}")
    if lanes * slots % TILE:
        raise NotImplementedError(f"{b} x {heads} x {slots} slots are no multiple of {TILE}")
    op = "pool" if owner is not None else "decode-mass" if with_mass else "decode"
    kind = k.dtype, h, group // mixed, slots // mixed
    most = max_block or tuned.max_block(op, "mosaic_gpu", *kind) or MAX_BLOCK
    case = plan(
        lanes=lanes, heads=heads, slots=slots, group=group, head_dim=h, places=seen.shape[1],
        with_mass=with_mass, packed=bool(scales), held=k.shape[-1],
        scale_type=scales[0].dtype if scales else None, soft_cap=soft_cap,
        alibi=slopes is not None, mixed=mixed, most=most,
    )  # fmt: skip
    if lanes * slots < case.block:
        raise NotImplementedError(f"{lanes * slots} slots are less than a block")
    if mixed > 1 and slots % TILE:
        raise NotImplementedError(f"{slots} slots of several heads are no multiple of {TILE}")

    marked, visited = marks(from_tile(seen, lanes), owner if mixed > 1 else None, case.block)
    first, last = block_range(visited, 1)
    width = marked.shape[-1]
    queries = (q * jnp.asarray(scale, q.dtype)).reshape(lanes, group, h).astype(jnp.bfloat16)
    # What a product reads beyond a group, the next ones' queries, gives rows that nobody reads.
    queries = jnp.pad(queries, ((0, 0), (0, case.rows - group), (0, 0))).reshape(-1, h)
    queries = jnp.pad(queries, ((0, ROWS - case.rows), (0, 0)))
    more = [slot_scales(x, case.block) for x in scales]
    if mixed > 1:
        more.append(jnp.arange(ROWS, dtype=jnp.int32) // (group // mixed))
    if slopes is not None:
        assert distance is not None
        far = from_tile(distance.astype(jnp.float32), lanes)
        far = jnp.broadcast_to(whole_blocks(far, case.block), marked.shape)
        steep = jnp.pad(slopes.reshape(heads, group), ((0, 0), (0, ROWS - group)))
        more += [far.reshape(-1, width), steep]
    keys, values = (x.reshape(-1, x.shape[-1]) for x in (k, v))
    out, lse, *scores = call(case, lanes, width, interpret)(
        queries, keys, values, marked.reshape(-1, width), first, last, *more
    )
    return out[:, :, :group], lse[:, :, :group], *(x[:, :group] for x in scores)
