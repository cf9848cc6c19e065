# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Every policy with easy and hard settings. A new policy is a row here."""

from __future__ import annotations

import dataclasses

from jaxkv.policies.base import Policy
from jaxkv.policies.full import Full
from jaxkv.policies.recompute import SlidingRecompute
from jaxkv.policies.streaming import StreamingLLM
from jaxkv.policies.window import Window


@dataclasses.dataclass(frozen=True)
class Case:
    """A policy, and what is known of it.

    Attributes:
      policy: the policy.
      roomy: the same with a budget that no test exceeds: it must equal `Full`.
      token_exact: a prompt in chunks gives what token by token gives.
      kept: positions that every head keeps after n tokens, by the paper; None for no slabs.
    """

    policy: Policy
    roomy: Policy
    token_exact: bool = True

    def kept(self, seen: int) -> set[int] | None:
        """Which positions are in the slots after `seen` tokens, the newest included."""
        policy = self.policy
        if isinstance(policy, Full):
            return set(range(seen))
        if isinstance(policy, SlidingRecompute):
            return None
        sinks = policy.sinks if isinstance(policy, StreamingLLM) else 0
        window = policy.window  # type: ignore[attr-defined]
        return set(range(min(sinks, seen))) | set(range(max(0, seen - window - 1), seen))


CASES = {
    "full": Case(Full(), Full()),
    "window": Case(Window(9), Window(100)),
    "window-of-one": Case(Window(1), Window(64)),
    "streaming": Case(StreamingLLM(2, 7), StreamingLLM(2, 100)),
    "streaming-default-sinks": Case(StreamingLLM(4, 3), StreamingLLM(4, 64)),
    "streaming-no-sinks": Case(StreamingLLM(0, 8), StreamingLLM(0, 64)),
    "streaming-all-sinks": Case(StreamingLLM(11, 1), StreamingLLM(64, 1)),
    "recompute": Case(SlidingRecompute(9), SlidingRecompute(64)),
}
SLAB_CASES = {
    name: case for name, case in CASES.items() if not isinstance(case.policy, SlidingRecompute)
}
