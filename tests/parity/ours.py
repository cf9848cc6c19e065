# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Our side of every comparison."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv import Full, Model, forward, init_cache
from jaxkv.generate.session import Session, Settings
from jaxkv.models.block import norm
from jaxkv.models.decoder import embed, geometry, run_layer
from jaxkv.models.plan import plan


def logits_of(model: Model, tokens) -> np.ndarray:
    """[B, T] -> [B, T, V] in one prefill under the full cache."""
    config, policy = model.config, Full()
    dtype = str(model.params["embed"].dtype)
    cache = init_cache(config, policy, tokens.shape[0], tokens.shape[1], dtype)
    run = jax.jit(functools.partial(forward, config=config, policy=policy))
    return np.asarray(run(model.params, tokens=tokens, cache=cache)[0], np.float32)


def hidden_states(model: Model, tokens) -> list[np.ndarray]:
    """[B, T] -> the embeddings, and the residual stream after every layer; the last one normed."""
    config, params = model.config, model.params
    shapes = geometry(config, *tokens.shape)
    x = embed(params, config, tokens)
    states = [x]
    for index, layer in enumerate(params["layers"]):
        policy = plan(Full(), shapes).layers[index]
        x, _ = run_layer(
            layer, config, policy, config.scoring(index), x, policy.init(), lengths=None
        )
        states.append(x)
    states[-1] = norm(x, params, "final_norm", config)
    return [np.asarray(x, np.float32) for x in states]


def greedy_tokens(model: Model, rows: list[list[int]], count: int) -> list[list[int]]:
    """The next `count` greedy tokens of each row, as one ragged batch that no token ends."""
    settings = Settings(max_new_tokens=count)
    session = Session.begin(model, settings, len(rows), max(map(len, rows)))
    session.eos = jnp.asarray([-2], jnp.int32)
    session.feed(rows)
    return np.concatenate(list(session.run(count)), axis=1).tolist()
