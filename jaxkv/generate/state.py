# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What generation carries from step to step: one immutable pytree, donated each time."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.cache.exported import exportable
from jaxkv.generate.recompute import Remembered
from jaxkv.generate.running import running
from jaxkv.layers.base import Cache, Policy
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import geometry


@exportable
@flax.struct.dataclass
class State:
    """A batch of streams.

    Attributes:
      cache: what the policy keeps.
      logits: [B, V] float32, for the next token of each row.
      keys: random keys [B], one a row.
      done: bool [B], rows that have ended and no longer change.
    """

    cache: Cache | Remembered
    logits: Array
    keys: Array
    done: Array


def start(
    config: ModelConfig, policy: Policy, batch_size: int, max_length: int, dtype: str, seed: int
) -> State:
    """A batch of streams with nothing in them. Row i draws with `seed + i`."""
    return State(
        cache=running(policy, geometry(config, batch_size, max_length, dtype)).init(),
        logits=jnp.zeros((batch_size, config.vocab_size), jnp.float32),
        keys=row_keys(seed, batch_size),
        done=jnp.zeros((batch_size,), bool),
    )


def row_keys(seed: int, batch_size: int) -> Array:
    """A random key for each row: row i alone, seeded with seed + i, draws the same."""
    seeds = jnp.asarray([(seed + i) % 2**31 for i in range(batch_size)], jnp.int32)
    return jax.vmap(jax.random.key)(seeds)
