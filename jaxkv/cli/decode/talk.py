# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How far a chat has come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from jaxkv.cli.decode.options import Options
from jaxkv.generate.session import Session


@dataclasses.dataclass
class Talk:
    """A chat that goes on.

    Attributes:
      options: what the command was asked to do.
      begin: gives the session as it was before the first turn.
      session: the stream and its programs.
      turns: what was said since, as messages with a role and a content.
      fed: tokens that went in.
      made: tokens that came out.
      fresh: nothing was said before, by an earlier chat neither.
    """

    options: Options
    begin: Callable[[], Session]
    session: Session
    turns: list[dict[str, str]] = dataclasses.field(default_factory=list)
    fed: int = 0
    made: int = 0
    fresh: bool = True

    @classmethod
    def of(cls, options: Options, begin: Callable[[], Session]) -> Talk:
        """At its beginning."""
        return cls(options, begin, begin(), fresh=not options.load_cache)

    def said(self, prompt: str, answer: str, fed: int, made: int) -> None:
        """Notes a turn."""
        if self.fresh and self.options.system is not None:
            self.turns.append({"role": "system", "content": self.options.system})
        self.turns.append({"role": "user", "content": prompt})
        self.turns.append({"role": "assistant", "content": answer})
        self.fed, self.made, self.fresh = self.fed + fed, self.made + made, False

    def reset(self) -> None:
        """Goes back to the beginning; its programs are found compiled."""
        jax.tree.map(lambda array: array.delete(), self.session.state)  # never two caches at once
        again = Talk.of(self.options, self.begin)
        self.session, self.fresh = again.session, again.fresh
        self.turns, self.fed, self.made = [], 0, 0
