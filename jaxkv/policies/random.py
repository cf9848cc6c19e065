# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Any tokens of a prompt: what every other score has to be better than."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.layers.prompt import Prompt
from jaxkv.policies.scored import ScoredPolicy
from pallas_kernels.precision import einsum

TURNS = 8.0  # by which a key of usual spread turns what is drawn for its position


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Random(ScoredPolicy):
    """Each KV head keeps tokens at random, and other heads and layers keep others.

    A score does not know its layer, nor the model's order of heads. So a number in [0, 1) is drawn
    for each position, from `seed`, and turned by the key's projection on a direction that is drawn
    too: uniform whatever the key is, apart in heads whose keys differ, and the same wherever the
    token lies, in whatever batch and chunk it came.

    Attributes:
      budget, decode_room, allocation, table: as for `ScoredPolicy`.
      sinks, window: as for `ScoredPolicy`; as in kvpress nothing is sure of its place, here but for
        the last token.
      seed: of what is drawn.
    """

    agnostic = True

    allocations = ("uniform", "table")

    sinks: int = 0
    window: int = 1
    seed: int = 0

    def score(self, prompt: Prompt) -> Array:
        """[B, K, S], in [0, 1)."""
        seed = jax.random.key(self.seed)
        keys = prompt.keys.astype(jnp.float32)
        direction = jax.random.normal(seed, keys.shape[-1:], jnp.float32)
        along = einsum("bksh,h->bks", keys, direction)
        length = jnp.linalg.norm(keys, axis=-1)
        turned = TURNS * along / jnp.where(length > 0, length, 1)

        def draw(position: Array) -> Array:
            return jax.random.uniform(jax.random.fold_in(seed, position), dtype=jnp.float32)

        at = jnp.maximum(prompt.positions, 0).reshape(-1)
        return (jax.vmap(draw)(at).reshape(prompt.positions.shape) + turned) % 1.0
