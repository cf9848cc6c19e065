# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A sliding window: the baseline that collapses once the first tokens leave the cache."""

from __future__ import annotations

import dataclasses

import jax

from jaxkv.core.errors import InputError
from jaxkv.layers.base import Geometry
from jaxkv.layers.declared import swept
from jaxkv.layers.ring import RingLayer, within_windows


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Window:
    """The last tokens only (window attention in figure 1 (b) of arXiv 2309.17453).

    Attributes:
      window: past tokens that are kept; a query also sees itself.

    Memory: `window` tokens per KV head, and one slot for the newest token.
    """

    window: int = swept(1024)

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"window is {self.window}; it must be at least 1")

    @within_windows
    def at(self, layer: int, geometry: Geometry) -> RingLayer:
        """The same for every layer: a ring with no sinks."""
        del layer
        return RingLayer(geometry, sinks=0, window=self.window, in_cache=False)
