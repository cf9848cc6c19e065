# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The tokens of a prompt that its last queries looked at, as many in every head."""

from __future__ import annotations

import dataclasses

from jaxkv.errors import InputError
from jaxkv.policies.base import Geometry
from jaxkv.policies.budgets import check_budget, in_tokens, pyramid
from jaxkv.policies.selected import Attended, SelectedLayer


@dataclasses.dataclass(frozen=True)
class SnapKV:
    """SnapKV (arXiv 2404.14469), per KV head.

    The prompt is read with full attention; then each KV head keeps the tokens that the last
    `window` queries attended to most, and the last `window` themselves. The reference code keeps
    tokens per query head, which takes as many times the memory as query heads share a KV head.

    Attributes:
      budget: tokens of a prompt that a KV head keeps, the window included; as a float, a share of
        `max_length`.
      window: last tokens of the prompt, whose queries choose.
      kernel: neighbours over which scores are max-pooled, odd.
      decode_room: decoded tokens that are kept before the oldest of the newest are overwritten,
        so that memory is bounded; the reference code never evicts while decoding.

    Memory: `budget + decode_room` tokens per KV head, and one slot for the newest token.
    """

    budget: int | float = 1024
    window: int = 32
    kernel: int = 7
    decode_room: int = 128

    def __post_init__(self) -> None:
        check_budget(self.budget, self.window, self.kernel, self.decode_room)

    def at(self, layer: int, geometry: Geometry) -> SelectedLayer:
        """The same for every layer."""
        del layer
        budget = max(in_tokens(self.budget, geometry.max_length), self.window)
        caps = (budget - self.window,) * geometry.num_kv_heads
        return SelectedLayer(geometry, caps, self.window, Attended(self.kernel), self.decode_room)


@dataclasses.dataclass(frozen=True)
class PyramidKV:
    """PyramidKV (arXiv 2406.02069): as `SnapKV`, but lower layers keep more than higher ones.

    Budgets fall linearly with depth and sum to `budget` a layer; the reference code's sum is above
    it, by 4 % at 128 tokens.

    Attributes:
      budget: tokens of a prompt that a KV head keeps, mean over the layers.
      window: last tokens of the prompt, whose queries choose.
      kernel: neighbours over which scores are max-pooled, odd.
      beta: steepness: the last layer chooses a `1 / beta` of the mean.
      decode_room: as for `SnapKV`.

    Memory: `budget + decode_room` tokens per KV head on average, and one slot for the newest token.
    """

    budget: int | float = 1024
    window: int = 8
    kernel: int = 7
    beta: int = 20
    decode_room: int = 128

    def __post_init__(self) -> None:
        check_budget(self.budget, self.window, self.kernel, self.decode_room)
        if self.beta < 1:
            raise InputError(f"beta is {self.beta}; it must be at least 1")

    def at(self, layer: int, geometry: Geometry) -> SelectedLayer:
        """Less with every layer."""
        budget = max(in_tokens(self.budget, geometry.max_length), self.window)
        ruled = geometry.ruled
        caps = pyramid(budget, self.window, self.beta, len(ruled), geometry.max_length)
        return SelectedLayer(
            geometry, (caps[ruled.index(layer)],) * geometry.num_kv_heads,
            self.window, Attended(self.kernel), self.decode_room,
        )  # fmt: skip
