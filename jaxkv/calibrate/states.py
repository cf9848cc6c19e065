# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A prompt that is read with everything kept, and the states that its keys were projected from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.checkpoints.model import Model
from jaxkv.core.typing import Hidden, Lengths, NewKeys, Params, Queries, Tokens
from jaxkv.generate.loop import Signature, kept_program
from jaxkv.layers.base import Cache, Chunk
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import embed, init_cache, run_block, sink_logits_of
from jaxkv.models.plan import plan
from jaxkv.policies.full import Full

CHUNK = 256  # tokens of a prompt a call
_ROUND = 64  # a prompt's capacity is a multiple


def capacity(prompts: Sequence[Sequence[int]]) -> int:
    """Slots that hold the longest of the prompts; few sizes, so that most share their programs."""
    return -(-max(map(len, prompts)) // _ROUND) * _ROUND


def read(
    model: Model,
    prompt: Sequence[int],
    slots: int,
    picked: np.ndarray | None = None,
    moments: bool = False,
) -> tuple[Cache, np.ndarray]:
    """Reads a prompt.

    Args:
      model: any.
      prompt: T token ids.
      slots: of the cache, at least T.
      picked: int [n], tokens whose states are kept; None for none.
      moments: whether those of the queries are kept: see `Full`.

    Returns:
      The cache, and float32 [L, n, D]: of each layer without a window of its own, the states that
      its projections read.
    """
    picked = np.zeros((0,), np.int64) if picked is None else picked
    policy = Full(moments=moments)
    cache = init_cache(model.config, policy, 1, slots, str(model.params["embed"].dtype))
    ruled = cache.geometry.ruled
    found = np.zeros((len(ruled), len(picked), model.config.hidden_size), np.float32)
    for begin in range(0, len(prompt), CHUNK):
        ids = prompt[begin : begin + CHUNK]
        tokens = np.zeros((1, CHUNK), np.int32)
        tokens[0, : len(ids)] = ids
        args = model.params, cache, jnp.asarray(tokens), jnp.asarray([len(ids)], jnp.int32)
        statics = (("config", model.config), ("policy", policy))
        program = kept_program(read_states, Signature.of(args), statics)
        cache, states = program.call(*args)
        here = (picked >= begin) & (picked < begin + CHUNK)
        for row, layer in enumerate(ruled):
            if here.any():
                found[row, here] = np.asarray(states[layer], np.float32)[0, picked[here] - begin]
    return cache, found


def read_states(
    params: Params, cache: Cache, tokens: Tokens, lengths: Lengths,
    *, config: ModelConfig, policy: Full,
) -> tuple[Cache, tuple[Array, ...]]:  # fmt: skip
    """Some tokens of a prompt, to be compiled; the cache, made under the policy, is donated.

    Returns:
      The cache, and of each layer the states that its projections read, [B, T, D].
    """
    x, planned = embed(params, config, tokens), plan(policy, cache.geometry)
    held, states = [], []
    for index, (layer, kept) in enumerate(zip(planned.layers, cache.layers, strict=True)):
        rope = config.scoring(index)

        logits = sink_logits_of(params["layers"][index], config)

        def attend(
            q: Queries, k: NewKeys, v: NewKeys, y: Hidden,
            layer=layer, kept=kept, rope=rope, logits=logits,
        ) -> tuple[Any, Queries]:  # fmt: skip
            chunk = Chunk(q, k, v, lengths, rope, False, sink_logits=logits)
            kept, out = layer.take(kept, chunk)
            return (kept, y), out

        x, (kept, y) = run_block(params["layers"][index], config, x, attend)
        held.append(kept)
        states.append(y)
    return planned.joined(held, cache.pool), tuple(states)
