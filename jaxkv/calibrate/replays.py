# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Heads by what they look at while the model repeats a text: KVzip's scores of heads.

After arXiv 2505.23416, section 4 ("context-independent eviction"), and its code: a text, the
request to repeat it, and the text again, in one pass. A head's score is the largest attention that
any token of the text gets from any query of the repetition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxkv.attention import attend_one_mass
from jaxkv.calibrate.needles import around
from jaxkv.calibrate.onepass import one_pass
from jaxkv.checkpoints.model import Model
from jaxkv.core.progress import Progress
from jaxkv.layers.base import Chunk
from jaxkv.text.repeat import REQUEST
from jaxkv.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Repeated:
    """Looks for the largest attention from a repetition to what it repeats.

    The softmax is over all that a query sees: with a text of one chunk the subset that KVzip takes
    instead (the chunk and the repetition) is nearly that. Attention that a streaming head gives
    too, to sinks and to recent tokens, does not count: what is near a query, it would keep.

    Attributes:
      begin: where the text begins.
      size: tokens of the text, and as many that repeat it, the last of all.
      sinks, recent: of a streaming head.
    """

    begin: int
    size: int
    sinks: int
    recent: int

    def __call__(self, chunk: Chunk, _: Array) -> Array:
        """float32 [K], over the query heads of each KV head."""
        assert chunk.lengths is not None
        at = jnp.arange(chunk.count, dtype=jnp.int32)[None]
        q, k = chunk.rotated(at)
        held = at < chunk.lengths[:, None]
        keys, where = k.swapaxes(1, 2), jnp.where(held, at, -1)[:, None]
        first = chunk.lengths[0] - self.size  # of the repetition
        text = (at >= max(self.begin, self.sinks)) & (at < self.begin + self.size)

        def one(step: Array, most: Array) -> Array:
            mine = lax.dynamic_slice_in_dim(q, first + step, 1, axis=1)
            position = (first + step)[None, None]
            _, mass = attend_one_mass(mine, keys, keys, position, where, chunk.rope)
            counts = text & (at < position - self.recent)
            return jnp.maximum(most, jnp.max(jnp.where(counts, mass[0], 0.0), axis=-1))

        most = lax.fori_loop(0, self.size, one, jnp.zeros(q.shape[2], jnp.float32))
        return jnp.max(most.reshape(k.shape[2], -1), axis=-1)


def replayed(tokenizer: Tokenizer, text: Sequence[int]) -> tuple[list[int], int]:
    """A text's ids, the request, and the text again, in the chat template if there is one.

    Returns:
      The ids, and where the text begins in them.
    """
    before, after = around(tokenizer, chat=tokenizer.chat_template is not None)
    request = tokenizer.encode(REQUEST)
    return [*before, *text, *request, *after, *text], len(before)


def replay(
    model: Model, texts: Sequence[Sequence[int]], sinks: int, recent: int, progress: Progress
) -> np.ndarray:
    """Scores of all heads, mean over the texts: float64 [L, K].

    Args:
      model: the model.
      texts: ids of each.
      sinks, recent: of a streaming head; see `Repeated`.
      progress: called after every text.
    """
    total = np.zeros((model.config.num_layers, model.config.num_kv_heads))
    for done, text in enumerate(texts, 1):
        ids, begin = replayed(model.tokenizer, text)
        total += one_pass(model, ids, Repeated(begin, len(text), sinks, recent))
        progress("replays", done, len(texts))
    return total / len(texts)
