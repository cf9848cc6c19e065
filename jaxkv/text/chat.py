# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A further turn of a conversation whose earlier turns are only in the cache.

What a cache holds after some turns are the ids of the whole conversation. So what is added is cut
out of a longer text that was tokenised at once: by itself it would begin as texts begin, with a
space of SentencePiece's, say, that is not there in the middle of one.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxkv.core.errors import InputError
from jaxkv.text.tokenizer import Tokenizer

# What a text may have before it. Some tokenizers join what they end with to what follows; one of
# them is not joined.
_ANSWERS = ("jaxkv-earlier-answer", "earlier answer 0", "An answer.", "(答)", "é")
_BEFORE = ("\n", "a", "0", ".", ")", "é", "答")


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
        return _in_the_middle(tokenizer, prompt + answer_prefix)
    for answer in _ANSWERS:
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": prompt},
        ]
        whole = tokenizer.render(messages, continue_text=answer_prefix)
        before, found, after = whole.partition(answer)
        if not found or not before or not after:
            raise InputError("the model's chat template cannot continue a conversation; use --raw")
        rest = _after(tokenizer, before + answer, whole, special=True)
        if rest is not None:
            return _unclosed(tokenizer, rest) if ended else rest
    raise InputError("the model's tokenizer joins an answer to the turn after it; use --raw")


def _in_the_middle(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that goes on from another one."""
    for before in _BEFORE:
        rest = _after(tokenizer, before, before + text, special=False)
        if rest is not None:
            return rest
    return tokenizer.encode(text)


def _after(tokenizer: Tokenizer, begin: str, whole: str, special: bool) -> list[int] | None:
    """The ids of `whole` after those of its beginning; None if those are other ids by themselves.

    A beginning without ids tells nothing of how a text goes on.
    """
    first, all_ids = (tokenizer.encode(text, special=special) for text in (begin, whole))
    return all_ids[len(first) :] if first and all_ids[: len(first)] == first else None


def _unclosed(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """What follows an answer, less its end of sequence and the white space before that."""
    for index, token in enumerate(ids):
        if token in tokenizer.eos_ids:
            return list(ids[index + 1 :])
        if tokenizer.decode([token], skip_special=False).strip():
            break
    return list(ids)
