# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Lets a model repeat the prompts that a full cache holds, and scores what it looks at."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxkv.cache.geometry import part_of
from jaxkv.cache.slab import Slab
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.hosts import fetch
from jaxkv.core.shards import DATA, MODEL
from jaxkv.core.typing import Hidden, Lengths, NewKeys, Params, Queries, Rotation, Tokens
from jaxkv.generate.loop import Program, Signature, kept_program
from jaxkv.layers.base import Cache, Chunk, LayerCache, LayerPolicy
from jaxkv.layers.draft import Read
from jaxkv.layers.replayed import Part, Replay, replay
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import constants_of, embed, run_block, sink_logits_of
from jaxkv.models.mesh import Meshed, put
from jaxkv.models.plan import plan
from jaxkv.policies.full import Full
from jaxkv.text.repeat import before_text, parts

_EVEN = 64  # tokens of a repetition are padded to a multiple, so that prompts share a program
_SINKS = 4  # first tokens that are of every softmax, as in the authors' code

Scores = tuple[Array | None, ...]  # float32 [B, K, S] of each layer; None of one with a window


def repeat(
    model: Model,
    cache: Cache,
    prompts: Sequence[Sequence[int]],
    how: Replay,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Scores, Program | None]:
    """The scores of all that a full cache holds; it is looked at, and stays as it is.

    Args:
      model: whose cache it is.
      cache: made under `Full`.
      prompts: the token ids that it has read, of each row.
      how: how they are repeated.
      progress: called with (tokens of the longest prompt done, all of them).

    Returns:
      float32 [B, K, S] of each layer, infinite for tokens that stand before the user's text; and
      the program that made them, if there was anything to repeat.

    Raises:
      InputError: the prompts are not what the cache holds.
    """
    _check(cache, prompts)
    tokenizer, rows = model.tokenizer, len(prompts)
    prefix = [before_text(tokenizer, prompt) for prompt in prompts]
    asked = [
        parts(tokenizer, prompt, begin, how.part)
        for prompt, begin in zip(prompts, prefix, strict=True)
    ]
    slots = cache.geometry.max_length
    before = np.arange(slots)[None] < np.asarray(prefix)[:, None]
    start = np.where(before, np.inf, 0.0)[:, None].astype(np.float32)
    shape = rows, cache.geometry.num_kv_heads, slots
    config = model.config
    lie = _score_axes(config)
    scores: Scores = tuple(
        put(config, np.broadcast_to(start, shape), *lie) if slab is not None else None
        for slab in slabs_of(cache)
    )
    rounds = max(map(len, asked))
    if not rounds:
        return scores, None
    longest = max(len(part.ids) for row in asked for part in row)
    wide = -(-longest // _EVEN) * _EVEN
    sinks = np.minimum(np.maximum(prefix, _SINKS), [len(prompt) for prompt in prompts])
    program = None
    for index in range(rounds):
        tokens = np.zeros((rows, wide), np.int32)
        numbers = np.zeros((3, rows), np.int32)  # of tokens, begin and count of the part
        for row, mine in enumerate(asked):
            if index < len(mine):
                tokens[row, : len(mine[index].ids)] = mine[index].ids
                numbers[:, row] = len(mine[index].ids), mine[index].begin, mine[index].count
        lengths, begin, count = (put(config, x, DATA) for x in numbers)
        first = put(config, sinks.astype(np.int32), DATA)
        some = Part(begin, count, first, -(-int(sinks.max()) // 8) * 8, min(how.part, slots))
        args = model.params, scores, cache, put(config, tokens, DATA), lengths, some
        if program is None:
            statics = (("config", model.config), ("outputs", how.outputs))
            program = kept_program(repeat_part, Signature.of(args), statics)
        scores, _ = program.call(*args)
        if progress:
            jax.block_until_ready(scores)
            done = max(part.begin + part.count for row in asked for part in row[: index + 1])
            progress(done, max(map(len, prompts)))
    return scores, program


def repeat_part(
    params: Params, scores: Scores, cache: Cache, tokens: Tokens, lengths: Lengths, part: Part,
    *, config: ModelConfig, outputs: bool,
) -> tuple[Scores, None]:  # fmt: skip
    """One part of each row, to be compiled; the scores are donated."""
    x, found, shards = embed(params, config, tokens), [], config.shards
    layers, slabs = plan(Full(), part_of(cache.geometry, shards)).layers, slabs_of(cache)
    for index, (weights, layer, kept) in enumerate(
        zip(params["layers"], layers, cache.layers, strict=True)
    ):
        rope, slab, mine = config.scoring(index), slabs[index], scores[index]
        if slab is None or mine is None:
            x = _through(weights, config, layer, rope, x, kept, lengths)
            found.append(None)
        else:
            mine, x = _scored(weights, config, rope, outputs, x, slab, mine, lengths, part)
            found.append(mine)
    return tuple(found), None


def _score_axes(config: ModelConfig) -> tuple[Any, ...]:
    """How the scores of a layer, [B, K, S], lie over a mesh: as its keys do."""
    if not isinstance(config, Meshed) or config.lies.model == 1:
        return (DATA,)
    return ((DATA, MODEL),) if config.lies.by_rows else (DATA, MODEL)


def slabs_of(cache: Cache) -> tuple[Slab | None, ...]:
    """What each layer holds that sees everything; None of one with a window of its own."""
    found: list[Slab | None] = [None] * len(cache.layers)
    for index in cache.geometry.ruled:
        layer = cache.layers[index]
        slab = layer.slab if isinstance(layer, Read) else layer
        if isinstance(slab, Slab) and slab.pos.shape[1] == 1:
            found[index] = slab
    return tuple(found)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _scored(
    weights: Params, config: ModelConfig, rope: Rotation | None, outputs: bool, x: Hidden,
    kept: Slab, scores: Array, lengths: Lengths, part: Part,
) -> tuple[Array, Hidden]:  # fmt: skip
    constants = constants_of(weights, config) if outputs else None
    own, mine = config.shards.own_rows((lengths, part))

    def attend(q: Queries, k: NewKeys, v: NewKeys, y: Hidden) -> tuple[Array, Queries]:
        chunk = Chunk(q, k, v, own, rope, False, y, constants, sink_logits_of(weights, config))
        return replay(kept, scores, chunk, mine, outputs)

    x, found = run_block(weights, config, x, attend)
    return found, x


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _through(
    weights: Params, config: ModelConfig, layer: LayerPolicy, rope: Rotation | None, x: Hidden,
    kept: LayerCache, lengths: Lengths,
) -> Hidden:  # fmt: skip
    """A layer with a window of its own; what it would keep of the repetition is thrown away."""
    own = config.shards.own_rows(lengths)

    def attend(q: Queries, k: NewKeys, v: NewKeys, y: Hidden) -> tuple[None, Queries]:
        del y
        chunk = Chunk(q, k, v, own, rope, False, sink_logits=sink_logits_of(weights, config))
        return None, layer.take(kept, chunk)[1]

    return run_block(weights, config, x, attend)[0]


def _check(cache: Cache, prompts: Sequence[Sequence[int]]) -> None:
    slabs = [slab for slab in slabs_of(cache) if slab is not None]
    if not slabs:
        raise InputError("the cache holds no layer that sees everything; there is nothing to score")
    seen = fetch(slabs[0].seen)
    counts = [len(prompt) for prompt in prompts]
    if counts != seen.tolist():
        raise InputError(
            f"the prompts have {counts} tokens, and the cache has read {seen.tolist()}; give the "
            "ids of all that it has read"
        )
