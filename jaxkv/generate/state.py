# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What generation carries from step to step: one immutable pytree, donated each time."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.cache.exported import exportable
from jaxkv.core.hosts import fetch
from jaxkv.core.shards import DATA
from jaxkv.generate.recompute import Remembered
from jaxkv.generate.running import begun, running
from jaxkv.layers.base import Cache, Policy
from jaxkv.models import layouts
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import geometry
from jaxkv.models.mesh import Meshed, put, sharding


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
    cache = begun(config, policy, geometry(config, batch_size, max_length, dtype))
    logits = jnp.zeros((batch_size, config.vocab_size), jnp.float32)
    done = jnp.zeros((batch_size,), bool)
    return of_rows(config, cache, logits, row_keys(seed, batch_size), done)


def abstract(
    config: ModelConfig, policy: Policy, batch_size: int, max_length: int, dtype: str
) -> State:
    """The shapes of what `start` gives, and how they lie; nothing is allocated."""
    if not isinstance(config, Meshed):
        return jax.eval_shape(lambda: start(config, policy, batch_size, max_length, dtype, 0))
    shapes = geometry(config, batch_size, max_length, dtype)
    cache = layouts.abstract(config, functools.partial(running, policy), shapes)
    rows = jax.ShapeDtypeStruct((batch_size,), bool, sharding=sharding(config, DATA))
    keys = jax.eval_shape(lambda: row_keys(0, batch_size))
    logits = rows.update(shape=(batch_size, config.vocab_size), dtype=jnp.float32)
    held: Any = logits, rows.update(dtype=keys.dtype), rows
    return State(cache, *held)


def of_rows(
    config: ModelConfig, cache: Cache | Remembered, logits: Any, keys: Array, done: Any
) -> State:
    """Streams of a cache that is where the model is, of what a host has of each row."""
    if not isinstance(config, Meshed):
        return State(cache, logits, keys, done)
    return State(cache, *(put(config, x, DATA) for x in (logits, keys, done)))


def dealt(config: Meshed, policy: Policy, state: State, rows: int) -> State:
    """Streams of one device, over the mesh, as the first of `rows` rows."""
    planner = functools.partial(running, policy)
    cache = layouts.dealt(config, planner, state.cache, rows)
    missing = rows - state.done.shape[0]
    keys = jax.random.key_data(state.keys)
    more = ((0, missing), (0, 0))
    keys = jax.random.wrap_key_data(jnp.pad(keys, more))
    return of_rows(config, cache, np.pad(state.logits, more), keys, np.pad(state.done, more[:1]))


def gathered(config: ModelConfig, state: State, rows: int) -> State:
    """The first rows of streams that are on a mesh, as they lie on one device."""
    if not isinstance(config, Meshed):
        return state
    cache = layouts.gathered(config, state.cache, rows)
    keys = jax.random.wrap_key_data(jnp.asarray(fetch(jax.random.key_data(state.keys))[:rows]))
    logits, done = (jnp.asarray(fetch(x)[:rows]) for x in (state.logits, state.done))
    return State(cache, logits, keys, done)


def row_keys(seed: int, batch_size: int) -> Array:
    """A random key for each row: row i alone, seeded with seed + i, draws the same."""
    seeds = jnp.asarray([(seed + i) % 2**31 for i in range(batch_size)], jnp.int32)
    return jax.vmap(jax.random.key)(seeds)
