# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How likely continuations are after their contexts, in ragged batches, under any policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.checkpoints.model import Model
from jaxkv.core.hosts import fetch
from jaxkv.core.shards import DATA
from jaxkv.core.typing import Lengths, Params, Tokens
from jaxkv.generate.loop import Signature, kept_program
from jaxkv.generate.running import forward
from jaxkv.generate.session import Session, Settings
from jaxkv.generate.state import State
from jaxkv.layers.base import Policy
from jaxkv.layers.declared import as_compiled
from jaxkv.models.config import ModelConfig
from jaxkv.models.mesh import put

STEPS = 16  # tokens of a continuation a call


@dataclasses.dataclass(frozen=True)
class Continuation:
    """Attributes:
    log_likelihood: natural log of its probability.
    greedy: whether each of its tokens is the likeliest.
    """

    log_likelihood: float
    greedy: bool


def force(
    params: Params,
    state: State,
    targets: Tokens,
    lengths: Lengths,
    *,
    config: ModelConfig,
    policy: Policy,
) -> tuple[State, tuple[Array, Array]]:
    """Takes given tokens as if they had been chosen.

    Args:
      params: the model's.
      state: the streams; the second argument, which is donated.
      targets: int32 [B, T].
      lengths: int32 [B], how many of them count.
      config: static.
      policy: static.

    Returns:
      The state; the sum of their log-probabilities, float32 [B], and whether each was the
      likeliest, bool [B].
    """

    def one(carry, column):
        state, total, greedy = carry
        token, valid = column
        chosen = jnp.take_along_axis(state.logits, token[:, None], axis=-1)[:, 0]
        score = chosen - jax.nn.logsumexp(state.logits, axis=-1)
        best = jnp.argmax(state.logits, axis=-1).astype(token.dtype) == token
        active = valid.astype(jnp.int32)
        logits, cache = forward(params, config, policy, token[:, None], state.cache, active)
        logits = jnp.where(valid[:, None], logits[:, 0], state.logits)
        state = dataclasses.replace(state, cache=cache, logits=logits)
        total = total + jnp.where(valid, score, 0.0)
        return (state, total, greedy & (best | jnp.logical_not(valid))), None

    batch, count = targets.shape
    valid = jnp.arange(count, dtype=jnp.int32)[:, None] < lengths[None]
    start = state, jnp.zeros((batch,), jnp.float32), jnp.ones((batch,), bool)
    (state, total, greedy), _ = jax.lax.scan(one, start, (targets.T, valid))
    return state, (total, greedy)


def continuations(
    model: Model,
    policy: Policy,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    kv_dtype: str | None = None,
) -> list[Continuation]:
    """Scores continuations. A context is a prompt, a continuation is decoded token by token.

    So a policy that chooses after the prompt chooses once, when it has seen all of the context. The
    result does not depend on what else is in a batch.

    Args:
      model: the model.
      policy: what the cache keeps.
      pairs: token ids of a context, at least one, and of its continuation.
      batch_size: pairs at once.
      progress: called with (pairs done, all of them).
      kv_dtype: of keys and values; None is that of the model.

    Returns:
      One for each pair.
    """
    # Rows of like length share a batch, the longest first: what does not fit shows at once.
    order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][0]), -len(pairs[i][1])))
    found: dict[int, Continuation] = {}
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        rows = [pairs[i] for i in chosen]
        rows += [rows[-1]] * (batch_size - len(rows))  # one program for the last batch too
        for i, one in zip(chosen, _score(model, policy, rows, kv_dtype), strict=False):
            found[i] = one
        if progress:
            progress(len(found), len(pairs))
    return [found[i] for i in range(len(pairs))]


def _score(
    model: Model,
    policy: Policy,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    kv_dtype: str | None,
) -> list[Continuation]:
    longest = max(len(continuation) for _, continuation in rows)
    settings = Settings(policy=policy, max_new_tokens=longest, kv_dtype=kv_dtype)
    contexts = [list(context) for context, _ in rows]
    for _, continuation in rows:
        model.check_ids(continuation, "a continuation's")
    session = Session.begin(model, settings, len(rows), max(map(len, contexts)), decodes=False)
    session.feed(contexts)
    held = session.state.done.shape[0]  # over a mesh, some more than were asked for
    targets = np.zeros((held, -(-longest // STEPS) * STEPS), np.int32)
    lengths = np.zeros((held,), np.int64)
    for row, (_, continuation) in enumerate(rows):
        targets[row, : len(continuation)] = continuation
        lengths[row] = len(continuation)
    config, state = session.model.config, session.state
    total, greedy = np.zeros(held), np.ones(held, bool)
    for begin in range(0, targets.shape[1], STEPS):
        part = put(config, targets[:, begin : begin + STEPS], DATA)
        left = put(config, np.clip(lengths - begin, 0, STEPS).astype(np.int32), DATA)
        signature = Signature.of((session.model.params, state, part, left))
        statics = (("config", config), ("policy", as_compiled(policy)))
        program = kept_program(force, signature, statics)
        state, (score, best) = program.call(session.model.params, state, part, left)
        total += fetch(score).astype(np.float64)
        greedy &= fetch(best)
    pairs = zip(total[: len(rows)], greedy[: len(rows)], strict=True)
    return [Continuation(float(t), bool(g)) for t, g in pairs]
