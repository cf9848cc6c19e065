# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What KVzap's networks learn from: states of a model's prompts, and KVzip+'s scores of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.core.typing import Hidden, Lengths, NewKeys, Params, Queries, Tokens
from jaxkv.generate.loop import Signature, kept_program
from jaxkv.generate.prompts import prompt_ids
from jaxkv.generate.replay import repeat
from jaxkv.layers.base import Cache, Chunk
from jaxkv.layers.replayed import Replay
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import embed, geometry, init_cache, run_block
from jaxkv.models.plan import plan
from jaxkv.policies.full import Full
from jaxkv.text.repeat import before_text, parts

CHUNK = 256  # tokens of a prompt a call
LEAST = 1e-10  # of a score: what is less is worth nothing, and its logarithm would outweigh all
_LETTERS = 20  # of a token, at most
_ROUND = 64  # a prompt's capacity is a multiple


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What is learned from, and judged by.

    Attributes:
      layers: that see everything, and have scores.
      x: states, float32 [L, P, n, D], of P passages and n tokens of each.
      y: logarithms of what they are worth, float32 [L, P, n, K].
    """

    layers: tuple[int, ...]
    x: np.ndarray
    y: np.ndarray

    def part(self, held: Sequence[bool], which: bool) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of the passages for which `held` is `which`: [L, m, D] and [L, m, K]."""
        chosen = np.flatnonzero(np.asarray(held) == which)
        x, y = self.x[:, chosen], self.y[:, chosen]
        return x.reshape(len(x), -1, x.shape[-1]), y.reshape(len(y), -1, y.shape[-1])


def passages(model: Model, text: str, size: int, count: int) -> list[list[int]]:
    """Prompts, each a passage as a user would give it, evenly from a text.

    Args:
      model: whose tokenizer and chat template.
      text: of `--text`.
      size: tokens of a passage.
      count: how many.

    Raises:
      InputError: the text is too short, or a passage too long for the model.
    """
    tokenizer, prompts = model.tokenizer, []
    for index in range(count):
        begin, end = (i * len(text) // count for i in (index, index + 1))
        # To encode a whole library would take minutes.
        words = text[begin : min(end, begin + _LETTERS * size)]
        ids = tokenizer.encode(words)
        if len(ids) < size:
            raise InputError(
                f"--text is too short: 1 of {count} parts of it has {len(ids)} tokens; --tokens is "
                f"{size} and --passages is {count}"
            )
        # A character may end in the token after.
        passage = tokenizer.decode(ids[:size]).strip("\ufffd")
        prompts.append(prompt_ids(model, passage))
        model.check_ids(prompts[-1], "a passage's")
    again = [
        len(prompt) + len(part.ids)
        for prompt in prompts
        for part in parts(tokenizer, prompt, before_text(tokenizer, prompt), Replay().part)
    ]
    if max(again) > model.config.max_positions:
        raise InputError(
            f"--tokens is {size}, which takes {max(again)} tokens to read and to repeat; the model "
            f"was trained for {model.config.max_positions}"
        )
    return prompts


def read_states(
    params: Params, cache: Cache, tokens: Tokens, lengths: Lengths, *, config: ModelConfig
) -> tuple[Cache, tuple[Array, ...]]:
    """Some tokens of a prompt, to be compiled; the cache, made under `Full`, is donated.

    Returns:
      The cache, and of each layer the states that its projections read, [B, T, D].
    """
    x, planned = embed(params, config, tokens), plan(Full(), cache.geometry)
    held, states = [], []
    for index, (layer, kept) in enumerate(zip(planned.layers, cache.layers, strict=True)):
        rope = config.scoring(index)

        def attend(
            q: Queries, k: NewKeys, v: NewKeys, y: Hidden, layer=layer, kept=kept, rope=rope
        ) -> tuple[Any, Queries]:
            kept, out = layer.take(kept, Chunk(q, k, v, lengths, rope, False))
            return (kept, y), out

        x, (kept, y) = run_block(params["layers"][index], config, x, attend)
        held.append(kept)
        states.append(y)
    return planned.joined(held, cache.pool), tuple(states)


def gather(
    model: Model, prompts: Sequence[Sequence[int]], samples: int, seed: int, progress: Progress
) -> Pairs:
    """Reads the prompts one by one, has them repeated, and keeps some tokens of each.

    Args:
      model: any.
      prompts: token ids.
      samples: tokens of each, at most; drawn from those of the user's turn.
      seed: of the draw.
      progress: told of tokens.
    """
    rng = np.random.default_rng(seed)
    first = [before_text(model.tokenizer, prompt) for prompt in prompts]
    samples = min(samples, *(len(p) - begin for p, begin in zip(prompts, first, strict=True)))
    wide = -(-max(map(len, prompts)) // _ROUND) * _ROUND
    config, shape = model.config, geometry(model.config, 1, wide)
    ruled = tuple(shape.ruled)
    size = len(ruled), len(prompts), samples
    x = np.zeros((*size, config.hidden_size), np.float32)
    y = np.zeros((*size, config.num_kv_heads), np.float32)
    for index, (prompt, begin) in enumerate(zip(prompts, first, strict=True)):
        progress("kvzap: passages", index, len(prompts))
        picked = begin + np.sort(rng.choice(len(prompt) - begin, samples, replace=False))
        cache, states = _read(model, prompt, wide, ruled, picked)
        scores, _ = repeat(model, cache, [prompt], Replay(outputs=True))
        for row, layer in enumerate(ruled):
            mine = scores[layer]
            assert mine is not None
            worth = np.asarray(mine)[0][:, picked].T
            x[row, index], y[row, index] = states[row], np.log(np.maximum(worth, LEAST))
    progress("kvzap: passages", len(prompts), len(prompts))
    return Pairs(ruled, x, y)


def _read(
    model: Model, prompt: Sequence[int], wide: int, ruled: Sequence[int], picked: np.ndarray
) -> tuple[Cache, np.ndarray]:
    """A full cache that has read a prompt, and the states [L, n, D] of the picked tokens."""
    dtype = str(model.params["embed"].dtype)
    cache = init_cache(model.config, Full(), 1, wide, dtype)
    found = np.zeros((len(ruled), len(picked), model.config.hidden_size), np.float32)
    for begin in range(0, len(prompt), CHUNK):
        ids = prompt[begin : begin + CHUNK]
        tokens = np.zeros((1, CHUNK), np.int32)
        tokens[0, : len(ids)] = ids
        args = model.params, cache, jnp.asarray(tokens), jnp.asarray([len(ids)], jnp.int32)
        program = kept_program(read_states, Signature.of(args), (("config", model.config),))
        cache, states = program.call(*args)
        here = (picked >= begin) & (picked < begin + CHUNK)
        for row, layer in enumerate(ruled):
            found[row, here] = np.asarray(states[layer], np.float32)[0, picked[here] - begin]
    return cache, found
