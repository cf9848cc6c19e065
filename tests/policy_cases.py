# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Every policy with easy and hard settings. A new policy is a row here."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from own_policies import Expected, KeyDiff, Outputs

from jaxkv.layers.base import Policy
from jaxkv.policies.adakv import AdaKV
from jaxkv.policies.chunkkv import ChunkKV
from jaxkv.policies.compactor import Compactor
from jaxkv.policies.cur import CUR
from jaxkv.policies.duo import DuoAttention
from jaxkv.policies.expected import ExpectedAttention
from jaxkv.policies.full import Full
from jaxkv.policies.h2o import H2O
from jaxkv.policies.headkv import HeadKV
from jaxkv.policies.keydiff import KeyDiff as OurKeyDiff
from jaxkv.policies.knorm import KNorm
from jaxkv.policies.lagkv import LagKV
from jaxkv.policies.random import Random
from jaxkv.policies.recompute import SlidingRecompute
from jaxkv.policies.recycled import RecycledAttention
from jaxkv.policies.scored import ScoredPolicy
from jaxkv.policies.snapkv import PyramidKV, SnapKV
from jaxkv.policies.streaming import StreamingLLM
from jaxkv.policies.streaming_plus import StreamingLLMPlus
from jaxkv.policies.tova import TOVA
from jaxkv.policies.window import Window

GATES = str(Path(__file__).parent / "data" / "toy_gates.json")
SCORES = str(Path(__file__).parent / "data" / "toy_scores.json")
SHARES = str(Path(__file__).parent / "data" / "toy_shares.json")


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
        None for all. Each kind of layer has settings that go through all, and with JAXKV_BRIEF in
        the environment only those are tried.
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


# What is chosen differs, not what is done with it.
AT_AN_END = ("roomy", "finite")


def budgets(policy: Policy, roomy: Policy, tokens: int) -> Case:
    """Budgets at an end of their range."""
    return selecting(policy, roomy, tokens, hard_for=(*AT_AN_END, "rows"))


def grown(
    policy: ScoredPolicy, budget: float, tokens: int, hard_for: tuple[str, ...] | None = None
) -> Case:
    """A score, and the same with a budget for all."""
    return selecting(policy, dataclasses.replace(policy, budget=budget), tokens, hard_for)


# A layer that another row takes through all laws, in sizes of its own.
OTHER_SIZES = ("roomy", "rows", "finite", "trace", "again", "saved")

# What a score of keys and values is hard for: a file of its own tries the rest of it.
SCORE_ALONE = ("heads",)
SAME = {"window": 2, "decode_room": 4}

