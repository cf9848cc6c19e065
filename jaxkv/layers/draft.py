# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One layer's whole prompt, for as long as it takes to choose what to keep of it.

A policy that chooses after the prompt needs all of its keys at once, but of one layer at a time:
the layer's draft is opened, the prompt goes through the layer chunk by chunk, and the draft is
closed into a small cache before the next layer's is opened. So the peak is one layer's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
from jax import Array, lax

from jaxkv.attention import attend_slots
from jaxkv.cache import store as stores
from jaxkv.cache.exported import exportable
from jaxkv.cache.packed import plain
from jaxkv.cache.slab import Slab, append_run, concat_heads, gather_slots, pad_slots
from jaxkv.core.errors import InputError
from jaxkv.core.typing import Hidden, Queries, Rotation
from jaxkv.layers.base import FLEETING, Chunk, Constants, Geometry, take_heads
from jaxkv.layers.grouped import HeadOrder
from jaxkv.layers.moments import Moments, joined, moments_of, no_moments
from jaxkv.layers.scores import mass_of

NOT_REPEATED = (
    "the policy scores a prompt while the model repeats it, and it was read only once; use "
    "jaxkv.generate, or jaxkv.compress with the prompt's ids"
)
SINK_QUERIES = 4  # of the stream's first tokens, which moments leave out


@exportable
@flax.struct.dataclass
class Last:
    """The last W queries of a prompt.

    Attributes:
      q: [B, W, N, H], rotated.
      q_pos: int32 [B, W], -1 where there were fewer.
      lse: float32 [B, W, N].
    """

    q: Queries
    q_pos: Array
    lse: Array


@flax.struct.dataclass
class Draft:
    """A prompt that is being read. What the layer does not need is None.

    Attributes:
      slab: slots [0, T) take this prompt in order; behind them is what was kept before. P = K.
      began: int32 [B], tokens seen before this prompt.
      last: the last queries, for "mass".
      moments: of this prompt's queries, not rotated.
      hidden: [B, T, D], of this prompt's tokens, zero where there is none.
      constants: of the layer.
      replay: float32 [B, K, S], what the slots were worth when the prompt was repeated.
      queries: [B, N, S, H] of the slots of this prompt, rotated, zero elsewhere.
      unrotated: [B, K, S, H], its keys as they were before they were rotated.
    """

    slab: Slab
    began: Array
    last: Last | None = None
    moments: Moments | None = None
    hidden: Array | None = None
    constants: Constants | None = None
    replay: Array | None = None
    queries: Array | None = None
    unrotated: Array | None = None

    @property
    def fed(self) -> Array:
        """bool [B], rows that took any token of this prompt."""
        return self.slab.seen > self.began

    def used(self, end: Array, count: int) -> Array:
        """Slots to look at when the prompt's first `end` of `count` tokens are in.

        What was kept lies behind the prompt: a first prompt needs no look at it.
        """
        first = jnp.logical_not(jnp.any(self.began > 0))
        return jnp.where(first, jnp.minimum(end, count), self.slab.slots)


@exportable
@flax.struct.dataclass
class Read:
    """Everything of a stream, and what is known of its queries.

    Attributes:
      slab: slot p holds position p, P = 1.
      last: the last queries, if any are remembered.
      moments: of queries, not rotated, if they are.
      replay: float32 [B, K, S], if the prompt was repeated: see `Draft`.
    """

    slab: Slab
    last: Last | None
    moments: Moments | None
    replay: Array | None = None


def note(
    last: Last | None, moments: Moments | None, q: Queries, chunk: Chunk, at: Array, lse: Array
) -> tuple[Last | None, Moments | None]:
    """What is known of the queries after a chunk that was rotated to `at` as q."""
    if last is not None:
        last = _later(last, q, at, lse)
    if moments is not None:
        # The first tokens are attention's sinks, and ask for nothing: their queries lie far off.
        moments = joined(moments, moments_of(chunk.q, at >= SINK_QUERIES))
    return last, moments


