# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Heads by the attention that a question and its answer pay to the sentence that they are about."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxkv.attention import attend_one_mass
from jaxkv.calibrate.haystacks import Haystack
from jaxkv.calibrate.needles import Span, around, straw_of
from jaxkv.calibrate.onepass import of_kv_heads, one_pass, ranked
from jaxkv.calibrate.wordings import Wording, draw_key
from jaxkv.checkpoints.model import Model
from jaxkv.core.progress import Progress
from jaxkv.layers.base import Chunk
from jaxkv.text.tokenizer import Tokenizer

_DEPTHS = (0.1, 0.8)  # the question must be farther from the key than a window reaches


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt with its answer.

    Attributes:
      ids: of all, up to the last token of the key that is said.
      told: tokens of the sentence that tells the key.
      asked: from the question's first token to the last but one before the key.
      said: tokens that say the key: from the one before its first to its last but one.
    """

    ids: tuple[int, ...]
    told: Span
    asked: Span
    said: Span


def make_prompts(
    tokenizer: Tokenizer,
    wordings: Sequence[Wording],
    haystacks: Sequence[Haystack],
    count: int,
    lengths: tuple[int, int],
    words: int,
    number_share: float,
    seed: int,
) -> tuple[Prompt, ...]:
    """Prompts that hide one key each: all pairs of a wording and a haystack, as far as they go.

    Args:
      tokenizer: the model's; with its chat template, if there is one.
      wordings: in turn.
      haystacks: in turn, another at each turn of the wordings.
      count: how many.
      lengths: tokens of haystack, from and to; drawn, as are depths, owners and keys.
      words: of a key.
      number_share: of keys that are numbers.
      seed: of all that is drawn.
    """
    made = []
    for index in range(count):
        draws = np.random.default_rng([seed, index])
        turn, which = divmod(index, len(wordings))
        hay = haystacks[(turn + which) % len(haystacks)]
        length = int(draws.integers(lengths[0], lengths[1] + 1))
        straw, ends = straw_of(tokenizer, hay, int(draws.integers(len(hay))), length)
        at = int(np.searchsorted(ends, draws.uniform(*_DEPTHS) * ends[-1]))
        who, key = draws.choice(wordings[which].owners), draw_key(draws, words, number_share)
        made.append(_prompt(tokenizer, wordings[which], str(who), key, straw, at))
    return tuple(made)


def _prompt(
    tokenizer: Tokenizer, wording: Wording, who: str, key: str, straw: Sequence[str], at: int
) -> Prompt:
    """The key's sentence before sentence `at` of the straw.

    Every piece is turned into tokens by itself, so where each begins and ends is known.
    """
    chat = tokenizer.chat_template is not None
    before, after = around(tokenizer, chat)
    question, opening = wording.asked(who)
    told = wording.sentence(who, key)
    texts = [*(f" {x}" for x in straw[:at]), told, *(f" {x}" for x in straw[at:])]
    pieces = [before, *map(tokenizer.encode, texts), tokenizer.encode(f"\n\n{question}"), after]
    pieces += [tokenizer.encode(opening if chat else f" {opening}"), tokenizer.encode(f" {key}")]
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    first = ends[-2] - 1  # says the first token of the key
    return Prompt(
        ids=tuple(i for piece in pieces for i in piece),
        told=(ends[at], ends[at + 1]),
        asked=(ends[len(texts)], first),
        said=(first, ends[-1] - 1),
    )


def to_the_told(chunk: Chunk, spans: Array) -> Array:
    """Attention to the sentence: float32 [2, N], mean over what asks and over what says.

    Args:
      chunk: the whole of a prompt.
      spans: int32 [3, 2]: of a `Prompt`, told, asked and said.
    """
    assert chunk.lengths is not None
    at = jnp.arange(chunk.count, dtype=jnp.int32)[None]
    q, k = chunk.rotated(at)
    keys, where = k.swapaxes(1, 2), jnp.where(at < chunk.lengths[:, None], at, -1)[:, None]
    told = (at >= spans[0, 0]) & (at < spans[0, 1])

    def one(step: Array, total: Array) -> Array:
        mine = lax.dynamic_slice_in_dim(q, step, 1, axis=1)
        _, mass = attend_one_mass(
            mine, keys, keys, step[None, None], where, chunk.rope, chunk.sink_logits
        )
        row = (step >= spans[2, 0]).astype(jnp.int32)
        return total.at[row].add(jnp.sum(jnp.where(told, mass[0], 0.0), axis=-1))

    total = jnp.zeros((2, q.shape[2]), jnp.float32)
    total = lax.fori_loop(spans[1, 0], spans[2, 1], one, total)
    return total / (spans[1:, 1] - spans[1:, 0]).astype(jnp.float32)[:, None]


def attended(model: Model, prompts: Sequence[Prompt], progress: Progress) -> np.ndarray:
    """How high a head ranks by attention to the sentence: of what asks, or of what says the key.

    Those that say it find the heads that copy. What these copy, others have found before: heads
    by which the question's words find the words that it has in common with the sentence. The two
    are of different sizes and each is needed, so heads are ranked by each, and the better counts.

    Args:
      model: the model.
      prompts: from `make_prompts`.
      progress: called after every prompt.

    Returns:
      float64 [L, K]: the share of heads that rank no higher. Attention is a mean over queries,
      prompts and a KV head's query heads.
    """
    config = model.config
    total = np.zeros((config.num_layers, 2, config.num_heads))
    for done, prompt in enumerate(prompts, 1):
        spans = np.asarray([prompt.told, prompt.asked, prompt.said], np.int32)
        total += one_pass(model, prompt.ids, to_the_told, spans)
        progress("attention to what is told", done, len(prompts))
    asks, says = (of_kv_heads(total[:, i], config.num_kv_heads) for i in (0, 1))
    return np.maximum(ranked(asks), ranked(says))
