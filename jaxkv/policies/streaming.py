# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention sinks and a window, in a ring that never grows."""

from __future__ import annotations

import dataclasses

import jax

from jaxkv.core.errors import InputError
from jaxkv.layers.base import Geometry
from jaxkv.layers.declared import swept
from jaxkv.layers.ring import RingLayer, within_windows


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class StreamingLLM:
    """Efficient Streaming Language Models with Attention Sinks (arXiv 2309.17453).

    Keeps the first `sinks` tokens and the last `window`. Positions are those inside the cache
    (section 3.2 of the paper): once the stream is longer than the cache, sink i stays at distance
    `sinks + window - i` from every query. Prefill is token-exact: a prompt in chunks of any size
    gives what feeding it token by token gives.

    Attributes:
      sinks: first tokens that are always kept.
      window: past tokens that are kept; a query also sees itself.

    Memory: `sinks + window` tokens per KV head, and one slot for the newest token.
    """

    sinks: int = 4
    window: int = swept(1020, less="sinks")

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise InputError(f"sinks is {self.sinks}; it must be at least 0")
        if self.window < 1:
            raise InputError(f"window is {self.window}; it must be at least 1")

    @within_windows
    def at(self, layer: int, geometry: Geometry) -> RingLayer:
        """The same for every layer."""
        del layer
        return RingLayer(geometry, self.sinks, self.window, in_cache=True)
