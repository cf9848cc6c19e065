# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What is said to a model, as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import jax
import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError

Ids = Sequence[SupportsIndex] | np.ndarray | jax.Array  # token ids of one prompt
Prompts = str | Ids | Sequence[str | Ids]
Conversation = Sequence[Mapping[str, Any]]

ROLES = ("system", "developer", "user", "assistant", "tool")


def batch_ids(
    model: Model,
    prompts: Prompts = (),
    messages: Conversation | Sequence[Conversation] | None = None,
    *,
    chat: bool | None = None,
    answer_prefix: str = "",
    system: str | None = None,
) -> list[list[int]]:
    """Token ids of each row of a batch.

    Args:
      model: whose tokenizer.
      prompts: a text or the token ids of one prompt, or several of them.
      messages: in their place, a conversation or several.
      chat, answer_prefix, system: see `prompt_ids`; ids are taken as they are.

    Raises:
      InputError: there is nothing, or something that is no prompt.
    """
    rows = _rows(prompts)
    if messages is not None:
        if rows or system is not None or chat is False:
            raise InputError(
                "messages are a whole conversation; give no prompt, system or chat=False"
            )
        alone = not messages or isinstance(messages[0], Mapping)
        several: Any = [messages] if alone else messages
        return [message_ids(model, each, answer_prefix) for each in several]
    if not rows:
        raise InputError("there is no prompt; give at least one")
    found = []
    for index, row in enumerate(rows):
        if isinstance(row, str):
            how: dict[str, Any] = {"chat": chat, "answer_prefix": answer_prefix, "system": system}
            found.append(prompt_ids(model, row, **how))
            continue
        if chat or answer_prefix or system is not None:
            raise InputError(
                "token ids are taken as they are; give no chat, answer_prefix or system"
            )
        found.append(checked_ids(model, row, f"prompt {index}'s"))
    return found


def checked_ids(model: Model, ids: Iterable[Any], what: str) -> list[int]:
    """Token ids that somebody gave.

    Raises:
      InputError: there are none, or one is no whole number, or has no row in the embedding; the
        message begins with `what`.
    """
    found = []
    for number in ids:
        if isinstance(number, bool | np.bool_) or not isinstance(number, int | np.integer):
            raise InputError(f"{what} id is {number!r:.40}; it must be a whole number")
        found.append(int(number))
    if not found:
        raise InputError(f"{what} ids are none; there must be at least one")
    model.check_ids(found, what)
    return found


def _rows(prompts: Any) -> list[Any]:
    """One or many prompts as many: each a text, or a list of what should be ids."""
    if isinstance(prompts, str):
        return [prompts]
    rows = _plain(prompts)
    if not isinstance(rows, list):
        raise InputError(f"prompts are {prompts!r:.60}; they must be texts or lists of token ids")
    of_one = rows and not isinstance(rows[0], str | Sequence | np.ndarray | jax.Array)
    several = [rows] if of_one else [_plain(row) for row in rows]
    wrong = next((row for row in several if not isinstance(row, str | list)), None)
    if wrong is not None:
        raise InputError(f"a prompt is {wrong!r:.60}; it must be a text or a list of token ids")
    return several


def _plain(value: Any) -> Any:
    """Arrays and sequences as lists; a text, and what is neither, as it is."""
    if isinstance(value, np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


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
    tokenizer.require()
    if chat is None:
        chat = tokenizer.chat_template is not None
    if not chat and system is not None:
        raise InputError(f"system is {system[:20]!r}; only a chat has a system message")
    if not chat:
        return [*tokenizer.bos_ids, *tokenizer.encode(prompt + answer_prefix)]
    before = [] if system is None else [{"role": "system", "content": system}]
    return message_ids(model, [*before, {"role": "user", "content": prompt}], answer_prefix)


def message_ids(model: Model, messages: Conversation, answer_prefix: str = "") -> list[int]:
    """Token ids of a conversation in the model's chat template, with the answer's turn opened.

    Args:
      model: whose tokenizer.
      messages: each with its `role`, one of `ROLES`, and its `content`, as the template knows them.
      answer_prefix: start of the assistant's answer.

    Raises:
      InputError: a message without a text or with another role, or a template that refuses the
        conversation.
    """
    for message in messages:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise InputError(
                f"a message is {message!r:.60}; it must have a role and a content, both texts"
            )
        if message["role"] not in ROLES:
            raise InputError(
                f"a message has the role {message['role']!r:.40}; it must be one of "
                f"{', '.join(ROLES)}"
            )
    if not messages:
        raise InputError("there is no message; give at least one")
    text = model.tokenizer.render(messages, continue_text=answer_prefix)
    return model.tokenizer.encode(text, special=True)
