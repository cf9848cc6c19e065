# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Asking a model to repeat its prompt, in the words of KVzip's authors (arXiv 2505.23416)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from jaxkv.core.errors import InputError
from jaxkv.text.tokenizer import Tokenizer

REQUEST = "\n\nRepeat the previous context exactly."
_SOME = "\n\nRepeat the part of the previous context exactly, starting with "
_LAST = 8  # tokens of the part before that are quoted
_MARK = "jaxkv-text"


@dataclasses.dataclass(frozen=True)
class Repeated:
    """A part of a prompt, and what makes the model repeat it.

    Attributes:
      begin: the first token of the part, in the prompt.
      count: tokens of the part.
      ids: the request, the opening of the answer, and the part.
    """

    begin: int
    count: int
    ids: tuple[int, ...]


def parts(tokenizer: Tokenizer, prompt: Sequence[int], begin: int, size: int) -> list[Repeated]:
    """All of a prompt from token `begin` on, in parts of `size`; none where nothing is left."""
    close = closing(tokenizer)
    found = []
    for start in range(begin, len(prompt), size):
        part = prompt[start : start + size]
        if start == begin:
            ask = tokenizer.encode(REQUEST)
        else:
            ask = [*tokenizer.encode(_SOME), *prompt[max(begin, start - _LAST) : start]]
        found.append(Repeated(start, len(part), (*ask, *close, *part)))
    return found


def closing(tokenizer: Tokenizer) -> list[int]:
    """What ends the user's turn and opens the assistant's: a line feed without a chat template."""
    if tokenizer.chat_template is None:
        return tokenizer.encode("\n")
    whole = tokenizer.render([{"role": "user", "content": _MARK}])
    return tokenizer.encode(whole.partition(_MARK)[2], special=True)


def before_text(tokenizer: Tokenizer, prompt: Sequence[int]) -> int:
    """Tokens of a prompt that stand before the user's first text: a system message too.

    What opens the user's turn is what templates write before it with one system message and with
    another. Where that is nothing, or not in the prompt, the tokens count that any chat begins
    with, or the beginning-of-sequence ones.
    """
    if tokenizer.chat_template is not None:
        usual, other = (_opening(tokenizer, system) for system in (None, "x"))
        turn = _common(reversed(usual), reversed(other))[::-1] if other else []
        for start in range(len(prompt) - len(turn) + 1 if turn else 0):
            if list(prompt[start : start + len(turn)]) == turn:
                return start + len(turn)
        if shared := len(_common(usual, prompt)):
            return shared
    return len(_common(tokenizer.bos_ids, prompt))


def _opening(tokenizer: Tokenizer, system: str | None) -> list[int]:
    """What stands before the user's text; nothing where a template takes no such system message."""
    messages = [{"role": "user", "content": _MARK}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        before, found, _ = tokenizer.render(messages).partition(_MARK)
    except InputError:
        return []
    return tokenizer.encode(before, special=True) if found else []


def _common(a: Iterable[int], b: Iterable[int]) -> list[int]:
    """What two sequences begin with."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return [x for x, _ in same]
