# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Negative log-likelihood of a stream of tokens under a policy, on the device."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.cache.bytes import steps_taken
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.hosts import fetch
from jaxkv.core.shards import DATA
from jaxkv.core.typing import Lengths, Params, Token, Tokens
from jaxkv.eval.runner.result import cache_bytes
from jaxkv.generate.loop import Program, Signature, compile_program
from jaxkv.generate.recompute import Remembered
from jaxkv.generate.room import over_devices
from jaxkv.generate.running import advance, begun, forward, prepared, running
from jaxkv.generate.session import Session, Settings
from jaxkv.layers.base import Cache, Policy
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import geometry
from jaxkv.models.mesh import put, sharding
from jaxkv.policies.recompute import SlidingRecompute

Held = Cache | Remembered

CHUNK = 256  # tokens a call; its logits over a large vocabulary are what takes memory
STEPS = 64  # decode steps a call


@dataclasses.dataclass(frozen=True)
class Scores:
    """How a policy predicted a stream.

    Attributes:
      positions: int [n], which tokens of the stream were predicted, in order.
      nll: float32 [n], negative log-likelihood of each.
      cache: bytes: nominal, physical, peak.
      compile_s: seconds to compile the program.
      run_s: seconds to run it.
      steps: of `steps_taken`, where a policy counts them in decoding; else None.
    """

    positions: np.ndarray
    nll: np.ndarray
    cache: dict[str, int]
    compile_s: float
    run_s: float
    steps: dict[str, Any] | None = None


def score_chunk(
    params: Params,
    cache: Held,
    tokens: Tokens,
    targets: Tokens,
    lengths: Lengths,
    *,
    config: ModelConfig,
    policy: Policy,
) -> tuple[Held, Array]:
    """Takes tokens [B, T] in, and scores the token after each.

    The logits [B, T, V] stay on the device.

    Returns:
      The cache after the chunk, and the NLL of `targets`, [B, T], undefined where padded.
    """
    logits, cache = forward(params, config, policy, tokens, cache, lengths)
    return cache, _nll(logits, targets)


def score_last(
    params: Params,
    cache: Held,
    tokens: Tokens,
    target: Token,
    lengths: Lengths,
    *,
    config: ModelConfig,
    policy: Policy,
) -> tuple[Held, Array]:
    """As `score_chunk`, but only of the token after the last valid one: `target` [B, 1]."""
    logits, cache = advance(params, config, policy, tokens, cache, lengths)
    return cache, _nll(logits[:, None], target)


def score_steps(
    params: Params,
    cache: Held,
    tokens: Tokens,
    targets: Tokens,
    lengths: Lengths,
    *,
    config: ModelConfig,
    policy: Policy,
) -> tuple[Held, Array]:
    """As `score_chunk`, but every token is a decode step of its own."""
    valid = jnp.arange(tokens.shape[1], dtype=jnp.int32)[:, None] < lengths[None]

    def one(cache: Held, column: tuple[Array, Array, Array]) -> tuple[Held, Array]:
        token, target, active = column
        logits, cache = forward(params, config, policy, token[:, None], cache, active)
        return cache, _nll(logits, target[:, None])[:, 0]

    columns = tokens.T, targets.T, valid.astype(jnp.int32)
    cache, nll = jax.lax.scan(one, cache, columns)
    return cache, nll.T


