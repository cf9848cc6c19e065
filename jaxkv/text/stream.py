# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Token ids to text while they are made, never half a character.

What comes out piece by piece, joined, is exactly what decoding all ids at once gives.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxkv.text.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TextStream:
    """`feed` ids as they come, `finish` at the end; both return the text that is new."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        bytewise = tokenizer.decoder.get("type") == "ByteLevel"
        self._part = _Bytes(tokenizer) if bytewise else _Window(tokenizer)

    def feed(self, ids: Iterable[int]) -> str:
        """Takes the next ids, none or many."""
        return self._part.feed([i for i in map(int, ids) if i not in self._skipped])

    def finish(self) -> str:
        """What is still held back, such as the bytes of a character that was never completed."""
        return self._part.finish()


class _Bytes:
    """For vocabularies whose tokens are byte strings: an incremental UTF-8 decoder is exact."""

    def __init__(self, tokenizer: Tokenizer):
        self._backend = tokenizer.backend
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: list[int]) -> str:
        tokens = (self._backend.id_to_token(i) for i in ids)
        return self._utf8.decode(b"".join(_token_bytes(token) for token in tokens if token))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Window:
    """For all others: decodes the ids since the last clean cut, and emits what was added.

    One token before the cut is kept as context, because decoders strip the text's first space. A
    run of byte tokens is held until it ends: one bad byte changes the reading of the whole run.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._held: list[int] = []

    def feed(self, ids: list[int]) -> str:
        self._held += ids
        if not self._held or self._is_open(self._held[-1]):
            return ""
        return self.finish()

    def finish(self) -> str:
        if not self._held:
            return ""
        before = self._tokenizer.decode(self._context, skip_special=False)
        after = self._tokenizer.decode(self._context + self._held, skip_special=False)
        self._context, self._held = self._held[-1:], []
        return after[len(before) :]

    def _is_open(self, token_id: int) -> bool:
        token = self._tokenizer.backend.id_to_token(token_id)
        # An id without a token is as good as no id: it must not become the context either.
        return token is None or _BYTE_TOKEN.fullmatch(token) is not None


def _token_bytes(token: str) -> bytes:
    """The bytes of a token that is spelled in the byte-level alphabet, or its own UTF-8."""
    table = byte_of_character()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        return token.encode()


@functools.cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the rest for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}
