# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What is said to a model, as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError


def prompt_ids(
    model: Model,
    prompt: str,
    *,
    chat: bool | None = None,
    answer_prefix: str = "",
    system: str | None = None,
) -> list[int]:
    """Token ids of a prompt.

    Args:
      model: whose tokenizer.
      prompt: what the user says.
      chat: within the model's chat template; None if it has one.
      answer_prefix: start of the assistant's answer.
      system: a message before it, of how to answer.

    Raises:
      InputError: an empty prompt, a chat with a model that has no template, or a system message
        without a chat.
    """
    tokenizer = model.tokenizer
    if not prompt.strip():
        raise InputError(f"the prompt is {prompt!r}; it must hold some text")
    if chat is None:
        chat = tokenizer.chat_template is not None
    if not chat and system is not None:
        raise InputError(f"system is {system[:20]!r}; only a chat has a system message")
    if not chat:
        return [*tokenizer.bos_ids, *tokenizer.encode(prompt + answer_prefix)]
    before = [] if system is None else [{"role": "system", "content": system}]
    return message_ids(model, [*before, {"role": "user", "content": prompt}], answer_prefix)


def message_ids(
    model: Model, messages: Sequence[Mapping[str, Any]], answer_prefix: str = ""
) -> list[int]:
    """Token ids of a conversation in the model's chat template, with the answer's turn opened.

    Args:
      model: whose tokenizer.
      messages: each with its `role` and its `content`, as the template knows them.
      answer_prefix: start of the assistant's answer.

    Raises:
      InputError: a message without a text, or a template that refuses the conversation.
    """
    for message in messages:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise InputError(f"a message is {message!r:.60}; it must have a role and a content")
    if not messages:
        raise InputError("there is no message; give at least one")
    text = model.tokenizer.render(messages, continue_text=answer_prefix)
    return model.tokenizer.encode(text, special=True)
