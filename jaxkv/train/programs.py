# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The compiled programs of a training, what they are given, and what is noted of each step."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkv.core.shards import DATA
from jaxkv.generate.loop import Program, Signature, kept_program
from jaxkv.layers.base import Policy
from jaxkv.models.config import ModelConfig
from jaxkv.train.recipe import Recipe
from jaxkv.train.step import Report, State, judged, update
from jaxkv.train.text import Samples

_HELD = 64  # samples that a state is judged by, at most


@flax.struct.dataclass
class Kept:
    """A state, and what is known of the steps before it.

    Attributes:
      state: of the model.
      losses: float32 [steps].
      seconds: float32 [steps], without compiling.
      held: float32 [judgements], losses on what is held out.
    """

    state: State
    losses: Any
    seconds: Any
    held: Any


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled programs of a training, and how their arguments lie.

    Attributes:
      config, policy, recipe, skip, over: see `step.update`.
    """

    config: ModelConfig
    policy: Policy
    recipe: Recipe
    skip: int
    over: Mesh | None

    def rows(self, batch: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Any]:
        """Tokens and targets of a step, [A, B, T] each."""
        shape = -1, self.recipe.at_once, self.recipe.context
        tokens, targets = (self._lying(x.reshape(shape), None, DATA) for x in batch)
        return tokens, targets

    def step(self, kept: Kept, tokens: Any, targets: Any, index: int) -> tuple[Kept, Report]:
        """Step `index`, from 0; see `loop.run`."""
        state = self._lying(kept.state)
        program = self.updating((tokens, targets), state)
        since = time.perf_counter()
        state, report = program.call((tokens, targets), state)
        loss = float(report.loss)
        took = time.perf_counter() - since
        losses, seconds = noted(kept.losses, index, loss), noted(kept.seconds, index, took)
        return Kept(state, losses, seconds, kept.held), report

    def updating(self, rows: Any, state: State) -> Program:
        """The program of a step."""
        return kept_program(update, Signature.of((rows, state)), self._statics)

    def loss(self, params: Any, samples: Samples) -> float:
        """Mean loss of a token over samples that lie evenly over a text."""
        starts, size = samples.spread(_HELD), self.recipe.at_once
        total = self._lying(jnp.float32(0))
        for begin in range(0, len(starts), size):
            some = starts[begin : begin + size]
            weights = np.zeros(size, np.float32)
            weights[: len(some)] = 1 / len(starts)
            batch = samples.at(np.append(some, np.repeat(some[:1], size - len(some))))
            rows = tuple(self._lying(x, DATA) for x in batch)
            args = self._lying(params), total, rows, self._lying(weights, DATA)
            program = kept_program(judged, Signature.of(args), self._statics)
            total, _ = program.call(*args)
        return float(total)

    @property
    def _statics(self) -> tuple[tuple[str, Any], ...]:
        return tuple((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))

    def _lying(self, x: Any, *axes: Any) -> Any:
        """Arrays where the mesh has them; as they are without one."""
        if self.over is None:
            return x
        return jax.device_put(x, NamedSharding(self.over, PartitionSpec(*axes)))


def noted(values: Any, index: int, value: float) -> np.ndarray:
    """The values, with another in its place."""
    values = np.array(values)
    values[index] = value
    return values
