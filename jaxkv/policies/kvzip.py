# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model needs to repeat its prompt is what it needs for any question about it."""

from __future__ import annotations

import dataclasses

import jax
from jax import Array

from jaxkv.core.errors import InputError
from jaxkv.layers.prompt import Prompt
from jaxkv.layers.replayed import Replay
from jaxkv.policies.scored import ScoredPolicy


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVzip(ScoredPolicy):
    """KVzip (arXiv 2505.23416): no question is known, and none is asked.

    The prompt is read with everything kept, then the model repeats it, a part at a time, and a
    token's score is the most attention that any query of its KV head's group paid it. That is done
    once, about as long as reading the prompt took; `jaxkv.layers.replayed` has the formula. All
    that stands before the user's text, a system message too, is kept before anything else, as in
    the authors' code.

    Later prompts, such as the questions, are not repeated: like decoded tokens they are kept until
    newer ones take their place, `decode_room` of them beside the `window`.

    Attributes:
      budget, sinks, window, decode_room, allocation, table, floor: as for `ScoredPolicy`.
      part: tokens that are repeated at a time.
      plus: KVzip+, which weighs attention by how far it moves the output (arXiv 2601.07891).
    """

    needs = ("replay",)
    agnostic = True

    allocation: str = "global"
    part: int = 2048
    plus: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part < 1:
            raise InputError(f"part is {self.part}; it must be at least 1")

    @property
    def replay(self) -> Replay:
        """How the prompt is repeated."""
        return Replay(self.part, self.plus)

    def score(self, prompt: Prompt) -> Array:
        """As it was repeated."""
        return prompt.replay()