CASES = {
    "full": Case(Full(), Full(), 4 * 64),
    "window": Case(
        Window(9), Window(100), 4 * 9,
        hard_for=("roomy", "exact", "kept", "rows", "finite", "saved"),
    ),
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
    "snapkv": grown(SnapKV(8, window=2, kernel=3, decode_room=4), 100, 4 * (8 + 4)),
    "snapkv-window-only": budgets(
        SnapKV(3, window=3, kernel=1, decode_room=0),
        SnapKV(64, window=3, kernel=1, decode_room=64), 4 * 3,
    ),
    "snapkv-share": grown(
        SnapKV(0.2, window=4, kernel=5, decode_room=2), 1.0, 4 * (13 + 2), AT_AN_END
    ),
    "snapkv-ada-sinks": grown(
        SnapKV(12, sinks=3, window=2, kernel=3, decode_room=2, allocation="ada", floor=0.0), 100,
        4 * (12 + 2), AT_AN_END,
    ),
    "snapkv-table": grown(
        SnapKV(10, window=2, kernel=3, decode_room=4, allocation="table", table=SHARES), 100,
        4 * (10 + 4), ("roomy", "rows", "store"),
    ),
    "pyramidkv": grown(
        PyramidKV(10, window=2, kernel=3, beta=4, decode_room=3), 100, 4 * (10 + 3), OTHER_SIZES
    ),
    "headkv": grown(
        HeadKV(10, scores=SCORES, window=2, kernel=3, decode_room=4), 500, 4 * (10 + 4),
        (*OTHER_SIZES, "kinds"),
    ),
    "headkv-all-pooled": budgets(
        HeadKV(6, scores=SCORES, beta=1.0, window=2, kernel=3, decode_room=0),
        HeadKV(500, scores=SCORES, beta=9, window=2, kernel=3), 4 * 6,
    ),
    "adakv": grown(AdaKV(9, window=2, kernel=3, decode_room=4), 100, 4 * (9 + 4)),
    "adakv-no-floor": budgets(
        AdaKV(20, window=4, kernel=3, floor=0.0, decode_room=0),
        AdaKV(64, window=4, kernel=3, floor=0.0, decode_room=64), 4 * 20,
    ),
    "recycled": selecting(RecycledAttention(5, 3), RecycledAttention(1.0, 3), 4 * (64 + 5)),
    "recycled-dynamic": selecting(
        RecycledAttention(0.1, 2, 0.5), RecycledAttention(64, 2, 0.5), 4 * (64 + 6), OTHER_SIZES
    ),
    "streaming-plus": selecting(
        StreamingLLMPlus(2, 7, 3), StreamingLLMPlus(2, 100, 3), 4 * (64 + 2 + 7),
    ),
    "h2o": selecting(H2O(8), H2O(64), 4 * 8),
    "tova": selecting(TOVA(8), TOVA(64), 4 * 8),
    "chunkkv": grown(ChunkKV(10, chunk=4, **SAME), 100, 4 * (10 + 4), ("rows", "heads")),
    "chunkkv-gated": grown(
        ChunkKV(12, chunk=6, sinks=1, gated=True, **SAME), 100, 4 * (12 + 4),
        SCORE_ALONE,
    ),
    "compactor": grown(
        Compactor(14, chunk=8, **SAME | {"sinks": 3}), 100, 4 * (14 + 4),
        ("rows", "heads"),
    ),
    "cur": grown(CUR(10, local=4, **SAME), 100, 4 * (10 + 4), SCORE_ALONE),
    "lagkv": grown(LagKV(10, sinks=2, lag=4, **SAME), 100, 4 * (10 + 4), SCORE_ALONE),
    "keydiff": grown(OurKeyDiff(10, **SAME), 100, 4 * (10 + 4), SCORE_ALONE),
    "knorm": grown(KNorm(10, **SAME), 100, 4 * (10 + 4), SCORE_ALONE),
    "random": grown(Random(10, **SAME), 100, 4 * (10 + 4), SCORE_ALONE),
    "expected": grown(
        ExpectedAttention(10, sinks=1, window=2, decode_room=4, future=16), 100, 4 * (10 + 4),
        ("roomy", "rows", "heads", "kinds"),
    ),
    "own-keydiff": grown(
        KeyDiff(10, sinks=2, window=2, decode_room=4), 100, 4 * (10 + 4),
        ("roomy", "rows", "heads", "trace", "saved", "store"),
    ),
    "own-keydiff-ada": grown(
        KeyDiff(10, sinks=2, window=2, decode_room=4, allocation="ada"), 100, 4 * (10 + 4),
        ("roomy", "heads", "store"),
    ),
    "own-expected": grown(
        Expected(10, sinks=1, window=2, decode_room=4), 100, 4 * (10 + 4),
        ("roomy", "rows", "jit", "heads"),
    ),
    "own-outputs": grown(
        Outputs(10, sinks=1, window=2, decode_room=4), 100, 4 * (10 + 4),
        ("roomy", "rows", "again", "kinds"),
    ),
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
    brief = "JAXKV_BRIEF" in os.environ
    names = [
        key for key, case in cases.items()
        if case.hard_for is None or (name in case.hard_for and not brief)
    ]  # fmt: skip
    return pytest.mark.parametrize("name", names)
