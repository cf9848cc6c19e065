# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A further turn of a conversation whose earlier turns are only in the cache."""

from __future__ import annotations

from jaxkv.convert.tokenizer import Tokenizer
from jaxkv.errors import InputError

_ANSWER = "jaxkv-earlier-answer"


def next_turn(
    tokenizer: Tokenizer, prompt: str, *, chat: bool, ended: bool, answer_prefix: str = ""
) -> list[int]:
    """Token ids that follow the last answer: its closing, the user's turn, the assistant's opening.

    The template is rendered with a short stand-in for the conversation so far, so a turn costs the
    same however long that is.

    Args:
      tokenizer: of the model.
      prompt: what the user says now.
      chat: within the chat template; else the text goes in as it is.
      ended: the last answer ended by itself, so what closes it is in the cache already.
      answer_prefix: start of the assistant's answer.

    Raises:
      InputError: an empty prompt, or a template that changes earlier answers.
    """
    if not prompt.strip():
        raise InputError(f"the prompt is {prompt!r}; it must hold some text")
    if not chat:
        return tokenizer.encode(prompt + answer_prefix)
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": prompt},
    ]
    before, found, after = tokenizer.render(messages, continue_text=answer_prefix).partition(
        _ANSWER
    )
    if not found or not before:
        raise InputError("the model's chat template cannot continue a conversation; use --raw")
    ids = tokenizer.encode(after, special=True)
    return ids[1:] if ended and ids and ids[0] in tokenizer.eos_ids else ids
