# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Heads by how far they look on average: mean query and mean key, and positions between them.

As kvpress 0.5.5 makes DuoAttention patterns on the fly: nothing is trained and nothing is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.attention import attend_one_mass
from jaxkv.calibrate.onepass import of_kv_heads, one_pass
from jaxkv.checkpoints.model import Model
from jaxkv.core.progress import Progress
from jaxkv.core.typing import Rotation
from jaxkv.layers.base import Chunk, rotate

PLACES = 500  # positions that the mean key is put at


def means(chunk: Chunk, _: Array) -> Array:
    """Mean q and k of a text's tokens, before rotation: float32 [N + K, H]."""
    assert chunk.lengths is not None
    valid = jnp.arange(chunk.count)[:, None, None] < chunk.lengths[0]
    both = jnp.concatenate([chunk.q[0], chunk.k[0]], axis=1).astype(jnp.float32)
    total = jnp.sum(jnp.where(valid, both, 0.0), axis=0)
    return total / jnp.maximum(chunk.lengths[0], 1).astype(jnp.float32)


def farness(q: Array, k: Array, rope: Rotation | None, places: int = PLACES) -> Array:
    """How far from the query the attention is that its mean gives to the mean key everywhere.

    The query is at the last of the positions, the same key at each. With p the softmax of their
    scores, the mean over positions of the cumulative sum of p: near 1 where all of it is on the
    first position, and 1 / places where it is on the query's own.

    Args:
      q: float32 [N, H], not rotated.
      k: float32 [K, H], not rotated.
      rope: how the layer scores.
      places: how many positions.

    Returns:
      float32 [N].
    """
    at = jnp.arange(places, dtype=jnp.int32)[None]
    keys = jnp.broadcast_to(k[None, None], (1, places, *k.shape))
    keys = rotate(rope, keys, at).swapaxes(1, 2)  # [1, K, S, H]
    last = at[:, -1:]
    query = rotate(rope, q[None, None], last)
    _, mass = attend_one_mass(query, keys, keys, last, at[:, None], rope)
    return jnp.mean(jnp.cumsum(mass[0], axis=-1), axis=-1)


def profile(model: Model, texts: Sequence[Sequence[int]], progress: Progress) -> np.ndarray:
    """`farness`, mean over texts and over each KV head's query heads: float64 [L, K].

    Args:
      model: the model.
      texts: ids of each.
      progress: called after every text.
    """
    config, total = model.config, np.zeros((model.config.num_layers, model.config.num_heads))
    for done, ids in enumerate(texts, 1):
        found = jnp.asarray(one_pass(model, ids, means))
        total += [
            np.asarray(farness(mean[: config.num_heads], mean[config.num_heads :], rope))
            for mean, rope in zip(found, map(config.scoring, range(len(found))), strict=True)
        ]
        progress("profiles of heads", done, len(texts))
    return of_kv_heads(total / len(texts), config.num_kv_heads)
