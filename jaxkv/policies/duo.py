# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Retrieval heads that keep everything, and streaming heads that keep sinks and a window."""

from __future__ import annotations

import dataclasses

import jax

from jaxkv.core.errors import InputError
from jaxkv.layers.base import Geometry
from jaxkv.layers.full import FullLayer
from jaxkv.layers.grouped import HeadGroups, part
from jaxkv.layers.ring import RingLayer, within_windows
from jaxkv.policies.head_scores import full_heads


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DuoAttention:
    """DuoAttention (arXiv 2410.10819), deployed (section 3.3 of the paper).

    Keys keep their absolute positions in all heads, unlike StreamingLLM's. Prefill is token-exact
    by default: a prompt in chunks of any size gives what feeding it token by token gives.

    Attributes:
      pattern: the gates: DuoAttention's folder, a file of `jaxkv.calibrate duo`, or None for the
        one that is shipped for the model.
      sparsity: share of all KV heads that only stream, in [0, 1].
      sinks: first tokens that a streaming head keeps.
      recent: past tokens that a streaming head keeps; a query also sees itself.
      dense_chunks: as in the reference code, a streaming head's queries see all of their own chunk
        of the prompt, so that a prompt in one chunk is read densely. The result then depends on
        the chunk size.

    Memory: `max_length` tokens in a retrieval head; `sinks + recent`, and one slot for the newest
    token, in a streaming head.
    """

    pattern: str | None = None
    sparsity: float = 0.5
    sinks: int = 64
    recent: int = 256
    dense_chunks: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity <= 1:
            raise InputError(f"sparsity is {self.sparsity}; it must be from 0 to 1")
        if self.sinks < 0:
            raise InputError(f"sinks is {self.sinks}; it must be at least 0")
        if self.recent < 1:
            raise InputError(f"recent is {self.recent}; it must be at least 1")

    @within_windows
    def at(self, layer: int, geometry: Geometry) -> HeadGroups:
        """Two groups, of which one may be empty."""
        retrieval = full_heads(self.pattern, self.sparsity, geometry)[layer]
        streaming = tuple(h for h in range(geometry.num_kv_heads) if h not in retrieval)
        ring = RingLayer(
            part(geometry, streaming), self.sinks, self.recent,
            in_cache=False, dense_chunks=self.dense_chunks,
        )  # fmt: skip
        full = FullLayer(part(geometry, retrieval), geometry.shards)
        return HeadGroups(geometry, (retrieval, streaming), (full, ring))
