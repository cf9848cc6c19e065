# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What KVzap's networks learn from: states of a model's prompts, and KVzip+'s scores of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxkv.calibrate.states import capacity, read
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.generate.prompts import prompt_ids
from jaxkv.generate.replay import repeat
from jaxkv.layers.replayed import Replay
from jaxkv.models.decoder import geometry
from jaxkv.text.repeat import before_text, parts

LEAST = 1e-10  # of a score: what is less is worth nothing, and its logarithm would outweigh all
_LETTERS = 20  # of a token, at most


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
    wide = capacity(prompts)
    config, ruled = model.config, tuple(geometry(model.config, 1, wide).ruled)
    size = len(ruled), len(prompts), samples
    x = np.zeros((*size, config.hidden_size), np.float32)
    y = np.zeros((*size, config.num_kv_heads), np.float32)
    for index, (prompt, begin) in enumerate(zip(prompts, first, strict=True)):
        progress("kvzap: passages", index, len(prompts))
        picked = begin + np.sort(rng.choice(len(prompt) - begin, samples, replace=False))
        cache, states = read(model, prompt, wide, picked)
        scores, _ = repeat(model, cache, [prompt], Replay(outputs=True))
        for row, layer in enumerate(ruled):
            mine = scores[layer]
            assert mine is not None
            worth = np.asarray(mine)[0][:, picked].T
            x[row, index], y[row, index] = states[row], np.log(np.maximum(worth, LEAST))
    progress("kvzap: passages", len(prompts), len(prompts))
    return Pairs(ruled, x, y)
