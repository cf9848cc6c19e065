# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A layer that reads a whole prompt, then keeps the best tokens of each head and the last ones."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.attention import attend_one
from jaxkv.cache import store as stores
from jaxkv.cache.grouped import Grouped
from jaxkv.cache.slab import (
    Slab,
    append,
    append_slots,
    empty,
    gather_slots,
    pad_slots,
    slice_heads,
)
from jaxkv.errors import InputError
from jaxkv.policies import draft as drafts
from jaxkv.policies.base import Chunk, Facts, Geometry, WholePrompt, take_heads
from jaxkv.policies.budgets import round_up, split_heads
from jaxkv.policies.draft import Draft
from jaxkv.policies.grouped import HeadGroups, head_order, part
from jaxkv.policies.scores import best_slots, pooled_scores
from jaxkv.scoring import of_heads
from jaxkv.typing import Queries, Rotation


@dataclasses.dataclass(frozen=True)
class PrefixRing:
    """Heads of one capacity: what was chosen of the prompt, then a ring of the newest tokens.

    The ring holds the last `window` tokens of the prompt and `decode_room` more; the token after
    that takes the slot of the oldest, so the cache never grows. It has one slot more than tokens
    that it keeps, for the newest.

    Attributes:
      geometry: of these heads.
      caps: chosen tokens of each head.
      ring: tokens that the ring keeps.
    """

    geometry: Geometry
    caps: tuple[int, ...]
    ring: int

    @property
    def prefix(self) -> int:
        """Slots for chosen tokens: of the head that has most, rounded up with the ring."""
        return round_up(max(self.caps) + self.ring + 1) - self.ring - 1

    def init(self) -> Slab:
        """An empty slab."""
        g = self.geometry
        slots = self.prefix + self.ring + 1
        heads = g.num_kv_heads
        return empty(g.batch_size, heads, slots, g.head_dim, g.dtype, pos_heads=heads)

    def take(self, cache: Slab, chunk: Chunk) -> tuple[Slab, Queries]:
        """Writes the token into the ring, over the oldest if it is full, then attends."""
        assert chunk.decoding, "a prompt is for the layer whose heads these are"
        at = chunk.positions(cache)
        q, k = chunk.rotated(at)
        cache = append(cache, k, chunk.v, at, self.slots(at))
        out, _ = attend_one(q, cache.k, cache.v, at, cache.pos, chunk.rope)
        return cache, out

    def slots(self, at: Array) -> Array:
        """Where the ring holds a position."""
        return self.prefix + at % (self.ring + 1)

    def facts(self) -> Facts:
        """The chosen and the newest."""
        return Facts(tuple(cap + self.ring for cap in self.caps))


class Prompt:
    """What is known of a layer's prompt when it has been read. What is not asked for costs nothing.

    Attributes:
      positions: int32 [B, K, S], of the token in each slot, -1 for none.
      valid: bool [B, K, S], tokens to choose from: all but the last `window`.
    """

    def __init__(self, draft: Draft, rope: Rotation | None, window: int):
        self._draft, self._rope = draft, rope
        slab = draft.slab
        self.positions = slab.pos
        protected = slab.pos >= (slab.seen - window)[:, None, None]
        self.valid = (slab.pos >= 0) & jnp.logical_not(protected)

    @property
    def keys(self) -> Array:
        """[B, K, S, H], rotated to their positions."""
        return stores.numbers(self._draft.slab.k)

    @property
    def values(self) -> Array:
        """[B, K, S, H]."""
        return stores.numbers(self._draft.slab.v)

    def mass(self) -> Array:
        """Attention that each token received from the last `window` queries: float32 [B, N, S]."""
        return drafts.mass(self._draft, self._rope)

    def mean(self, x: Array) -> Array:
        """Mean of [B, K, S, H] over the tokens that there are, the window's too: [B, K, H]."""
        there = (self.positions >= 0)[..., None]
        count = jnp.maximum(jnp.sum(there, axis=2, dtype=jnp.int32), 1)
        total = jnp.sum(jnp.where(there, x, 0), axis=2, dtype=jnp.float32)
        return (total / count.astype(jnp.float32)).astype(x.dtype)


@runtime_checkable
class Scorer(Protocol):
    """Frozen and hashable."""

    def score(self, prompt: Prompt) -> Array:
        """[B, K, S], higher is kept."""
        ...


@dataclasses.dataclass(frozen=True)
class Attended:
    """SnapKV's score: what the last queries looked at, max-pooled over `kernel` neighbours."""

    kernel: int

    def score(self, prompt: Prompt) -> Array:
        """See `scores.pooled_scores`."""
        return pooled_scores(prompt.mass(), prompt.positions, prompt.valid, self.kernel)


