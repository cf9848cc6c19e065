# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The methods that both jaxkv and kvpress have, and in what the two are not the same."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

SINKS = 4


@dataclasses.dataclass(frozen=True)
class Method:
    """One method, as both libraries have it.

    Attributes:
      press: kvpress' name.
      fields: of our policy, from the budget and the options.
      differs: in what the two are not the same, beside what all differ in.
    """

    press: str
    fields: Callable[[int, argparse.Namespace], Mapping[str, Any]]
    differs: str


def _window(budget: int, options: argparse.Namespace) -> Mapping[str, Any]:
    return {"budget": budget, "window": options.window, "kernel": options.kernel}


def _budget(budget: int, options: argparse.Namespace) -> Mapping[str, Any]:
    return {"budget": budget}


_ENDS = "jaxkv keeps the first 4 and the last 8 tokens of a context in any case"
_MASKS = "kvpress masks what it drops and frees nothing"
_POOLS = "of neighbouring scores jaxkv takes the highest, kvpress the mean"
METHODS: Mapping[str, Method] = {
    "full": Method("no press", lambda budget, options: {}, "nothing"),
    "snapkv": Method("SnapKVPress", _window, _POOLS),
    "pyramidkv": Method(
        "PyramidKVPress",
        _window,
        f"{_POOLS}; kvpress counts the window outside of the pyramid, and takes SnapKVPress where "
        "the last layer would keep less than the window",
    ),
    "adakv": Method(
        "AdaKVPress(SnapKVPress)",
        _window,
        f"{_POOLS}; {_MASKS}",
    ),
    "streaming": Method(
        "StreamingLLMPress",
        lambda budget, options: {"sinks": SINKS, "window": budget - SINKS},
        "kvpress reads the context densely, leaves positions as they were, and evicts nothing "
        "after the context; jaxkv is the paper's method, for the context and after it",
    ),
    "tova": Method(
        "TOVAPress",
        _budget,
        "jaxkv evicts at every step, kvpress after the context alone",
    ),
    "h2o": Method(
        "ObservedAttentionPress",
        _budget,
        "jaxkv sums attention, saves half of the budget for the newest tokens and evicts at every "
        "step; kvpress takes the mean attention, saves none, and evicts after the context alone",
    ),
    "duo": Method(
        "DuoAttentionPress",
        lambda budget, options: {"sinks": SINKS, "recent": budget - SINKS},
        "the budget is that of streaming heads, which are those of jaxkv's pattern on both sides; "
        f"kvpress reads the context densely; {_MASKS}",
    ),
    "random": Method("RandomPress", _budget, _ENDS),
    "knorm": Method("KnormPress", _budget, _ENDS),
    "keydiff": Method("KeyDiffPress", _budget, _ENDS),
    "lagkv": Method("LagKVPress", _budget, "nothing that is known"),
    "cur": Method("CURPress", _budget, _ENDS),
    "compactor": Method(
        "AdaKVPress(CompactorPress)",
        lambda budget, options: {"budget": budget, "allocation": "ada"},
        f"{_ENDS}; its sketch is drawn otherwise; {_MASKS}",
    ),
    "chunkkv": Method("ChunkKVPress(SnapKVPress)", _window, f"{_POOLS}; {_ENDS}"),
    "expected": Method(
        "AdaKVPress(ExpectedAttentionPress(epsilon=0.01))",
        _budget,
        f"{_ENDS}; {_MASKS}",
    ),
    "kvzip": Method(
        "KVzipPress",
        _budget,
        "jaxkv keeps all that stands before the user's text, kvpress the first 4 tokens; " + _MASKS,
    ),
}
ALL_DIFFER = (
    "after the question, jaxkv has the budget's tokens of context and question together, and for "
    "streaming, tova and h2o of the answer too; kvpress keeps question and answer on top"
)
