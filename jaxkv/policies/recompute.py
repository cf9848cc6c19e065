# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The papers' slow baseline: for every new token, the model runs over the whole window again."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp
from jax import Array

from jaxkv.errors import InputError
from jaxkv.policies.base import Geometry
from jaxkv.policies.full import FullLayer
from jaxkv.typing import Lengths, Tokens


@flax.struct.dataclass
class TokenRing:
    """The last tokens, by position modulo the ring.

    Attributes:
      ids: int32 [B, S].
      seen: int32 [B], tokens ever appended.
    """

    ids: Array
    seen: Array


@dataclasses.dataclass(frozen=True)
class SlidingRecompute:
    """Sliding window with re-computation (figure 1 (c) of arXiv 2309.17453).

    Exact for its window, with no trace of what left it, and `window` times the work per token.

    Attributes:
      window: past tokens that are kept; a query also sees itself.

    Memory: token ids between steps; within a step a full cache of `window + 1` tokens.
    """

    window: int = 1024

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"window is {self.window}; it must be at least 1")

    def at(self, layer: int, geometry: Geometry) -> FullLayer:
        """Plain attention, over the window of one run."""
        del layer
        return FullLayer(dataclasses.replace(geometry, max_length=self.window + 1))

    def empty_memory(self, geometry: Geometry) -> TokenRing:
        """No tokens."""
        shape = (geometry.batch_size, self.window + 1)
        return TokenRing(jnp.zeros(shape, jnp.int32), jnp.zeros(shape[:1], jnp.int32))

    def nominal_bytes(self, geometry: Geometry) -> int:
        """Ids of the window, int32."""
        return geometry.batch_size * self.window * 4

    def remember(self, memory: TokenRing, tokens: Tokens, lengths: Lengths | None) -> TokenRing:
        """Takes new tokens [B, T], of which the first `lengths` of each row are valid."""
        count = tokens.shape[1]
        if lengths is None:
            lengths = jnp.full(tokens.shape[:1], count, jnp.int32)
        offset = jnp.arange(count, dtype=jnp.int32)[None]
        ring = self.window + 1
        # Of a chunk longer than the ring only the end is written.
        stays = (offset < lengths[:, None]) & (offset >= lengths[:, None] - ring)
        slots = jnp.where(stays, (memory.seen[:, None] + offset) % ring, ring)
        row = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
        ids = memory.ids.at[row, slots].set(tokens, mode="drop")
        return TokenRing(ids, memory.seen + lengths)

    def recall(self, memory: TokenRing) -> tuple[Tokens, Lengths]:
        """The window in order, [B, window + 1], and how many of it are valid."""
        ring = self.window + 1
        lengths = jnp.minimum(memory.seen, ring)
        first = memory.seen - lengths
        slots = (first[:, None] + jnp.arange(ring, dtype=jnp.int32)[None]) % ring
        return jnp.take_along_axis(memory.ids, slots, axis=1), lengths
