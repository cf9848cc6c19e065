# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A text that is read once, with everything kept, and what each layer's queries and keys tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.checkpoints.model import Model
from jaxkv.core.typing import Queries
from jaxkv.layers.base import Chunk, Facts, LayerCache
from jaxkv.layers.full import FullLayer
from jaxkv.models.decoder import embed, geometry, run_layer

ROUND = 128  # texts are padded to multiples of this: one program for each

Look = Callable[[Chunk, Array], Array]


@dataclasses.dataclass(frozen=True)
class LookedAt:
    """A `FullLayer` over a whole text. What stands for its cache is what a function is given, and
    then what the function found.

    Attributes:
      full: what attends.
      look: of the whole text, with q [B, T, N, H] and k [B, T, K, H] after the model's own norms
        and before rotation, and of an array that says what to look at. A function of a module or a
        frozen dataclass, so that one program serves all texts.
    """

    full: FullLayer
    look: Look

    def init(self) -> LayerCache:
        """Nothing to look at."""
        return jnp.zeros((0,), jnp.int32)

    def take(self, cache: LayerCache, chunk: Chunk) -> tuple[Array, Queries]:
        """Attends to everything, and looks."""
        _, out = self.full.take(self.full.init(), chunk)
        return self.look(chunk, cache), out

    def facts(self) -> Facts:
        """As the layer."""
        return self.full.facts()


def one_pass(
    model: Model, ids: Sequence[int], look: Look, what: np.ndarray | None = None
) -> np.ndarray:
    """What `look` found in each layer of one text: float32 [L, ...].

    Args:
      model: the model, whose layers must be alike.
      ids: of the text.
      look: see `LookedAt`; it is given the text padded on the right.
      what: it is to look at, or None; of data, where `look` is part of the program.
    """
    config = model.config
    model.check_ids(ids, "a text's")
    size = -(-len(ids) // ROUND) * ROUND
    layer = LookedAt(FullLayer(geometry(config, 1, size, str(model.params["embed"].dtype))), look)
    tokens = jnp.asarray(np.pad(np.asarray([ids], np.int32), [(0, 0), (0, size - len(ids))]))
    lengths = jnp.asarray([len(ids)], jnp.int32)
    given = layer.init() if what is None else jnp.asarray(what)
    x, found = embed(model.params, config, tokens), []
    for index, weights in enumerate(model.params["layers"]):
        x, seen = run_layer(weights, config, layer, config.scoring(index), x, given, lengths)
        found.append(seen)
    return np.asarray(jnp.stack(found), np.float32)


def of_kv_heads(scores: np.ndarray, kv_heads: int) -> np.ndarray:
    """The mean over the query heads of each KV head: [L, N] -> float64 [L, K]."""
    return np.asarray(scores, np.float64).reshape(len(scores), kv_heads, -1).mean(axis=-1)


def ranked(scores: np.ndarray) -> np.ndarray:
    """The share of all scores that are not above each: float64, in (0, 1]."""
    return np.searchsorted(np.sort(scores, axis=None), scores, side="right") / scores.size