@dataclasses.dataclass(frozen=True)
class SelectedLayer(WholePrompt):
    """Keeps, of each KV head, the `caps[head]` best tokens of the prompt and its last `window`.

    A later prompt (the next turn of a chat) attends to all that is kept and to itself, then it is
    all chosen from again.

    Attributes:
      geometry: of the layer.
      caps: chosen tokens of each KV head.
      window: last tokens of the prompt, always kept.
      scorer: tells which are the best.
      decode_room: decoded tokens that are kept before the oldest are overwritten.
      sinks: first tokens of the stream, best whatever their score.
    """

    geometry: Geometry
    caps: tuple[int, ...]
    window: int
    scorer: Scorer
    decode_room: int
    sinks: int = 0

    def init(self) -> Grouped:
        """An empty cache."""
        return self._groups.init()

    def step(self, cache: Grouped, chunk: Chunk) -> tuple[Grouped, Queries]:
        """Each group of heads takes the token."""
        return self._groups.take(cache, chunk)

    def open(self, cache: Grouped, count: int) -> Draft:
        """See `WholePrompt`."""
        return drafts.open_draft(cache.slabs, count, self.geometry, self.window)

    def feed(self, draft: Draft, start: Array, count: int, chunk: Chunk) -> tuple[Draft, Queries]:
        """See `WholePrompt`."""
        order = head_order(self._groups.groups, self.geometry)
        chunk = chunk.heads(order.queries, order.keys)
        draft, out, _ = drafts.feed(draft, start, count, chunk)
        return draft, take_heads(out, order.undo)

    def close(self, draft: Draft, cache: Grouped, rope: Rotation | None) -> Grouped:
        """Chooses what is kept; a row that took no token keeps what it had."""
        slab = draft.slab
        rope = of_heads(rope, head_order(self._groups.groups, self.geometry).queries)
        scores = self._scores(Prompt(draft, rope, self.window))
        recent = drafts.newest(slab, self.window)
        slabs, begin = [], 0
        for group, old in zip(self._groups.layers, cache.slabs, strict=True):
            assert isinstance(group, PrefixRing)
            end = begin + len(group.caps)
            mine, last = (slice_heads(x, begin, end) for x in (slab, recent))
            new = self._fill(group, mine, scores[:, begin:end], last)
            slabs.append(keep_rows(draft.fed, new, old))
            begin = end
        return Grouped(tuple(slabs), cache.heads)

    def facts(self) -> Facts:
        """What each head keeps, in the model's order of heads."""
        return self._groups.facts()

    @property
    def _groups(self) -> HeadGroups:
        """Heads of like capacity together."""
        groups = split_heads(self.caps)
        layers = tuple(
            PrefixRing(
                part(self.geometry, heads),
                tuple(self.caps[head] for head in heads),
                self.window + self.decode_room,
            )
            for heads in groups
        )
        return HeadGroups(self.geometry, groups, layers)

    def _scores(self, prompt: Prompt) -> Array:
        """float32 [B, K, S], -inf for what is not to choose from."""
        scores = self.scorer.score(prompt)
        if getattr(scores, "shape", None) != prompt.positions.shape:
            raise InputError(
                f"the score of {type(self.scorer).__name__} has shape "
                f"{getattr(scores, 'shape', type(scores).__name__)}; it must be [B, K, S], here "
                f"{prompt.positions.shape}"
            )
        first = prompt.positions < self.sinks
        scores = jnp.where(first, jnp.inf, scores.astype(jnp.float32))
        # A NaN would be chosen before anything else.
        return jnp.where(prompt.valid & jnp.logical_not(jnp.isnan(scores)), scores, -jnp.inf)

    def _fill(self, group: PrefixRing, slab: Slab, scores: Array, recent: Slab) -> Slab:
        """The cache of a group from its heads of the draft, and of the newest tokens."""
        index, valid = best_slots(scores, group.prefix)
        valid &= (
            jnp.arange(group.prefix, dtype=jnp.int32)[None, None]
            < jnp.asarray(group.caps, jnp.int32)[None, :, None]
        )
        chosen = pad_slots(gather_slots(slab, index, valid), 0, group.ring + 1)
        return append_slots(chosen, recent, group.slots(recent.pos[:, 0]))


def keep_rows(active: Array, new, old):
    """Rows of `new` where bool [B] says so, of `old` elsewhere; of every array of a pytree."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(active.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, new, old)
