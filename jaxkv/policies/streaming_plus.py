# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""StreamingLLM++: sinks and a window, and now and then a look at everything."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxkv.attention import attend_one
from jaxkv.cache.refreshed import Refreshed
from jaxkv.cache.slab import append
from jaxkv.errors import InputError
from jaxkv.policies.base import Chunk, Facts, Geometry, in_caches, rotate, swept
from jaxkv.policies.full import FullLayer, poison
from jaxkv.policies.ring import RingLayer, within_windows
from jaxkv.policies.streaming import StreamingLLM
from jaxkv.typing import Queries


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class StreamingLLMPlus:
    """StreamingLLM with a step of full attention at every stride.

    The baseline of the first version of Recycled Attention (arXiv 2411.05787), which tells what the
    recycled keys add to a full step now and then: here the steps in between read the sinks and the
    window, as in `StreamingLLM`, whatever the full step looked at. Everything is kept, and a prompt
    is read with full attention.

    Attributes:
      sinks: first tokens that are always read.
      window: past tokens that are read; a query also sees itself.
      stride: decode steps from one full step to the next; the prompt is step 0.

    Memory: `max_length` tokens per KV head and `sinks + window` more, with one slot for the newest.
    """

    sinks: int = 4
    window: int = swept(1020, less="sinks")
    stride: int = in_caches(10)

    def __post_init__(self) -> None:
        StreamingLLM(self.sinks, self.window)
        if self.stride < 1:
            raise InputError(f"stride is {self.stride}; it must be at least 1")

    @within_windows
    def at(self, layer: int, geometry: Geometry) -> StreamingPlusLayer:
        """The same for every layer."""
        del layer
        ring = RingLayer(geometry, self.sinks, self.window, in_cache=True)
        return StreamingPlusLayer(FullLayer(geometry), ring, self.stride)


@dataclasses.dataclass(frozen=True)
class StreamingPlusLayer:
    """One layer: both caches take every token, and each step reads one of them.

    Attributes:
      everything: reads prompts and full steps.
      ring: reads the steps in between.
      stride: as for `StreamingLLMPlus`.
    """

    everything: FullLayer
    ring: RingLayer
    stride: int

    def init(self) -> Refreshed:
        """An empty cache."""
        # An array of its own each: a cache is donated, and no buffer can be twice.
        rows = (
            jnp.full((self.ring.geometry.batch_size,), x, jnp.int32) for x in (0, 0, self.stride)
        )
        return Refreshed(self.everything.init(), self.ring.init(), *rows)

    def take(self, cache: Refreshed, chunk: Chunk) -> tuple[Refreshed, Queries]:
        """Writes the chunk into both caches; a decoded token attends to the one or the other."""
        return (self._step if chunk.decoding else self._prefill)(cache, chunk)

    def _prefill(self, cache: Refreshed, chunk: Chunk) -> tuple[Refreshed, Queries]:
        """Full attention over the chunk; the ring takes its end."""
        at = chunk.positions(cache.full)
        part = self.ring.write(cache.part, rotate(chunk.rope, chunk.k, at), chunk.v, at)
        full, out = self.everything.take(cache.full, chunk)
        fed = at[:, 0] >= 0
        steps, full_steps = (jnp.where(fed, 0, x) for x in (cache.steps, cache.full_steps))
        return Refreshed(full, part, steps, full_steps, cache.stride), out

    def _step(self, cache: Refreshed, chunk: Chunk) -> tuple[Refreshed, Queries]:
        at, rope = chunk.positions(cache.full), chunk.rope
        active = (at[:, 0] >= 0).astype(jnp.int32)
        k = rotate(rope, chunk.k, at)
        full = append(cache.full, k, chunk.v, at, at)
        part = self.ring.write(cache.part, k, chunk.v, at)
        steps = cache.steps + active
        refresh = jnp.any((active > 0) & (steps % cache.stride == 0))
        out = lax.cond(
            refresh,
            lambda: attend_one(rotate(rope, chunk.q, at), full.k, full.v, at, full.pos, rope)[0],
            lambda: self.ring.read(part, chunk.q, rope, at),
        )
        full_steps = cache.full_steps + active * refresh.astype(jnp.int32)
        after = Refreshed(full, part, steps, full_steps, cache.stride)
        return after, poison(out, at, full.slots)

    def facts(self) -> Facts:
        """Everything, and copies of the sinks and the window."""
        return dataclasses.replace(
            self.everything.facts(), copies=self.ring.sinks + self.ring.window
        )
