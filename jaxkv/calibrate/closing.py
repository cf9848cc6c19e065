# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Heads by what closing all of them at once costs, told apart along the way.

Integrated gradients (arXiv 1703.01365) of gates: all are closed together, from 1 to 0, and what a
gate has to do with the answer's loss is summed up over the way. Unlike attention this also tells
heads that look at many places and only prepare what others find; unlike training it does not close
first what looks dispensable while all others are open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.calibrate.attended import Prompt
from jaxkv.calibrate.gated import Gated, mixed_states, stack_layers
from jaxkv.calibrate.onepass import ranked
from jaxkv.calibrate.training import make_slope
from jaxkv.checkpoints.model import Model
from jaxkv.core.progress import Progress
from jaxkv.models.decoder import head

WAY = (0.1, 0.35, 0.6, 0.85)  # gates on the way; each stands for about a quarter of it
MOST_CLOSED = 8  # prompts: each takes as long as some twenty passes
_CHUNK = 128  # tokens that attend at a time
_ROUND = 256  # prompts are padded to multiples of this: one compiled program for each
_MOST = 32  # tokens of a key


def closed(
    model: Model, prompts: Sequence[Prompt], sinks: int, recent: int, progress: Progress
) -> np.ndarray:
    """The share of heads whose closing costs no more: float64 [L, K], in (0, 1].

    Args:
      model: the model.
      prompts: from `attended.make_prompts`.
      sinks, recent: of the streaming heads.
      progress: called after every prompt.
    """
    config, policy = model.config, Gated(sinks, recent, _CHUNK)

    def loss(gates: Array, params: Any, *prompt: Array) -> tuple[Array, Array]:
        tokens, lengths, where, said = prompt
        x = mixed_states(params, config, gates, policy, tokens, lengths)
        logits = head(params, config, jnp.take_along_axis(x, where[..., None], axis=1))
        each = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(said, 0)[..., None], 2)
        there = (said >= 0)[..., None]
        count = jnp.sum(there, dtype=jnp.float32)
        return -jnp.sum(jnp.where(there, each, 0.0)) / count, jnp.mean(gates)

    slope, params = make_slope(loss), stack_layers(model.params)
    shape = config.num_layers, config.num_kv_heads
    total = np.zeros(shape)
    for done, prompt in enumerate(prompts, 1):
        args = _padded(prompt)
        for gate in WAY:
            gates = jnp.full(shape, gate, jnp.float32)
            _, change = slope(gates, jnp.float32(0), params, *args)
            total -= np.asarray(change, np.float64) / len(WAY) / len(prompts)
        progress("closing heads", done, len(prompts))
    return ranked(total)


def _padded(prompt: Prompt) -> tuple[Array, Array, Array, Array]:
    """Tokens [1, T], lengths [1], where a key is said and what is said there, both [1, M]."""
    size = len(prompt.ids)
    where = np.arange(*prompt.said)[:_MOST]
    said = np.asarray(prompt.ids)[where + 1]
    room = (0, _MOST - len(where))
    return (
        jnp.asarray(np.pad(np.asarray([prompt.ids], np.int32), [(0, 0), (0, -size % _ROUND)])),
        jnp.asarray([size], jnp.int32),
        jnp.asarray(np.pad(where, room)[None], jnp.int32),
        jnp.asarray(np.pad(said, room, constant_values=-1)[None], jnp.int32),
    )
