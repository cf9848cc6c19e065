# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""StreamingLLM++: sinks and a window, and now and then a look at everything."""

from __future__ import annotations

import dataclasses

import jax

from jaxkv.core.errors import InputError
from jaxkv.layers.base import Geometry
from jaxkv.layers.declared import in_caches, swept
from jaxkv.layers.full import FullLayer
from jaxkv.layers.refreshed import StreamingPlusLayer
from jaxkv.layers.ring import RingLayer, within_windows
from jaxkv.policies.streaming import StreamingLLM


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