def of_full(
    kept: Any, geometry: Geometry, order: HeadOrder | None, needs: Sequence[str], window: int,
    constants: Constants | None,
) -> Draft:  # fmt: skip
    """The draft of a prompt that a full cache holds.

    Args:
      kept: a `Slab`, or a `Read`.
      geometry: of the layer.
      order: in which the draft has the heads; None is the model's.
      needs: of `NEEDS`.
      window: W, the last queries that "mass" is of.
      constants: of the layer, in the order of the draft.

    Raises:
      InputError: what is needed was not kept.
    """
    read = kept if isinstance(kept, Read) else Read(kept, None, None)
    if gone := [name for name in needs if name in FLEETING]:
        raise InputError(
            f"{gone[0]} of a prompt: they are gone when it has been read; generate with the policy"
        )
    if "mass" in needs and (read.last is None or read.last.q.shape[1] < window):
        held = 0 if read.last is None else read.last.q.shape[1]
        raise InputError(
            f"the last {window} queries are needed, and the cache kept {held}; read the prompt "
            f"under Full(queries={window})"
        )
    if "moments" in needs and read.moments is None:
        raise InputError(
            "moments of the queries are needed, and the cache kept none; read the prompt under "
            "Full(moments=True)"
        )
    if "replay" in needs and read.replay is None:
        raise InputError(NOT_REPEATED)
    slab = read.slab
    keys = tuple(range(geometry.num_kv_heads)) if order is None else order.keys
    queries = tuple(range(geometry.num_heads)) if order is None else order.queries
    k, v = stores.heads((slab.k, slab.v), keys)
    pos = jnp.broadcast_to(slab.pos, (slab.pos.shape[0], len(keys), slab.slots))
    draft = Draft(Slab(k, v, pos, slab.seen), jnp.zeros_like(slab.seen))
    if "mass" in needs and read.last is not None:
        q, q_pos, lse = (x[:, -window:] for x in (read.last.q, read.last.q_pos, read.last.lse))
        at = jnp.asarray(queries, jnp.int32)
        last = Last(take_heads(q, queries), q_pos, lse[:, :, at])
        draft = dataclasses.replace(draft, last=last)
    if "moments" in needs and read.moments is not None:
        draft = dataclasses.replace(draft, moments=read.moments.heads(queries))
    if "replay" in needs and read.replay is not None:
        draft = dataclasses.replace(draft, replay=take_heads(read.replay, keys, axis=1))
    return dataclasses.replace(draft, constants=constants if "constants" in needs else None)


def last_of(geometry: Geometry, window: int) -> Last:
    """No queries yet, of the `window` that are to be remembered."""
    batch, heads, dim = geometry.batch_size, geometry.num_heads, geometry.head_dim
    return Last(
        q=jnp.zeros((batch, window, heads, dim), plain(geometry.dtype)),
        q_pos=jnp.full((batch, window), -1, jnp.int32),
        lse=jnp.full((batch, window, heads), -jnp.inf, jnp.float32),
    )


def open_draft(
    parts: Sequence[Slab], count: int, geometry: Geometry, needs: Sequence[str], window: int = 0
) -> Draft:
    """A draft for `count` tokens on top of what was kept.

    Args:
      parts: what was kept; the heads of each follow those of the one before. P = K.
      count: T, the most tokens of this prompt.
      geometry: of all parts.
      needs: of `NEEDS`.
      window: W, the last queries to remember where "mass" is needed.
    """
    most = max(part.slots for part in parts)
    # With room for the prompt before what was kept, and up to the largest part after it.
    slab = concat_heads([pad_slots(part, count, most - part.slots) for part in parts])
    draft = Draft(slab, began=slab.seen)
    if "mass" in needs:
        draft = dataclasses.replace(draft, last=last_of(geometry, window))
    if "moments" in needs:
        none = no_moments(geometry.batch_size, geometry.num_heads, geometry.head_dim)
        draft = dataclasses.replace(draft, moments=none)
    batch, slots, dim = geometry.batch_size, slab.slots, geometry.head_dim
    if "queries" in needs:
        none = jnp.zeros((batch, geometry.num_heads, slots, dim), plain(geometry.dtype))
        draft = dataclasses.replace(draft, queries=none)
    if "unrotated_keys" in needs:
        none = jnp.zeros((batch, geometry.num_kv_heads, slots, dim), plain(geometry.dtype))
        draft = dataclasses.replace(draft, unrotated=none)
    return draft


def provide(
    draft: Draft, needs: Sequence[str], like: Hidden | None, constants: Constants | None
) -> Draft:
    """See `WholePrompt.provide`.

    Raises:
      InputError: what is needed is not given.
    """
    if "hidden" in needs:
        if like is None:
            raise InputError(
                "hidden is not given; the policy needs the states that q, k and v were projected "
                "from, as in prefill(..., hidden=x), [B, T, D]"
            )
        draft = dataclasses.replace(draft, hidden=jnp.zeros_like(like))
    if "constants" in needs:
        if constants is None:
            raise InputError(
                "wo is not given; the policy needs the layer's output projection, as in "
                "prefill(..., wo=w), [N, H, D]"
            )
        draft = dataclasses.replace(draft, constants=constants)
    return draft


