# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""More tokens for the heads that retrieve and reason, fewer for the rest."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.errors import InputError
from jaxkv.policies.base import Chunk, Facts, Geometry, WholePrompt
from jaxkv.policies.budgets import check_budget, headkv, in_tokens, redistribute
from jaxkv.policies.draft import Draft
from jaxkv.policies.patterns import head_scores
from jaxkv.policies.selected import Attended, SelectedLayer
from jaxkv.typing import Queries, Rotation


@dataclasses.dataclass(frozen=True)
class HeadKV:
    """HeadKV (arXiv 2410.19258): as `SnapKV`, with a budget for each head from its importance.

    Budgets follow the paper's equation 4 over all heads of the model; a KV head's is the mean of
    those of its query heads, so that the model's stays what was asked for. What a head's budget has
    beyond `max_length`, which no prompt can fill, goes to the other heads.

    Attributes:
      scores: importance of the heads: HeadKV's JSON, a file of `jaxkv.calibrate headkv`, or None
        for the one that is shipped for the model.
      budget: tokens of a prompt that a head keeps on average, the window included; as a float, a
        share of `max_length`.
      beta: a `1 / beta` of every budget is dealt out by importance; close to 1 all of it.
      window: last tokens of the prompt, always kept, whose queries choose.
      kernel: neighbours over which scores are max-pooled, odd.
      decode_room: as for `SnapKV`.
      query_heads: a cache for each query head instead of each KV head, as the reference code has:
        more memory by the factor by which KV heads are shared. To compare with it, not to be used.

    Memory: `budget + decode_room` tokens per KV head on average, and one slot for the newest token.
    """

    scores: str | None = None
    budget: int | float = 128
    beta: float = 1.2
    window: int = 8
    kernel: int = 7
    decode_room: int = 128
    query_heads: bool = False

    def __post_init__(self) -> None:
        check_budget(self.budget, self.window, self.kernel, self.decode_room)
        if not self.beta >= 1:
            raise InputError(f"beta is {self.beta}; it must be at least 1")

    def at(self, layer: int, geometry: Geometry) -> SelectedLayer | PerQueryHead:
        """By the layer's heads."""
        caps = tuple(int(cap) for cap in _caps(self, geometry)[layer])
        settings = self.window, Attended(self.kernel), self.decode_room
        if not self.query_heads:
            return SelectedLayer(geometry, caps, *settings)
        wide = dataclasses.replace(geometry, num_kv_heads=geometry.num_heads)
        return PerQueryHead(geometry, SelectedLayer(wide, caps, *settings))


@functools.lru_cache(maxsize=8)
def _caps(policy: HeadKV, geometry: Geometry) -> np.ndarray:
    """Chosen tokens of each head, [L, heads]."""
    every, ruled = head_scores(policy.scores, geometry), list(geometry.ruled)
    scores = every[ruled] / max(every[ruled].sum(), np.finfo(np.float64).tiny)
    budget = max(in_tokens(policy.budget, geometry.max_length), policy.window)
    caps = headkv(scores, budget, policy.beta, policy.window)
    longest = max(geometry.max_length - policy.window, 1)
    if not policy.query_heads:
        of_group = scores.shape[0], geometry.num_kv_heads, -1
        caps = np.round(caps.reshape(of_group).mean(axis=-1)).astype(np.int64)
    placed = np.zeros((geometry.num_layers, caps.shape[1]), np.int64)
    placed[ruled] = redistribute(caps, longest)
    return placed


@dataclasses.dataclass(frozen=True)
class PerQueryHead(WholePrompt):
    """A layer that keeps keys for every query head: KV heads are repeated before they are cached.

    Attributes:
      geometry: of the model's layer.
      layer: made for as many KV heads as query heads.
    """

    geometry: Geometry
    layer: SelectedLayer

    def init(self):
        """An empty cache, of every query head."""
        return self.layer.init()

    def step(self, cache, chunk: Chunk):
        """Each query head takes the token."""
        return self.layer.step(cache, self._repeat(chunk))

    def open(self, cache, count: int) -> Draft:
        """See `WholePrompt`."""
        return self.layer.open(cache, count)

    def feed(self, draft: Draft, start: Array, count: int, chunk: Chunk) -> tuple[Draft, Queries]:
        """See `WholePrompt`."""
        return self.layer.feed(draft, start, count, self._repeat(chunk))

    def close(self, draft: Draft, cache, rope: Rotation | None):
        """See `WholePrompt`."""
        return self.layer.close(draft, cache, rope)

    def facts(self) -> Facts:
        """Of every query head."""
        return self.layer.facts()

    def _repeat(self, chunk: Chunk) -> Chunk:
        """With a KV head for every query head."""
        group = self.geometry.num_heads // self.geometry.num_kv_heads
        k, v = (jnp.repeat(x, group, axis=2) for x in (chunk.k, chunk.v))
        return dataclasses.replace(chunk, k=k, v=v)
