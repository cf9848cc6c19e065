# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One row's ids turned into text as they come, up to a stop string or the end of the sequence."""

from __future__ import annotations

from collections.abc import Iterable

from jaxkv.text.tokenizer import Tokenizer


class Row:
    """The answer of one prompt.

    Attributes:
      ids: all ids of the answer.
      text: its text so far, without the stop string; empty where there is no tokenizer.
      stopped: a stop string was met.
      ended: that, or the end-of-sequence token.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]):
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False
        self.ended = False
        self._eos = frozenset(tokenizer.eos_ids)
        if stop:
            tokenizer.require()
        self._stream = None if tokenizer.missing else tokenizer.stream()
        self._stop = stop
        self._held = ""  # might be the start of a stop string

    def feed(self, ids: Iterable[int]) -> str:
        """Takes new ids, and gives the text that is now certain."""
        ids = list(ids)
        self.ids += ids
        self.ended = self.ended or any(i in self._eos for i in ids)
        return self._release(self._stream.feed(ids) if self._stream else "", last=False)

    def finish(self) -> str:
        """What was still held back."""
        text = self._stream.finish() if self._stream else ""
        return "" if self.stopped else self._release(text, last=True)

    def _release(self, new: str, last: bool) -> str:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = self.ended = True
            text, self._held = text[: min(found)], ""
        else:
            keep = 0 if last else _overlap(text, self._stop)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self.text += text
        return text


def _overlap(text: str, stops: tuple[str, ...]) -> int:
    """How much of the end of `text` could be the start of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
