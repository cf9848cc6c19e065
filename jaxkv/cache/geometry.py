# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The static shapes that a cache is made for, and those of one device's part of it."""

from __future__ import annotations

import dataclasses

from jaxkv.cache.packed import token_bytes
from jaxkv.core.shards import ONE, Shards


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The static shapes that a cache is made for.

    Attributes:
      num_layers: L.
      num_heads: N query heads.
      num_kv_heads: K.
      head_dim: H.
      batch_size: B.
      max_length: the most tokens a row will ever hold or see, for caches that grow with it.
      dtype: of keys and values, float32, bfloat16, or int8 or int4 with a scale a token and
        head.
      windows: of each layer, the past tokens that the model itself lets it see, and 0 where it sees
        all; empty if every layer sees all.
      model: which model it is, as `ModelConfig.identity` tells; empty if that is not known. What
        was calibrated for one model's heads is refused by another.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    batch_size: int
    max_length: int
    dtype: str = "float32"
    model: str = ""
    windows: tuple[int, ...] = ()

    @property
    def ruled(self) -> tuple[int, ...]:
        """The layers that a policy rules: those without a window of their own."""
        if not self.windows:
            return tuple(range(self.num_layers))
        return tuple(layer for layer, window in enumerate(self.windows) if not window)

    @property
    def shards(self) -> Shards:
        """How it lies over devices: on one."""
        return ONE

    @property
    def whole(self) -> Geometry:
        """Of all devices together."""
        return self

    def bytes_per_token(self) -> int:
        """Of one KV head of one layer: key and value."""
        return 2 * token_bytes(self.head_dim, self.dtype)


@dataclasses.dataclass(frozen=True)
class PartGeometry(Geometry):
    """What one of several devices holds of a cache.

    Attributes:
      over: how the whole lies over them.
      of: the whole.
    """

    over: Shards = ONE
    of: Geometry | None = None

    @property
    def shards(self) -> Shards:
        """How the whole lies over devices."""
        return self.over

    @property
    def whole(self) -> Geometry:
        """Of all devices together."""
        return self if self.of is None else self.of


def part_of(geometry: Geometry, shards: Shards) -> Geometry:
    """What each of several devices holds of a cache; the caller knows that it divides."""
    if shards == ONE:
        return geometry
    g, rows, heads = geometry, geometry.batch_size // shards.data, 1
    if shards.by_rows:
        rows //= shards.model
    if shards.by_heads:
        heads = shards.model
    return PartGeometry(
        num_layers=g.num_layers, num_heads=g.num_heads // heads,
        num_kv_heads=g.num_kv_heads // heads, head_dim=g.head_dim, batch_size=rows,
        max_length=g.max_length, dtype=g.dtype, model=g.model, windows=g.windows,
        over=shards, of=geometry,
    )  # fmt: skip
