# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A stranger's tokenizer.json, looked through before the library takes it.

The library is written in Rust: what it does not foresee is a panic, which is no `Exception`, and an
id that nothing could have makes it ask for gigabytes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jaxkv.core.errors import InputError
from jaxkv.core.reading import parse_json

if TYPE_CHECKING:
    import tokenizers

MOST_ENGINE = 2**28  # bytes; the largest of a published model has 40 MB
_MOST_IDS = 2**24


@contextlib.contextmanager
def refusing(failure: str) -> Iterator[None]:
    """Makes one line of whatever the library throws at what it was given.

    Raises:
      InputError: `failure`, and what was thrown.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of Rust derives from nothing else
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise InputError(f"{failure}: {reason or type(error).__name__}") from None


def engine_of(text: str, where: str) -> tokenizers.Tokenizer:
    """The engine that a tokenizer.json describes.

    Args:
      text: of the file.
      where: what errors call it.

    Raises:
      InputError: it is not what the library takes.
    """
    import tokenizers

    check(parse_json(text, where), where)
    with refusing(f"{where} cannot be used"):
        return tokenizers.Tokenizer.from_str(text)


def check(table: Any, where: str) -> None:
    """Refuses a description whose vocabulary cannot be one.

    Raises:
      InputError: names what is wrong.
    """
    if not isinstance(table, Mapping) or not isinstance(table.get("model"), Mapping):
        raise InputError(f"{where} describes no tokenizer: it has no model")
    vocab = table["model"].get("vocab")
    if isinstance(vocab, Mapping):
        seen: dict[int, str] = {}
        for text, number in vocab.items():
            check_added(text, number, where)
            if seen.setdefault(number, text) != text:
                raise InputError(
                    f"{where} has id {number} twice: {seen[number]!r:.80} and {text!r:.80}"
                )
    elif isinstance(vocab, list):  # of a Unigram: the place is the id
        vocab = {item[0]: i for i, item in enumerate(vocab) if isinstance(item, list) and item}
    else:
        raise InputError(f"{where} has no vocabulary")
    added = table.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(entry, Mapping) for entry in added):
        raise InputError(f"{where}: added_tokens must be a list of objects")
    named: dict[Any, Any] = {}
    for entry in added:
        text, number = entry.get("content"), entry.get("id")
        check_added(text, number, where)
        if named.setdefault(number, text) != text:
            raise InputError(
                f"{where} has id {number} twice: {named[number]!r:.80} and {text!r:.80}"
            )


def check_added(text: Any, number: Any, where: str) -> None:
    """Refuses a token that is no text or has no id that a vocabulary could have.

    Raises:
      InputError: names it.
    """
    if not isinstance(text, str):
        raise InputError(f"{where} has the token {text!r:.80}; it must be a text")
    if type(number) is not int or not 0 <= number < _MOST_IDS:
        raise InputError(
            f"{where} gives {text!r:.80} the id {number!r:.80}; it must be a whole number from 0 "
            f"to {_MOST_IDS - 1}"
        )
