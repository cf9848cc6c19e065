# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Prefill attention in blocks of slots with an online softmax: no T x S matrix, no repeated head.

How many blocks are visited is traced, so one compiled program serves every fill of a cache and
pays only for the slots in use. Leading blocks that every query sees whole, as most are in a cache
that keeps everything, are taken without a mask: a sixth less time on a CPU.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels import tuned
from pallas_kernels.precision import einsum
from pallas_kernels.score_bias import bend
from pallas_kernels.slots import Slots, is_packed, numbers, product_dtype, split_scale
from pallas_kernels.visibility import used_positions, visible

BLOCK = 512  # slots a block: large enough for the matrix unit, small enough to stay in cache
UNROLLED = 8  # matrices in a batch up to which a CPU takes them one by one

Running = tuple[Array, Array, Array]  # output so far [.., R, H]; top score and total [.., R, 1]


def prefill_attention(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array,
    *, scale: float, window: int | None, sinks: int, num_slots: Array | None,
    slopes: Array | None = None, soft_cap: float | None = None, max_block: int | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """See `api.prefill_attention`; `max_block` is for slots, None what is best."""
    case = _Case(scale, window, sinks, soft_cap, max_block)
    if num_slots is None or is_packed(k):
        return _attend(case, q, k, v, q_pos, k_pos, num_slots, slopes)
    return _attend_some(case, q, k, v, q_pos, k_pos, num_slots, slopes)


@dataclasses.dataclass(frozen=True)
class _Case:
    """What is static; see `api.prefill_attention`."""

    scale: float
    window: int | None
    sinks: int
    soft_cap: float | None
    max_block: int | None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend_some(
    case: _Case, q: Array, k: Array, v: Array, q_pos: Array, k_pos: Array, num_slots: Array,
    slopes: Array | None,
) -> tuple[Array, Array]:  # fmt: skip
    """Over the first slots: a loop whose length is data, which has no derivative of its own."""
    return _attend(case, q, k, v, q_pos, k_pos, num_slots, slopes)


@_attend_some.defjvp
def _derivative(case: _Case, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    q, k, v, q_pos, k_pos, num_slots, slopes = primals
    k_pos = used_positions(k_pos, num_slots)

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        return _attend(case, q, k, v, q_pos, k_pos, None, slopes)

    return jax.jvp(attend, (q, k, v), tuple(tangents[:3]))


def _attend(
    case: _Case, q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array,
    num_slots: Array | None, slopes: Array | None,
) -> tuple[Array, Array]:  # fmt: skip
    """In so many blocks as there are slots in use."""
    b, t, n, h = q.shape
    held = split_scale(k)[0]
    heads, slots = held.shape[1], held.shape[2]
    group = n // heads
    # [B, K, T G, H]: the G query heads of a KV head are more rows of the same product.
    rows = (q * jnp.asarray(case.scale, q.dtype)).reshape(b, t, heads, group, h).swapaxes(1, 2)
    rows = rows.reshape(b, heads, t * group, h).astype(product_dtype(k, q))
    # A static count of blocks keeps the loop open to reverse-mode differentiation.
    k_pos = used_positions(k_pos, num_slots)
    used = slots if num_slots is None else jnp.minimum(num_slots, slots)
    most = case.max_block or tuned.max_block("prefill", "xla", held.dtype, h, group, slots) or BLOCK
    block = min(most, slots)
    blocks = (used + block - 1) // block
    # Where the number of blocks is static so is the loop, or it could not be differentiated.
    whole = 0 if isinstance(blocks, int) else _seen_whole(q_pos, k_pos, block, case.window)
    visit = functools.partial(
        _visit_blocks,
        whole=whole,
        blocks=blocks,
        block=block,
        window=case.window,
        sinks=case.sinks,
        soft_cap=case.soft_cap,
    )
    batched, split = (functools.partial(visit, split=split) for split in (False, True))
    args = rows, k, v, q_pos, k_pos, slopes
    if b * heads <= UNROLLED:
        out, top, total = lax.platform_dependent(*args, cpu=split, default=batched)
    else:
        out, top, total = batched(*args)
    out = out / jnp.where(total == 0, 1.0, total)
    lse = jnp.log(total) + jnp.where(jnp.isneginf(top), 0.0, top)
    out = out.reshape(b, heads, t, group, h).swapaxes(1, 2).reshape(b, t, n, h)
    lse = lse.reshape(b, heads, t, group).swapaxes(1, 2).reshape(b, t, n)
    return out.astype(q.dtype), lse


def _visit_blocks(
    rows: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array, slopes: Array | None,
    *, whole: int | Array, blocks: int | Array, block: int, window: int | None, sinks: int,
    soft_cap: float | None, split: bool,
) -> Running:  # fmt: skip
    """Folds block after block into the running result, [B, K, T G, ..].

    The first `whole` of them are seen whole. `split` takes the B K matrices one by one: XLA's CPU
    backend runs a plain product faster than a batch of them, and the scores of one head stay in the
    processor's cache.
    """
    b, heads, count, h = rows.shape
    t, slots = q_pos.shape[1], k_pos.shape[2]

    def visit(index: int | Array, running: list[Running], masked: bool) -> list[Running]:
        index = lax.convert_element_type(index, jnp.int32)
        # The last block starts early enough to be whole, and hides the slots already seen.
        start = jnp.minimum(index * block, slots - block)
        at = lax.dynamic_slice_in_dim(k_pos, start, block, 2)
        if not masked:
            return fold(start, at, None, running)
        fresh = start + jnp.arange(block, dtype=jnp.int32) >= index * block
        at = jnp.where(fresh[None, None], at, -1)
        seen = visible(q_pos[:, None, :, None], at[:, :, None, :], sinks, window)
        # In a ring that is not full yet, or beyond a window, there are blocks that nothing sees.
        return lax.cond(jnp.any(seen), lambda r: fold(start, at, seen, r), lambda r: r, running)

    def fold(start: Array, at: Array, seen: Array | None, running: list[Running]) -> list[Running]:
        keys, values = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, block, 2), (k, v))
        lean = None if slopes is None else _lean(slopes, q_pos, at, heads)
        if seen is not None:
            p = seen.shape[1]
            seen = jnp.broadcast_to(seen[:, :, :, None], (b, p, t, count // t, block))
            seen = seen.reshape(b, p, count, block)
        if not split:
            return [_fold(running[0], rows, keys, values, seen, lean, soft_cap)]

        def one(x: Slots, i: int, j: int) -> Slots:
            return jax.tree.map(lambda x: x[i, j], x)

        return [
            _fold(
                running[i * heads + j], rows[i, j], one(keys, i, j), one(values, i, j),
                None if seen is None else seen[i, j % seen.shape[1]],
                None if lean is None else lean[i, j], soft_cap,
            )
            for i in range(b)
            for j in range(heads)
        ]  # fmt: skip

    lead = () if split else (b, heads)
    empty = (
        jnp.zeros((*lead, count, h), jnp.float32),
        jnp.full((*lead, count, 1), -jnp.inf, jnp.float32),
        jnp.zeros((*lead, count, 1), jnp.float32),
    )
    running = [empty] * (b * heads if split else 1)
    if not isinstance(whole, int):
        running = lax.fori_loop(
            jnp.int32(0), whole, functools.partial(visit, masked=False), running
        )
        # Padding saw keys that it should not have seen.
        valid = jnp.repeat(q_pos >= 0, count // t, axis=1)[..., None]
        running = [_forget(r, valid[i // heads] if split else valid[:, None])
                   for i, r in enumerate(running)]  # fmt: skip
        blocks = jnp.int32(blocks)
    turn = functools.partial(visit, masked=True)
    if isinstance(blocks, int):
        # A derivative computes the scores of a block again, rather than keep those of all blocks.
        turn = jax.checkpoint(turn, prevent_cse=False)
    running = lax.fori_loop(whole, blocks, turn, running)
    if not split:
        return running[0]
    out, top, total = (
        jnp.stack(parts).reshape(b, heads, count, -1) for parts in zip(*running, strict=True)
    )
    return out, top, total


def _seen_whole(q_pos: Array, k_pos: Array, block: int, window: int | None) -> int | Array:
    """How many leading blocks of slots every query sees whole, in all rows."""
    if window is not None:
        return 0
    blocks = k_pos.shape[-1] // block
    at = k_pos[..., : blocks * block].reshape(*k_pos.shape[:2], blocks, block)
    earliest = jnp.min(jnp.where(q_pos >= 0, q_pos, jnp.iinfo(jnp.int32).max), axis=1)
    seen = (at.min(axis=-1) >= 0) & (at.max(axis=-1) <= earliest[:, None, None])
    alike = jnp.all(seen, axis=(0, 1)).astype(jnp.int32)
    return jnp.sum(jnp.cumprod(alike, dtype=jnp.int32), dtype=jnp.int32)


def _forget(running: Running, valid: Array) -> Running:
    """What has been seen, where bool [.., R, 1] says so; nothing elsewhere."""
    out, top, total = running
    return jnp.where(valid, out, 0.0), jnp.where(valid, top, -jnp.inf), jnp.where(valid, total, 0.0)


def _lean(slopes: Array, q_pos: Array, k_pos: Array, heads: int) -> Array:
    """ALiBi's bias of rows over slots: [B, K, T G, S]."""
    distance = q_pos[:, None, :, None, None] - k_pos[:, :, None, None]  # [B, P, T, 1, S]
    lean = bend(jnp.float32(0.0), distance, slopes.reshape(1, heads, 1, -1, 1), None)
    return lean.reshape(*lean.shape[:2], -1, lean.shape[-1])


def _fold(
    running: Running, rows: Array, keys: Slots, values: Slots, seen: Array | None,
    lean: Array | None, soft_cap: float | None,
) -> Running:  # fmt: skip
    """One step of the online softmax: [.., R, H] rows over [.., S, H] keys, all seen if None."""
    out, top, total = running
    k_scale, v_scale = split_scale(keys)[1], split_scale(values)[1]
    keys, values = (numbers(x, product_dtype(x, rows)) for x in (keys, values))
    scores = einsum("...rh,...sh->...rs", rows, keys)
    if k_scale is not None:
        scores = scores * k_scale[..., None, :]
    if soft_cap is not None:
        scores = bend(scores, jnp.int32(0), None, soft_cap)
    if lean is not None:
        scores = scores + lean
    if seen is not None:
        scores = jnp.where(seen, scores, -jnp.inf)
    new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
    safe = jnp.where(jnp.isneginf(new_top), 0.0, new_top)
    weights = jnp.exp(scores - safe)
    decay = jnp.exp(top - safe)
    total = total * decay + jnp.sum(weights, axis=-1, keepdims=True)
    if v_scale is not None:
        weights = weights * v_scale[..., None, :]
    out = out * decay + einsum("...rs,...sh->...rh", weights.astype(values.dtype), values)
    return out, new_top, total
