# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Text in, text out: `generate`."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

from jaxkv.checkpoints.model import Model
from jaxkv.generate.prompts import Conversation, Prompts, batch_ids
from jaxkv.generate.sampling import make_sampler
from jaxkv.generate.session import Session, Settings
from jaxkv.generate.state import State
from jaxkv.layers.base import Policy
from jaxkv.policies.full import Full
from jaxkv.text.stops import Row


@dataclasses.dataclass(frozen=True)
class Generation:
    """What came out.

    Attributes:
      texts: one a prompt; empty where the model has no tokenizer.
      token_ids: the ids behind each text, its end-of-sequence token included.
      finish_reasons: "stop" or "length" for each.
      prompt_tokens: how many tokens each prompt has.
      stats: the report: policy, timing, cache, compilations.
      state: caches and logits after the last token.
    """

    texts: list[str]
    token_ids: list[list[int]]
    finish_reasons: list[str]
    prompt_tokens: list[int]
    stats: dict[str, Any]
    state: State

    def __repr__(self) -> str:
        policy, speed = self.stats["policy"]["name"], self.stats["timing"]["tokens_per_s"]
        lines = [f"<Generation under {policy}, {speed:.1f} tokens/s>"]
        for text, ids, reason in zip(self.texts, self.token_ids, self.finish_reasons, strict=True):
            lines.append(f"  {len(ids)} tokens, {reason}: {reprlib.repr(text)}")
        most = 8
        return "\n".join(lines[: most + 1] + ["  ..."] * (len(lines) > most + 1))


def generate(
    model: Model,
    prompts: Prompts = (),
    *,
    messages: Conversation | Sequence[Conversation] | None = None,
    system: str | None = None,
    policy: Policy | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    chat: bool | None = None,
    answer_prefix: str = "",
    prefill_chunk: int | None = None,
    max_length: int | None = None,
    kv_dtype: str | None = None,
    cache_layout: str | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> Generation:
    """Answers prompts, as one ragged batch.

    A row's result is what it would be alone; when sampling, row i draws with `seed + i`.

    Args:
      model: from `jaxkv.load` or `jaxkv.Model.from_params`.
      prompts: a text, or the token ids of one prompt, or several of either: ids are whole numbers
        in lists or arrays, [T] or [B, T], and nothing is put before or after them.
      messages: in place of prompts, a conversation in the model's chat template, mappings with
        `role` and `content`; or several conversations.
      system: a message before each prompt, of how to answer.
      policy: what the cache keeps; None keeps everything.
      max_new_tokens: for each prompt, its end-of-sequence token included.
      temperature: 0 is greedy.
      top_k: draw from this many of the likeliest tokens.
      top_p: draw from the smallest set of likeliest tokens that reaches this probability.
      seed: of the draws.
      stop: texts that end an answer; they are not part of it.
      chat: within the model's chat template; None if it has one.
      answer_prefix: start of every answer, given to the model.
      prefill_chunk: tokens per prefill call; None chooses by the longest prompt.
      max_length: capacity of a full cache in tokens; None is what the prompts need.
      kv_dtype: of keys and values; None is that of the model.
      cache_layout: of a model on a mesh, whether the devices that share its weights each have KV
        heads of a cache ("heads"), rows ("rows"), or slots of what is kept whole ("slots"); None
        is what suits the policy.
      on_text: called with (row, new text) as it is made.

    Raises:
      InputError: a prompt is empty, or longer than a full cache may hold; an id is none of the
        model's; a message has no role or no content; a setting is out of range.
    """
    settings = Settings(
        policy=Full() if policy is None else policy,
        sampler=make_sampler(temperature, top_k, top_p),
        max_new_tokens=max_new_tokens,
        seed=seed,
        stop=tuple(stop),
        prefill_chunk=prefill_chunk,
        max_length=max_length,
        kv_dtype=kv_dtype,
        cache_layout=cache_layout,
    )
    if settings.stop:
        model.tokenizer.require()
    how: dict[str, Any] = {"chat": chat, "answer_prefix": answer_prefix, "system": system}
    ids = batch_ids(model, prompts, messages, **how)
    session = Session.begin(model, settings, len(ids), max(map(len, ids)))
    session.feed(ids)
    return answer(session, [len(row) for row in ids], on_text)


def answer(
    session: Session,
    prompt_tokens: list[int],
    on_text: Callable[[int, str], None] | None = None,
) -> Generation:
    """Runs a fed session to its end."""
    settings, tokenizer = session.settings, session.model.tokenizer
    rows = [Row(tokenizer, settings.stop) for _ in prompt_tokens]
    for row, closed in zip(rows, session.closed, strict=True):
        row.ended = bool(closed)  # a kept answer that had come to its end

    def emit(index: int, text: str) -> None:
        if on_text and text:
            on_text(index, text)

    for ids in session.run(settings.max_new_tokens):
        for index, row in enumerate(rows):
            if not row.ended:
                emit(index, row.feed(int(i) for i in ids[index] if i >= 0))
                if row.stopped:
                    session.end_row(index)
        if all(row.ended for row in rows):
            break
    for index, row in enumerate(rows):
        emit(index, row.finish())
    return Generation(
        texts=[row.text for row in rows],
        token_ids=[row.ids for row in rows],
        finish_reasons=["stop" if row.ended else "length" for row in rows],
        prompt_tokens=prompt_tokens,
        stats=session.stats(sum(len(row.ids) for row in rows)),
        state=session.state,
    )
