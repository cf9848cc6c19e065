# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A layer that reads a whole prompt, then keeps the best tokens of each head and the last ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxkv.attention import attend_one
from jaxkv.cache.grouped import Grouped
from jaxkv.cache.slab import Slab, append, append_slots, empty, slice_heads
from jaxkv.core.scoring import of_heads
from jaxkv.core.typing import Hidden, Queries, Rotation
from jaxkv.layers import draft as drafts
from jaxkv.layers.base import Chunk, Constants, Facts, FromFull, Geometry, WholePrompt, take_heads
from jaxkv.layers.capacity import round_up, split_heads
from jaxkv.layers.draft import Draft
from jaxkv.layers.grouped import HeadGroups, HeadOrder, head_order, part
from jaxkv.layers.packing import gathered, keep_best, keep_rows
from jaxkv.layers.prompt import Prompt, Scorer, scores_of, sinks_first


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
        seen = attend_one(q, cache.k, cache.v, at, cache.pos, chunk.rope)
        out, _ = chunk.with_sink(*seen)
        return cache, out

    def keep(self, fed: Array, slab: Slab, scores: Array, recent: Slab, before: Slab) -> Slab:
        """The cache after a prompt.

        Args:
          fed: bool [B]; rows that took no token of the prompt keep what they had.
          slab: all tokens of these heads.
          scores: float32 [B, K, S], -inf for what may not be chosen.
          recent: the newest tokens, for the ring.
          before: the cache before the prompt.
        """

        def pack(index: Array, kept: Array) -> Slab:
            chosen = gathered(slab, index, kept, self.ring + 1)
            return append_slots(chosen, recent, self.slots(recent.pos[:, 0]))

        caps = jnp.asarray(self.caps, jnp.int32)[None]
        return keep_best(fed, scores, self.prefix, caps, pack, before)

    def slots(self, at: Array) -> Array:
        """Where the ring holds a position."""
        return self.prefix + at % (self.ring + 1)

    def facts(self) -> Facts:
        """The chosen and the newest."""
        return Facts(tuple(cap + self.ring for cap in self.caps))


@dataclasses.dataclass(frozen=True)
class SelectedLayer(WholePrompt, FromFull):
    """Keeps, of each KV head, the `caps[head]` best tokens of the prompt and its last `window`.

    A later prompt (the next turn of a chat) attends to all that is kept and to itself, then it is
    all chosen from again.

    Attributes:
      geometry: of the layer.
      caps: chosen tokens of each KV head, at least `sinks`.
      window: last tokens of the prompt, always kept.
      scorer: tells which are the best.
      decode_room: decoded tokens that are kept before the oldest are overwritten.
      sinks: first tokens of the stream, best whatever their score.
      needs: what the scorer asks of the prompt.
      agnostic: whether a later prompt that fits into the ring changes nothing of what was chosen.
      couples_heads: whether a head's scores depend on other heads.
    """

    geometry: Geometry
    caps: tuple[int, ...]
    window: int
    scorer: Scorer
    decode_room: int
    sinks: int = 0
    needs: tuple[str, ...] = ()
    agnostic: bool = False
    couples_heads: bool = False

    def init(self) -> Grouped:
        """An empty cache."""
        return self._groups.init()

    def step(self, cache: Grouped, chunk: Chunk) -> tuple[Grouped, Queries]:
        """Each group of heads takes the token."""
        return self._groups.take(cache, chunk)

    def open(self, cache: Grouped, count: int) -> Draft:
        """See `WholePrompt`."""
        return drafts.open_draft(cache.slabs, count, self.geometry, self.needs, self.window)

    def provide(self, draft: Draft, like: Hidden | None, constants: Constants | None) -> Draft:
        """See `WholePrompt`."""
        mine = None if constants is None else constants.heads(self._order.queries, self._order.keys)
        return drafts.provide(draft, self.needs, like, mine)

    def feed(self, draft: Draft, start: Array, count: int, chunk: Chunk) -> tuple[Draft, Queries]:
        """See `WholePrompt`."""
        order = self._order
        chunk = chunk.heads(order.queries, order.keys)
        draft, out, _ = drafts.feed(draft, start, count, chunk)
        out = drafts.nan_at_the_start(draft, self.needs, out)
        return draft, take_heads(out, order.undo)

    def close(self, draft: Draft, cache: Grouped, rope: Rotation | None) -> Grouped:
        """Chooses what is kept; a row that took no token keeps what it had."""
        if drafts.unrepeated(draft, self.needs):
            return self._kept_on(draft, cache)
        slab = draft.slab
        prompt = Prompt(draft, of_heads(rope, self._order.queries), self.window, self.needs)
        scores, _ = sinks_first(scores_of(self.scorer, prompt), prompt, self.sinks)
        recent = drafts.newest(slab, self.window)
        slabs, begin = [], 0
        for group, old in zip(self._groups.layers, cache.slabs, strict=True):
            assert isinstance(group, PrefixRing)
            end = begin + len(group.caps)
            mine, last = (slice_heads(x, begin, end) for x in (slab, recent))
            slabs.append(group.keep(draft.fed, mine, scores[:, begin:end], last, old))
            begin = end
        chosen = Grouped(tuple(slabs), cache.heads)
        if not self.agnostic:
            return chosen
        ring, (group, *_) = self.window + self.decode_room, self._groups.layers
        assert isinstance(group, PrefixRing)
        fits = drafts.fits(draft, cache.slabs[0].pos[:, 0, group.prefix :], ring)
        return keep_rows(fits, self._kept_on(draft, cache), chosen)

    def looks_at(self) -> tuple[tuple[str, ...], int]:
        """What its scorer asks for, and the queries of the window."""
        return self.needs, self.window

    def from_full(
        self, empty: Grouped, kept: Any, rope: Rotation | None, constants: Constants | None
    ) -> Grouped:
        """See `FromFull`."""
        mine = None if constants is None else constants.heads(self._order.queries, self._order.keys)
        draft = drafts.of_full(kept, self.geometry, self._order, self.needs, self.window, mine)
        return self.close(draft, empty, rope)

    def _kept_on(self, draft: Draft, cache: Grouped) -> Grouped:
        """A prompt's tokens in the rings, as if they had been decoded."""
        slabs, begin = [], 0
        new = drafts.arrived(draft, self.window + self.decode_room)
        for group, old in zip(self._groups.layers, cache.slabs, strict=True):
            assert isinstance(group, PrefixRing)
            end = begin + len(group.caps)
            mine = slice_heads(new, begin, end)
            slabs.append(append_slots(old, mine, group.slots(mine.pos[:, 0])))
            begin = end
        return Grouped(tuple(slabs), cache.heads)

    def facts(self) -> Facts:
        """What each head keeps, in the model's order of heads."""
        later = self.window + self.decode_room if "replay" in self.needs else None
        alike = len(set(self.caps)) == 1
        return dataclasses.replace(
            self._groups.facts(), heads_alike=alike, couples_heads=self.couples_heads, later=later
        )

    @property
    def _order(self) -> HeadOrder:
        return head_order(self._groups.groups, self.geometry)

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
