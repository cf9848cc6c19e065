# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A policy that is a score: each KV head keeps the tokens of a prompt that score highest."""

from __future__ import annotations

import abc
import dataclasses

from jax import Array

from jaxkv.errors import InputError
from jaxkv.policies.base import Geometry
from jaxkv.policies.budgets import in_tokens
from jaxkv.policies.selected import Prompt, SelectedLayer


@dataclasses.dataclass(frozen=True)
class ScoredPolicy(abc.ABC):
    """Base of policies that are a score. A subclass is a frozen dataclass with `score`.

    The prompt is read with full attention; then each KV head keeps its `sinks` first tokens, its
    `window` last ones, and of the others those with the highest score. A later prompt is chosen
    from together with what was kept.

    Attributes:
      budget: tokens of a prompt that a KV head keeps, sinks and window included; as a float, a
        share of `max_length`.
      sinks: first tokens that are always kept.
      window: last tokens of the prompt that are always kept, and whose attention is `mass()`.
      decode_room: decoded tokens that are kept before the oldest of the newest are overwritten.

    Memory: `budget + decode_room` tokens per KV head, and one slot for the newest token.
    """

    budget: int | float = 1024
    sinks: int = 4
    window: int = 8
    decode_room: int = 128

    def __post_init__(self) -> None:
        for name, least in (("sinks", 0), ("window", 1), ("decode_room", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if isinstance(self.budget, float):
            if not 0 < self.budget <= 1:
                raise InputError(f"budget is {self.budget}; a share is above 0 and at most 1")
        elif self.budget < self.sinks + self.window:
            raise InputError(
                f"budget is {self.budget}; it must be at least the {self.sinks} sinks and the "
                f"window of {self.window}, which are always kept"
            )

    @abc.abstractmethod
    def score(self, prompt: Prompt) -> Array:
        """The score of each token.

        Args:
          prompt: what is known of it.

        Returns:
          [B, K, S], higher is kept; what stands where `prompt.valid` is False is not looked at.
        """

    def at(self, layer: int, geometry: Geometry) -> SelectedLayer:
        """The same for every layer."""
        del layer
        budget = max(in_tokens(self.budget, geometry.max_length), self.window + self.sinks)
        caps = (budget - self.window,) * geometry.num_kv_heads
        return SelectedLayer(geometry, caps, self.window, self, self.decode_room, self.sinks)
