# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The papers' slow baseline: for every new token, the model runs over the whole window again."""

from __future__ import annotations

import dataclasses
from typing import NoReturn

import jax

from jaxkv.core.errors import InputError
from jaxkv.layers.base import Geometry
from jaxkv.layers.declared import swept


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SlidingRecompute:
    """Sliding window with re-computation (figure 1 (c) of arXiv 2309.17453).

    Exact for its window, with no trace of what left it, and `window` times the work per token. It
    keeps no keys, so it is no way to keep a cache: `generate` and the evaluations run it in a way
    of its own, and `forward` does not take it.

    Attributes:
      window: past tokens that are kept; a query also sees itself.

    Memory: token ids between steps; within a step a full cache of `window + 1` tokens.
    """

    window: int = swept(1024)

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"window is {self.window}; it must be at least 1")

    def at(self, layer: int, geometry: Geometry) -> NoReturn:
        """Raises:
        InputError: there is no cache.
        """
        del layer, geometry
        raise InputError(
            "policy is SlidingRecompute, which keeps tokens and no keys: there is no cache of it; "
            "generate and the evaluations run it"
        )
