# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Full attention now and then, and in between only over the keys that it looked at."""

from __future__ import annotations

import dataclasses

import jax

from jaxkv.core.errors import InputError
from jaxkv.layers.base import Geometry
from jaxkv.layers.declared import in_caches, swept
from jaxkv.layers.refreshed import RecycledLayer
from jaxkv.layers.ring import within_windows
from jaxkv.policies.budgets import in_tokens


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class RecycledAttention:
    """Recycled Attention (arXiv 2411.05787; its second version is called RefreshKV).

    Everything is kept. The last query of the prompt, and every query of a full step, looks at all
    of it and copies the keys and values that it attends to most into a small cache. The steps in
    between read that one alone: the newest token goes in, and what scored lowest goes out. Scores
    stay as they are until the next full step, so tokens decoded since then leave last.

    A full step comes every `stride` decode steps; with a `threshold` it comes then only in layers
    whose query has moved: where the cosine between the mean query of the layer's heads and that of
    its last full step is at most `threshold`. The queries are compared before rotation, so that
    distance alone does not move them (the paper does not say). In a batch a layer refreshes all
    rows when any row asks.

    The first version of the paper is `kernel=1`, with `k` 4096 or 2048 and `stride` 50 or 10.

    Attributes:
      k: tokens of the small cache; as a float, a share of `max_length`.
      stride: decode steps from one full step, or one check, to the next; the prompt is step 0.
      threshold: a cosine, which turns the dynamic schedule on; None refreshes at every stride.
      kernel: neighbours over which scores are max-pooled, odd; 1 does not pool.

    Memory: `max_length` tokens per KV head and `k` more. What is saved is reading, not memory.
    """

    k: int | float = swept(0.125)
    stride: int = in_caches(10)
    threshold: float | None = in_caches(None)
    kernel: int = 7

    def __post_init__(self) -> None:
        if not (self.k >= 1 if isinstance(self.k, int) else 0 < self.k <= 1):
            raise InputError(f"k is {self.k}; it must be at least 1 token, or a share up to 1.0")
        if self.stride < 1:
            raise InputError(f"stride is {self.stride}; it must be at least 1")
        if self.threshold is not None and not self.threshold == self.threshold:
            raise InputError(f"threshold is {self.threshold}; it must be a number, such as 0.85")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise InputError(f"kernel is {self.kernel}; it must be odd and at least 1")

    @within_windows
    def at(self, layer: int, geometry: Geometry) -> RecycledLayer:
        """The same for every layer; each decides by itself."""
        del layer
        k = max(1, min(in_tokens(self.k, geometry.max_length), geometry.max_length))
        return RecycledLayer(geometry, k, self.stride, self.threshold, self.kernel)