def feed(draft: Draft, start: Array, count: int, chunk: Chunk) -> tuple[Draft, Queries, Array]:
    """The prompt's tokens [start, start + T) go in, and attend to all before them.

    Args:
      draft: the draft.
      start: int32 scalar, traced; the same in every row.
      count: tokens that the draft was opened for.
      chunk: T tokens.

    Returns:
      The draft, out [B, T, N, H], and lse [B, T, N].
    """
    slab = draft.slab
    at = chunk.positions(slab)
    q, k = chunk.rotated(at)
    slab = append_run(slab, k, chunk.v, at, start)
    used = draft.used(start + chunk.count, count)
    seen = attend_slots(q, slab.k, slab.v, at, slab.pos, chunk.rope, num_slots=used)
    out, lse = chunk.with_sink(*seen)
    draft = dataclasses.replace(draft, slab=slab)
    last, moments = note(draft.last, draft.moments, q, chunk, at, lse)
    draft = dataclasses.replace(draft, last=last, moments=moments)

    def put(held: Array | None, new: Array | None, axis: int) -> Array | None:
        if held is None:
            return None
        assert new is not None, "room was made for it"
        # Padding may hold anything.
        new = jnp.where((at >= 0).reshape(*at.shape, *[1] * (new.ndim - 2)), new, 0)
        new = jnp.moveaxis(new.astype(held.dtype), 1, axis)
        return lax.dynamic_update_slice_in_dim(held, new, start, axis)

    draft = dataclasses.replace(
        draft,
        hidden=put(draft.hidden, chunk.hidden, 1),
        queries=put(draft.queries, q, 2),
        unrotated=put(draft.unrotated, chunk.k, 2),
    )
    return draft, out, lse


def mass(draft: Draft, rope: Rotation | None) -> Array:
    """Attention that each slot received from the last queries: float32 [B, N, S]."""
    slab, last = draft.slab, draft.last
    assert last is not None, "the layer needs no mass"
    return mass_of(last.q, last.lse, slab.k, last.q_pos, slab.pos, rope)


def newest(slab: Slab, window: int) -> Slab:
    """The last `window` tokens, which every head holds, in order, after empty slots if any."""
    index = jnp.argsort(slab.pos, axis=-1)[..., -window:].astype(jnp.int32)
    return gather_slots(slab, index, jnp.ones(index.shape, bool))


def arrived(draft: Draft, most: int) -> Slab:
    """The last tokens of this prompt, at most so many, in order, after empty slots if any."""
    slab = draft.slab
    new = slab.pos >= draft.began[:, None, None]
    index = jnp.argsort(jnp.where(new, slab.pos, -1), axis=-1)[..., -most:].astype(jnp.int32)
    return gather_slots(slab, index, jnp.take_along_axis(new, index, axis=-1))


def fits(draft: Draft, ring: Array, most: int) -> Array:
    """Whether a later prompt fits into a ring without a token being overwritten: bool [B].

    Args:
      draft: of the prompt.
      ring: int32 [B, R], positions that the ring holds, -1 for none.
      most: tokens that it keeps.
    """
    held = jnp.sum(ring >= 0, axis=1, dtype=jnp.int32)
    return (draft.began > 0) & (held + draft.slab.seen - draft.began <= most)


def unrepeated(draft: Draft, needs: Sequence[str]) -> bool:
    """Whether a prompt is read that was to be repeated: then nothing can be chosen from it."""
    return "replay" in needs and draft.replay is None


def nan_at_the_start(draft: Draft, needs: Sequence[str], out: Queries) -> Queries:
    """NaN in rows whose first prompt is `unrepeated`: it would be lost, and a program cannot say.

    A later one is kept as decoded tokens are.
    """
    if not unrepeated(draft, needs):
        return out
    return jnp.where((draft.began > 0)[:, None, None, None], out, jnp.nan)


def _later(last: Last, q: Queries, at: Array, lse: Array) -> Last:
    """The last W valid queries of those remembered and these; valid ones come first in `at`."""
    window = last.q_pos.shape[1]
    index = (
        jnp.sum(at >= 0, axis=1, dtype=jnp.int32)[:, None]
        + jnp.arange(window, dtype=jnp.int32)[None]
    )

    def later(old: Array, new: Array) -> Array:
        both = jnp.concatenate([old, new.astype(old.dtype)], axis=1)
        return jnp.take_along_axis(both, index.reshape(*index.shape, *[1] * (old.ndim - 2)), axis=1)

    return Last(later(last.q, q), later(last.q_pos, at), later(last.lse, lse))
