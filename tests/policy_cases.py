# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Every policy with easy and hard settings. A new policy is a row here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from own_policies import KeyDiff

from jaxkv.policies.adakv import AdaKV
from jaxkv.policies.base import Policy
from jaxkv.policies.duo import DuoAttention
from jaxkv.policies.full import Full
from jaxkv.policies.h2o import H2O
from jaxkv.policies.headkv import HeadKV
from jaxkv.policies.recompute import SlidingRecompute
from jaxkv.policies.recycled import RecycledAttention
from jaxkv.policies.snapkv import PyramidKV, SnapKV
from jaxkv.policies.streaming import StreamingLLM
from jaxkv.policies.streaming_plus import StreamingLLMPlus
from jaxkv.policies.tova import TOVA
from jaxkv.policies.window import Window

GATES = str(Path(__file__).parent / "data" / "toy_gates.json")
SCORES = str(Path(__file__).parent / "data" / "toy_scores.json")


@dataclasses.dataclass(frozen=True)
class Case:
    """A policy, and what is known of it.

    Attributes:
      policy: the policy.
      roomy: the same with a budget that no test exceeds: it must equal `Full`.
      tokens: what it keeps by its paper, of all KV heads of the toy, two in each of two layers, at
        `max_length` 64; without a slot for the newest.
      token_exact: a prompt in chunks gives what token by token gives. A policy that chooses after
        a prompt cannot: its oracle is in a test file of its own.
      hard_for: the laws that these settings are hard for, of those that take programs to compile;
        None for all. Each policy has settings that go through all.
    """

    policy: Policy
    roomy: Policy
    tokens: int
    token_exact: bool = True
    hard_for: tuple[str, ...] | None = None

    def kept(self, seen: int) -> set[int] | None:
        """Which positions are in the slots after `seen` tokens, the newest included.

        By the paper; None where heads differ, or where it depends on the input.
        """
        policy = self.policy
        if isinstance(policy, Full):
            return set(range(seen))
        if not isinstance(policy, Window | StreamingLLM):
            return None
        sinks = policy.sinks if isinstance(policy, StreamingLLM) else 0
        return set(range(min(sinks, seen))) | set(range(max(0, seen - policy.window - 1), seen))


def selecting(
    policy: Policy, roomy: Policy, tokens: int, hard_for: tuple[str, ...] | None = None
) -> Case:
    """A policy that chooses after a whole prompt."""
    return Case(policy, roomy, tokens, token_exact=False, hard_for=hard_for)


def ring(policy: Policy, roomy: Policy, tokens: int) -> Case:
    """Sinks and windows of sizes where a ring begins to turn, or has one slot, or none."""
    return Case(policy, roomy, tokens, hard_for=("roomy", "exact", "kept", "finite"))


def budgets(policy: Policy, roomy: Policy, tokens: int) -> Case:
    """Budgets at an end of their range: what is chosen differs, not what is done with it."""
    return selecting(policy, roomy, tokens, hard_for=("roomy", "rows", "finite"))


CASES = {
    "full": Case(Full(), Full(), 4 * 64),
    "window": Case(Window(9), Window(100), 4 * 9),
    "window-of-one": ring(Window(1), Window(64), 4 * 1),
    "streaming": Case(StreamingLLM(2, 7), StreamingLLM(2, 100), 4 * (2 + 7)),
    "streaming-default-sinks": ring(StreamingLLM(4, 3), StreamingLLM(4, 64), 4 * (4 + 3)),
    "streaming-no-sinks": ring(StreamingLLM(0, 8), StreamingLLM(0, 64), 4 * 8),
    "streaming-all-sinks": ring(StreamingLLM(11, 1), StreamingLLM(64, 1), 4 * (11 + 1)),
    "recompute": Case(SlidingRecompute(9), SlidingRecompute(64), 0),
    "duo": Case(
        DuoAttention(GATES, 0.5, 2, 5), DuoAttention(GATES, 0.5, 2, 100), 2 * 64 + 2 * (2 + 5)
    ),
    "duo-empty-groups": Case(
        DuoAttention(GATES, 1.0, 2, 5), DuoAttention(GATES, 0.0, 2, 5), 4 * (2 + 5),
        hard_for=("roomy", "exact", "rows", "finite"),
    ),
    "snapkv": selecting(SnapKV(8, 2, 3, 4), SnapKV(100, 2, 3, 4), 4 * (8 + 4)),
    "snapkv-window-only": budgets(SnapKV(3, 3, 1, 0), SnapKV(64, 3, 1, 64), 4 * 3),
    "snapkv-share": budgets(SnapKV(0.2, 4, 5, 2), SnapKV(1.0, 4, 5, 2), 4 * (13 + 2)),
    "pyramidkv": selecting(
        PyramidKV(10, 2, 3, 4, 3), PyramidKV(100, 2, 3, 4, 3), 4 * (10 + 3)
    ),
    "headkv": selecting(
        HeadKV(SCORES, 10, 1.2, 2, 3, 4), HeadKV(SCORES, 500, 1.2, 2, 3, 4), 4 * (10 + 4)
    ),
    "headkv-all-pooled": budgets(
        HeadKV(SCORES, 6, 1.0, 2, 3, 0), HeadKV(SCORES, 500, 9, 2, 3), 4 * 6
    ),
    "adakv": selecting(AdaKV(9, 2, 3, 0.2, 4), AdaKV(100, 2, 3, 0.2, 4), 4 * (9 + 4)),
    "adakv-no-floor": budgets(AdaKV(20, 4, 3, 0.0, 0), AdaKV(64, 4, 3, 0.0, 64), 4 * 20),
    "recycled": selecting(RecycledAttention(5, 3), RecycledAttention(1.0, 3), 4 * (64 + 5)),
    "recycled-dynamic": selecting(
        RecycledAttention(0.1, 2, 0.5), RecycledAttention(64, 2, 0.5), 4 * (64 + 6)
    ),
    "streaming-plus": selecting(
        StreamingLLMPlus(2, 7, 3), StreamingLLMPlus(2, 100, 3), 4 * (64 + 2 + 7)
    ),
    "h2o": selecting(H2O(8), H2O(64), 4 * 8),
    "tova": selecting(TOVA(8), TOVA(64), 4 * 8),
    "own-keydiff": selecting(KeyDiff(10, 2, 2, 4), KeyDiff(100, 2, 2, 4), 4 * (10 + 4)),
}  # fmt: skip
SLAB_CASES = {
    name: case for name, case in CASES.items() if not isinstance(case.policy, SlidingRecompute)
}
# All heads of a layer are treated alike.
UNIFORM_CASES = {
    name: case
    for name, case in SLAB_CASES.items()
    if not isinstance(case.policy, DuoAttention | HeadKV)
}
KNOWN_CASES = {name: case for name, case in SLAB_CASES.items() if case.kept(1) is not None}


def law(name: str, cases: dict[str, Case]) -> pytest.MarkDecorator:
    """Runs a law over the cases that it is for."""
    names = [key for key, case in cases.items() if case.hard_for is None or name in case.hard_for]
    return pytest.mark.parametrize("name", names)
