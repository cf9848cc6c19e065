# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A run of many steps: it goes on from its newest state, and tells how it goes."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from jaxkv.core.errors import InputError
from jaxkv.train.checkpoints import Checkpoints

_LINES = 20  # in a log
_State = TypeVar("_State")  # any pytree of arrays


@dataclasses.dataclass(frozen=True)
class Rhythm:
    """Attributes:
    steps: how many.
    judged: every so many steps the state is judged, and at the end.
    kept: every so many it is kept; not at the end, where it is the caller's.
    """

    steps: int
    judged: int
    kept: int


def run(
    step: Callable[..., tuple[_State, Any]],
    state: _State,
    batch: Callable[[int], tuple[Any, ...]],
    judge: Callable[[_State, int], _State],
    tell: Callable[[_State, np.ndarray, float | None], str],
    rhythm: Rhythm,
    checkpoints: Checkpoints,
    progress: Callable[[int, int], None],
) -> _State:
    """All steps, from the newest checkpoint on, if there is one.

    Args:
      step: (state, *batch) -> (state, report), a dataclass of float32 scalars, of which the first
        is the loss. It is compiled for every shape that `batch` gives.
      state: before the first step.
      batch: what a step is called with, by its number from 0: a run that was stopped needs no
        other memory of what it has seen.
      judge: (state, steps done) -> state, which may remember what was found.
      tell: what a line of the log says, of the state, the means of what was reported since the
        last line, and the seconds a step where nothing was compiled.
      rhythm: when what is done.
      checkpoints: where states are kept.
      progress: called after every step.

    Returns:
      The state after the last step.

    Raises:
      InputError: a checkpoint of another run, or what a step reports is not finite; no state is
        kept after that.
    """
    steps = rhythm.steps
    begin, state = checkpoints.restore(state)
    if begin:
        _say(f"going on after step {begin} of {steps}")
    shapes: set[tuple[int, ...]] = set()
    reports: list[list[float]] = []  # since the last line
    times: list[float] = []  # and seconds, where nothing was compiled
    for index in range(begin, steps):
        args, done = batch(index), index + 1
        known, since = args[0].shape in shapes, time.perf_counter()
        if not known:
            shapes.add(args[0].shape)
            _say(f"compiling for {args[0].shape[-1]} tokens ...")
        state, report = step(state, *args)
        reports.append(_finite(report, done, checkpoints))
        if known:
            times.append(time.perf_counter() - since)
        if done % max(steps // _LINES, 1) == 0 or done == steps:
            seconds = float(np.mean(times)) if times else None
            told = tell(state, np.mean(reports, axis=0), seconds)
            _say(f"step {done:>{len(str(steps))}}/{steps}  {told}")
            reports, times = [], []
        progress(done, steps)
        if done % rhythm.judged == 0 or done == steps:
            state = judge(state, done)
        if done % rhythm.kept == 0 and done < steps:
            checkpoints.save(done, state)
    return state


def _finite(report: Any, done: int, checkpoints: Checkpoints) -> list[float]:
    """What a step reports, as numbers."""
    found = {name: float(value) for name, value in vars(report).items()}
    for name, value in found.items():
        if not math.isfinite(value):
            last = checkpoints.newest
            kept = f"; {checkpoints.folder} keeps the state after step {last}" if last else ""
            raise InputError(
                f"the {name} is {value} at step {done}: the model, in this dtype and at this "
                f"learning rate, does not give finite numbers{kept}"
            )
    return list(found.values())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
