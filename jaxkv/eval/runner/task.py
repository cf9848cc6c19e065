# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a task is: its flags, a check of them before any work, the work, and a plot of it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxkv.checkpoints.model import Model
from jaxkv.cli.devices import Devices
from jaxkv.core.progress import Progress
from jaxkv.eval.runner.journal import Journal
from jaxkv.eval.runner.result import Result
from jaxkv.layers.base import Policy


@dataclasses.dataclass(frozen=True)
class Common:
    """What every task is told.

    Attributes:
      model: its name.
      dtype: of the weights.
      weights: "int8" or "int4", of the layers' linear maps; None is `dtype`, or as they were saved.
      kv_dtype: of keys and values; None is that of the weights.
      policies: at least one; each gives one result.
      prefill_chunk: tokens a call; None leaves it to the task.
      max_length: tokens that a cache which keeps everything can hold; None leaves it to the task.
      seed: of whatever is drawn.
      json: whether the report is JSON.
      plot: where to draw to, or None.
      plot_kind: what is drawn, of the task's `kinds`; None is its usual picture.
      out: a file for the report, or None.
      overwrite: whether a finished report in `out` is replaced.
      command: what was typed.
      devices: where the model and the caches lie.
      fingerprint: of the loaded model; None before it is loaded.
      journal: finished pieces of work, for those that `evaluate` can skip.
      revision: of the model on the hub; None is its main branch.
      tokenizer: the model that it is of; None is the model's own.
    """

    model: str
    dtype: str
    weights: str | None
    kv_dtype: str | None
    policies: tuple[Policy, ...]
    prefill_chunk: int | None
    max_length: int | None
    seed: int
    json: bool
    plot: str | None
    plot_kind: str | None
    out: str | None
    overwrite: bool
    command: str
    devices: Devices = Devices()
    fingerprint: str | None = None
    journal: Journal = Journal(None)
    revision: str | None = None
    tokenizer: str | None = None

    @property
    def loaded(self) -> tuple[str, ...]:
        """What tells the loaded model from others."""
        named = {"revision": self.revision, "tokenizer": self.tokenizer}
        more = [f"{name}={value}" for name, value in named.items() if value is not None]
        told = (self.model, self.dtype, self.weights, *more, self.fingerprint)
        return tuple(part for part in told if part)

    @property
    def settings(self) -> list[Any]:
        """All that a result depends on, but for the policy and the task's own."""
        return [*self.loaded, self.kv_dtype, self.prefill_chunk, self.max_length, self.seed]


@dataclasses.dataclass(frozen=True)
class Task:
    """One evaluation.

    Attributes:
      name: what users type.
      summary: one line of help.
      description: the help of the task itself: what is measured, and what the report's names mean.
      add_arguments: declares flags, given the parser's `add_argument`.
      check: turns parsed flags into the task's own options; raises InputError.
      evaluate: the work: one result for each policy, in order, each as soon as it is there.
      draw: puts the results on a `matplotlib.figure.Figure`, from what their JSON has.
      kinds: further pictures that rows can give, of `pictures.plot.KINDS`.
      compared: whether a row of the report depends on the other policies of the list.
    """

    name: str
    summary: str
    description: str
    add_arguments: Callable[[Callable[..., Any]], None]
    check: Callable[[argparse.Namespace], Any]
    evaluate: Callable[[Model, Common, Any, Progress], Iterable[Result]]
    draw: Callable[[Any, Sequence[Result]], None]
    kinds: tuple[str, ...] = ()
    compared: bool = False