def score_stream(
    model: Model,
    policy: Policy,
    stream: np.ndarray,
    max_length: int,
    kv_dtype: str | None = None,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Predicts every token of a stream but the first, from those before it.

    Args:
      model: the model.
      policy: one whose chunked prefill is token-exact.
      stream: int32 [S].
      max_length: where a policy whose cache grows with the stream stops.
      kv_dtype: of keys and values; None is that of the model.
      chunk: tokens a call.
      progress: called with (tokens done, all of them).
    """
    if bounded_tokens(model, policy) is None:
        stream = stream[: max(2, max_length)]
    chunk = chunk or CHUNK
    model, cache = _begun(model, policy, len(stream) - 1, kv_dtype)
    program = _program(score_chunk, model, policy, cache, chunk, chunk)
    cost = cache_bytes(policy, cache, program.peak_bytes)
    began = time.perf_counter()
    _, nll = _in_parts(program, model, cache, stream, chunk, progress)
    run_s = time.perf_counter() - began
    return Scores(np.arange(1, len(stream)), nll, cost, program.compile_s, run_s)


def score_decoded(
    model: Model,
    policy: Policy,
    stream: np.ndarray,
    prompt: int,
    max_length: int,
    kv_dtype: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Predicts what follows a prompt, token by token, as decoding does.

    Args:
      model: the model.
      policy: any that keeps keys; one that chooses after a prompt does so once.
      stream: int32 [S].
      prompt: how many first tokens are one prompt; they are not predicted.
      max_length: where a policy whose cache grows with the stream stops; above `prompt`.
      kv_dtype: of keys and values; None is that of the model.
      progress: called with (tokens done, all of them).
    """
    if bounded_tokens(model, policy) is None:
        stream = stream[:max_length]
    model = prepared(model, policy)
    model, cache = _begun(model, policy, len(stream), kv_dtype)
    ids = stream[None, :prompt], stream[None, prompt : prompt + 1]
    if running(policy, cache.geometry).repeats is not None:
        settings = Settings(
            policy=policy, max_new_tokens=len(stream) - prompt, max_length=len(stream),
            kv_dtype=kv_dtype,
        )  # fmt: skip
        session = Session.begin(model, settings, 1, prompt, decodes=False)
        began = time.perf_counter()
        session.feed(ids[0].tolist())
        cache, peak, compile_s = session.state.cache, session.peak_bytes, session.timing.compile_s
        nll = _nll(session.state.logits[:, None], jnp.asarray(ids[1]))
    else:
        whole = _program(score_last, model, policy, cache, prompt, 1)
        peak, compile_s = whole.peak_bytes, whole.compile_s
        began = time.perf_counter()
        given = (put(model.config, x, DATA) for x in (*ids, np.asarray([prompt], np.int32)))
        cache, nll = whole.call(model.params, cache, *given)
    steps = _program(score_steps, model, policy, cache, STEPS, STEPS)
    cost = cache_bytes(policy, cache, max(peak, steps.peak_bytes))
    began += steps.compile_s  # told apart
    cache, rest = _in_parts(steps, model, cache, stream[prompt:], STEPS, progress)
    run_s = time.perf_counter() - began
    positions = np.arange(prompt, len(stream))
    scores = np.concatenate([fetch(nll)[0], rest])
    compile_s = compile_s + steps.compile_s
    return Scores(positions, scores, cost, compile_s, run_s, steps_taken(cache.layers))


def score_sampled(
    model: Model,
    policy: SlidingRecompute,
    stream: np.ndarray,
    positions: np.ndarray,
    kv_dtype: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Predicts the tokens at some positions, each by one run over all that is recalled there.

    Args:
      model: the model.
      policy: one that re-computes.
      stream: int32 [S].
      positions: int [n], ascending, each above the window.
      kv_dtype: of keys and values within a run; None is that of the model.
      progress: called with (positions done, all of them).
    """
    span = policy.window + 1
    model, cache = _begun(model, policy, span, kv_dtype)
    program = _program(score_last, model, policy, cache, span, 1)
    cost = cache_bytes(policy, cache, program.peak_bytes)
    began, values = time.perf_counter(), []
    config, lengths = model.config, np.asarray([span], np.int32)
    for index, at in enumerate(positions):
        # As many tokens as the memory holds replace all that the last position left in it.
        cache, nll = program.call(
            model.params,
            cache,
            put(config, stream[None, at - span : at], DATA),
            put(config, stream[None, at : at + 1], DATA),
            put(config, lengths, DATA),
        )
        values.append(float(fetch(nll)[0, 0]))
        if progress:
            progress(index + 1, len(positions))
    run_s = time.perf_counter() - began
    return Scores(positions, np.asarray(values, np.float32), cost, program.compile_s, run_s)


def bounded_tokens(model: Model, policy: Policy) -> int | None:
    """The most tokens that any head keeps, or None if a head's cache grows with the stream."""
    planned = running(policy, geometry(model.config, 1, 1))
    return None if planned.grows else planned.most_kept


def _begun(
    model: Model, policy: Policy, max_length: int, kv_dtype: str | None
) -> tuple[Model, Held]:
    """An empty cache of one row, and the model as caches of the policy lie."""
    dtype = kv_dtype or str(model.params["embed"].dtype)
    grows = running(policy, geometry(model.config, 1, max_length)).grows
    model, length, rows = over_devices(model, policy, None, 1, max_length, not grows)
    if rows > 1:
        raise InputError(f"one stream is read, and --mesh has data={rows}; give model= alone")
    return model, begun(model.config, policy, geometry(model.config, 1, length, dtype))


def _program(
    function: Callable, model: Model, policy: Policy, cache: Held, tokens: int, targets: int
) -> Program:
    """Compiled for `tokens` tokens and `targets` targets a call; the cache is donated."""
    by_rows = sharding(model.config, DATA)
    shapes = [
        jax.ShapeDtypeStruct((1, *more), jnp.int32, sharding=by_rows)
        for more in ((tokens,), (targets,), ())
    ]
    signature = Signature.of((model.params, cache, *shapes))
    return compile_program(function, signature, (("config", model.config), ("policy", policy)))


def _in_parts(
    program: Program,
    model: Model,
    cache: Held,
    stream: np.ndarray,
    size: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[Held, np.ndarray]:
    """The cache after, and the NLL of every token of a stream but the first: float32 [S - 1].

    `size` of them are taken a call.
    """
    inputs, targets, parts = stream[:-1], stream[1:], [np.zeros(0, np.float32)]
    for begin in range(0, len(inputs), size):
        count = min(size, len(inputs) - begin)
        padding = (0, size - count)
        cache, nll = program.call(
            model.params,
            cache,
            put(model.config, np.pad(inputs[begin : begin + count], padding)[None], DATA),
            put(model.config, np.pad(targets[begin : begin + count], padding)[None], DATA),
            put(model.config, np.asarray([count], np.int32), DATA),
        )
        parts.append(fetch(nll)[0, :count])
        if progress:
            progress(begin + count, len(inputs))
    return cache, np.concatenate(parts)


def _nll(logits: Array, targets: Tokens) -> Array:
    """[B, T, V] and [B, T] -> [B, T]."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
