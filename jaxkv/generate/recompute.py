# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Streams without a cache: the model runs over the last tokens again for each new one."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.cache.geometry import part_of
from jaxkv.core.typing import Lengths, Logits, Params, Tokens
from jaxkv.layers.base import Geometry, LayerCache
from jaxkv.models import decoder
from jaxkv.models.config import ModelConfig
from jaxkv.models.plan import plan
from jaxkv.policies.full import Full


@flax.struct.dataclass
class Remembered:
    """The last tokens, by position modulo the ring.

    Attributes:
      ids: int32 [B, S].
      seen: int32 [B], tokens ever taken in.
      geometry: of the model that runs over them.
    """

    ids: Array
    seen: Array
    geometry: Geometry = flax.struct.field(pytree_node=False)

    @property
    def layers(self) -> tuple[LayerCache, ...]:
        """None: no keys are kept."""
        return ()


@dataclasses.dataclass(frozen=True)
class Recomputing:
    """`SlidingRecompute` over a model: what a `Plan` tells of other policies.

    Attributes:
      window: past tokens that are remembered.
      geometry: of the model that runs.
    """

    window: int
    geometry: Geometry
    grows: ClassVar[bool] = False
    whole_prompt: ClassVar[bool] = False
    repeats: ClassVar[None] = None
    later: ClassVar[None] = None
    far: ClassVar[bool] = False

    @property
    def most_kept(self) -> int:
        """The window."""
        return self.window

    @property
    def keeps(self) -> tuple[tuple[int, ...], ...]:
        """No keys."""
        return ()

    @property
    def nominal_bytes(self) -> int:
        """Ids of the window, int32."""
        return self.geometry.batch_size * self.window * 4

    @property
    def physical_bytes(self) -> int:
        """With an id for the newest, and a counter."""
        return self.geometry.batch_size * (self.window + 2) * 4

    def init(self) -> Remembered:
        """No tokens."""
        shape = (self.geometry.batch_size, self.window + 1)
        return Remembered(
            jnp.zeros(shape, jnp.int32), jnp.zeros(shape[:1], jnp.int32), self.geometry.whole
        )


def advance(
    params: Params, config: ModelConfig, tokens: Tokens, held: Remembered, lengths: Lengths
) -> tuple[Array, Remembered]:
    """Remembers the tokens, then runs the model over the window: logits of its last, [B, V]."""
    held = remember(held, tokens, lengths)
    window, valid = recall(held)
    within = dataclasses.replace(held.geometry, max_length=window.shape[1])
    fresh = plan(Full(), part_of(within, config.shards)).init()
    logits, _ = decoder.advance(params, config, Full(), window, fresh, valid)
    return logits, held


def forward(
    params: Params, config: ModelConfig, tokens: Tokens, held: Remembered, lengths: Lengths | None
) -> tuple[Logits, Remembered]:
    """A run over the window for each of the tokens: logits [B, T, V]."""

    def one(held: Remembered, column: tuple[Array, Array]) -> tuple[Remembered, Array]:
        token, valid = column
        logits, after = advance(params, config, token[:, None], held, valid)
        return after, logits

    if lengths is None:
        lengths = jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32)
    valid = jnp.arange(tokens.shape[1], dtype=jnp.int32)[:, None] < lengths[None]
    held, logits = jax.lax.scan(one, held, (tokens.T, valid.astype(jnp.int32)))
    return logits.swapaxes(0, 1), held


def remember(held: Remembered, tokens: Tokens, lengths: Lengths) -> Remembered:
    """Takes new tokens [B, T], of which the first `lengths` of each row are valid."""
    offset = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    ring = held.ids.shape[1]
    # Of a chunk longer than the ring only the end is written.
    stays = (offset < lengths[:, None]) & (offset >= lengths[:, None] - ring)
    slots = jnp.where(stays, (held.seen[:, None] + offset) % ring, ring)
    row = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
    ids = held.ids.at[row, slots].set(tokens, mode="drop")
    return dataclasses.replace(held, ids=ids, seen=held.seen + lengths)


def recall(held: Remembered) -> tuple[Tokens, Lengths]:
    """The window in order, [B, window + 1], and how many of it are valid."""
    ring = held.ids.shape[1]
    lengths = jnp.minimum(held.seen, ring)
    first = held.seen - lengths
    slots = (first[:, None] + jnp.arange(ring, dtype=jnp.int32)[None]) % ring
    return jnp.take_along_axis(held.ids, slots, axis=1), lengths
