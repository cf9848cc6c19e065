# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A small network that tells from a token's state what KVzip would find it to be worth."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.core.typing import Params
from jaxkv.layers.base import Geometry
from jaxkv.layers.prompt import Prompt
from jaxkv.policies.scored import ScoredPolicy
from jaxkv.policies.surrogates import surrogates, with_surrogates, worth


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVzap(ScoredPolicy):
    """KVzap (arXiv 2601.07891): KVzip+ without a second reading.

    For each layer a linear map or a small MLP takes the states that keys are projected from, and
    says for each KV head the logarithm of KVzip+'s score. No question is known, and none is asked.
    What was kept of earlier prompts, whose states are gone, is as good as this prompt's average.

    The networks go with the model's parameters: `generate` and the commands put them there, and for
    `forward` they are put there by `policy.prepare(params, geometry)`.

    Attributes:
      budget, sinks, window, decode_room, allocation, table, floor: as for `ScoredPolicy`.
      gate: file of the networks, as published or of `jaxkv.calibrate kvzap`; None for the one that
        is shipped for the model.
      threshold: tokens whose score is below it are not kept, where the budget would have room; the
        published ones are -4 for Qwen3 with an MLP and -7 for Llama 3.1 with a linear map.
    """

    needs = ("hidden", "constants")
    agnostic = True

    window: int = 128
    allocation: str = "global"
    gate: str | None = None
    threshold: float | None = None

    def prepare(self, params: Params, geometry: Geometry) -> Params:
        """The parameters with the networks."""
        width = params["embed"].shape[-1]
        return with_surrogates(params, surrogates(self.gate, geometry, width))

    def score(self, prompt: Prompt) -> Array:
        """Section 3.2 of the paper; below the threshold nothing is chosen."""
        found = worth(prompt.surrogate(), prompt.hidden())
        new = prompt.new & prompt.valid
        count = jnp.maximum(jnp.sum(new, axis=-1, keepdims=True, dtype=jnp.int32), 1)
        total = jnp.sum(jnp.where(new, found, 0), axis=-1, keepdims=True)
        if self.threshold is not None:
            found = jnp.where(found >= self.threshold, found, -jnp.inf)
        return jnp.where(prompt.new, found, total / count.astype(jnp.float32))
