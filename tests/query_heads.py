# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""HeadKV as its reference code has it: a cache for each query head, to compare with ours."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxkv.core.typing import Queries, Rotation
from jaxkv.layers.base import Chunk, Facts, Geometry, WholePrompt
from jaxkv.layers.selected import SelectedLayer
from jaxkv.policies.budgets import headkv, redistribute
from jaxkv.policies.head_scores import head_scores
from jaxkv.policies.headkv import HeadKV


@dataclasses.dataclass(frozen=True)
class PerQueryHead(WholePrompt):
    """A layer that keeps keys for every query head: KV heads are repeated before they are cached.

    Attributes:
      geometry: of the model's layer.
      layer: made for as many KV heads as query heads.
    """

    geometry: Geometry
    layer: SelectedLayer

    def init(self) -> Any:
        return self.layer.init()

    def step(self, cache: Any, chunk: Chunk) -> Any:
        return self.layer.step(cache, self._repeat(chunk))

    def open(self, cache: Any, count: int) -> Any:
        return self.layer.open(cache, count)

    def feed(self, draft: Any, start: Array, count: int, chunk: Chunk) -> tuple[Any, Queries]:
        return self.layer.feed(draft, start, count, self._repeat(chunk))

    def close(self, draft: Any, cache: Any, rope: Rotation | None) -> Any:
        return self.layer.close(draft, cache, rope)

    def facts(self) -> Facts:
        return self.layer.facts()

    def _repeat(self, chunk: Chunk) -> Chunk:
        group = self.geometry.num_heads // self.geometry.num_kv_heads
        k, v = (jnp.repeat(x, group, axis=2) for x in (chunk.k, chunk.v))
        return dataclasses.replace(chunk, k=k, v=v)


def layer_of(policy: HeadKV, layer: int, geometry: Geometry) -> PerQueryHead:
    """The policy's layer, with a budget for each query head from its own importance."""
    scores = head_scores(policy.scores, geometry)
    caps = headkv(scores, policy.budget_tokens(geometry), policy.beta, policy.window)
    caps = redistribute(caps, geometry.max_length - policy.window)[layer]
    wide = dataclasses.replace(geometry, num_kv_heads=geometry.num_heads)
    return PerQueryHead(geometry, selected(policy, wide, tuple(map(int, caps))))


def selected(policy: HeadKV, geometry: Geometry, caps: tuple[int, ...]) -> SelectedLayer:
    """A layer with the policy's score."""
    return SelectedLayer(
        geometry, caps, policy.window, policy, policy.decode_room, policy.sinks, policy.needs
    )
