# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Drops the token that the newest query attends to least, one and the same in all heads."""

from __future__ import annotations

import dataclasses

import jax

from jaxkv.core.errors import InputError
from jaxkv.layers.base import Geometry
from jaxkv.layers.declared import swept
from jaxkv.layers.evicting import TOVALayer
from jaxkv.layers.ring import within_windows
from jaxkv.policies.budgets import in_tokens


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TOVA:
    """TOVA (arXiv 2401.06104): no window, no sinks, only the newest query's attention.

    The mean over all query heads of a layer decides, so all KV heads keep the same tokens. The
    newest token competes too. The prompt is read with full attention and reduced once, by its last
    query; then every step replaces one slot in place.

    Attributes:
      budget: tokens that are kept; as a float, a share of `max_length`.

    Memory: `budget` tokens per KV head, and one slot for the newest token.
    """

    budget: int | float = swept(1024)

    def __post_init__(self) -> None:
        if not (self.budget >= 1 if isinstance(self.budget, int) else 0 < self.budget <= 1):
            raise InputError(
                f"budget is {self.budget}; it must be at least 1 token, or a share up to 1.0"
            )

    @within_windows
    def at(self, layer: int, geometry: Geometry) -> TOVALayer:
        """The same for every layer."""
        del layer
        return TOVALayer(geometry, max(in_tokens(self.budget, geometry.max_length), 1))
