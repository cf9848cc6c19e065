# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Our side of every comparison."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv import Full, Model, forward, init_cache
from jaxkv.generate.api import Session, Settings


def logits_of(model: Model, tokens) -> np.ndarray:
    """[B, T] -> [B, T, V] in one prefill under the full cache."""
    config, policy = model.config, Full()
    dtype = str(model.params["embed"].dtype)
    cache = init_cache(config, policy, tokens.shape[0], tokens.shape[1], dtype)
    run = jax.jit(functools.partial(forward, config=config, policy=policy))
    return np.asarray(run(model.params, tokens=tokens, cache=cache)[0], np.float32)


def greedy_tokens(model: Model, rows: list[list[int]], count: int) -> list[list[int]]:
    """The next `count` greedy tokens of each row, as one ragged batch that no token ends."""
    settings = Settings(max_new_tokens=count)
    session = Session.begin(model, settings, len(rows), max(map(len, rows)))
    session.eos = jnp.asarray([-2], jnp.int32)
    session.feed(rows)
    return np.concatenate(list(session.run(count)), axis=1).tolist()
