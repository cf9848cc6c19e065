# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Heads by what they look at while the model repeats a text: KVzip's scores of heads.

After arXiv 2505.23416, section 4 ("context-independent eviction"), and its code: a head's score is
the largest attention that any token of a text gets while the text is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxkv.calibrate.needles import around
from jaxkv.calibrate.states import capacity, read
from jaxkv.checkpoints.model import Model
from jaxkv.core.progress import Progress
from jaxkv.generate.replay import repeat
from jaxkv.layers.replayed import Replay
from jaxkv.text.tokenizer import Tokenizer


def asked_about(tokenizer: Tokenizer, text: Sequence[int]) -> list[int]:
    """The ids of a prompt that is a text, in the chat template if there is one."""
    before, after = around(tokenizer, chat=tokenizer.chat_template is not None)
    return [*before, *text, *after]


def replay(
    model: Model, texts: Sequence[Sequence[int]], sinks: int, recent: int, progress: Progress
) -> np.ndarray:
    """Scores of all heads, mean over the texts: float64 [L, K].

    Attention that a streaming head gives too, to sinks and to recent tokens, does not count: the
    last `recent` tokens are near the first that repeats them.

    Args:
      model: the model.
      texts: ids of each.
      sinks, recent: of a streaming head.
      progress: called after every text.
    """
    config = model.config
    prompts = [asked_about(model.tokenizer, text) for text in texts]
    total, slots = np.zeros((config.num_layers, config.num_kv_heads)), capacity(prompts)
    for done, prompt in enumerate(prompts, 1):
        cache, _ = read(model, prompt, slots)
        scores, _ = repeat(model, cache, [prompt], Replay(part=slots))
        for layer, mine in enumerate(scores):
            if mine is not None:
                worth = np.asarray(mine, np.float64)[0, :, sinks : max(len(prompt) - recent, sinks)]
                worth = np.where(np.isinf(worth), 0, worth)  # what stands before the text
                total[layer] += worth.max(axis=-1, initial=0)
        progress("replays", done, len(texts))
    return total / len(texts)
