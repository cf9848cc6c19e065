# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A layer that reads a whole prompt, then keeps the best tokens of each head and the last ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.attention import attend_one
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
from jaxkv.policies import draft as drafts
from jaxkv.policies.base import Chunk, Geometry, WholePrompt, take_heads
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

    def kept(self, seen: int) -> tuple[int, ...]:
        """The chosen and the newest, once there are as many."""
        return tuple(min(seen, cap + self.ring) for cap in self.caps)


@dataclasses.dataclass(frozen=True)
class SelectedLayer(WholePrompt):
    """Keeps, of each KV head, the `caps[head]` best tokens of the prompt and its last `window`.

    Scores are SnapKV's, from the last `window` queries of the prompt. A later prompt (the next turn
    of a chat) attends to all that is kept and to itself, then it is all chosen from again.

    Attributes:
      geometry: of the layer.
      caps: chosen tokens of each KV head.
      window: last tokens of the prompt, always kept, whose queries choose.
      kernel: neighbours that are pooled.
      decode_room: decoded tokens that are kept before the oldest are overwritten.
    """

    geometry: Geometry
    caps: tuple[int, ...]
    window: int
    kernel: int
    decode_room: int

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
        protected = slab.pos >= (slab.seen - self.window)[:, None, None]
        choice = (slab.pos >= 0) & jnp.logical_not(protected)
        rope = of_heads(rope, head_order(self._groups.groups, self.geometry).queries)
        scores = pooled_scores(drafts.mass(draft, rope), slab.pos, choice, self.kernel)
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

    def kept(self, seen: int) -> tuple[int, ...]:
        """What each head keeps, in the model's order of heads."""
        return self._groups.kept(seen)

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
