# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Training of gates over a frozen model: a schedule, a step, and a loop that tells how it goes."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxkv.core.progress import Progress
from jaxkv.train.checkpoints import Checkpoints
from jaxkv.train.loop import Rhythm, run

if TYPE_CHECKING:
    import optax

_BINS = 10
_BLOCKS = " ▁▂▃▄▅▆▇█"

Step = Callable[..., tuple["State", "Report"]]


@flax.struct.dataclass
class State:
    """What a run is after some steps.

    Attributes:
      gates: float32 [L, K]; an update may have left some just outside of [0, 1].
      optimizer: the state of AdamW.
      best: float32 [L, K], the gates that were judged best so far.
      least: float32 scalar, what they were judged.
    """

    gates: Array
    optimizer: Any
    best: Array
    least: Array


@flax.struct.dataclass
class Report:
    """What a step found, before its update: float32 scalars."""

    loss: Array
    distill: Array


def rate(step: ArrayLike, steps: int) -> Array:
    """The share of the learning rate at a step, counted from 0: float32.

    Up from 0.1 over the first fifth of the steps, and down to 0.1 over the last (DuoAttention's
    training code).
    """
    ramp = max(steps // 5, 1)
    at = jnp.asarray(step, jnp.float32)
    up, down = (at + 1) / ramp, (steps - at) / ramp
    return jnp.minimum(1.0, jnp.minimum(jnp.maximum(up, 0.1), jnp.maximum(down, 0.1)))


def make_optimizer(lr: float, steps: int) -> optax.GradientTransformation:
    """AdamW without weight decay."""
    import optax

    return optax.adamw(lambda count: lr * rate(count, steps), weight_decay=0.0)


def make_slope(losses: Callable[..., tuple[Array, Array]]) -> Callable[..., tuple[Report, Array]]:
    """The compiled derivative: (gates, reg, *args) -> (report, slope [L, K]).

    It takes nearly all of the time to compile and to run. What changes from run to run, `reg` too,
    is an argument, so that a program is found again in jax's compilation cache.

    Args:
      losses: (gates, *args) -> (distill, mean of the gates); see `gated.losses`.
    """

    def loss(gates: Array, reg: Array, *args: Any) -> tuple[Array, Report]:
        distill, size = losses(gates, *args)
        value = distill + reg * size
        return value, Report(value, distill)

    def slope(gates: Array, reg: Array, *args: Any) -> tuple[Report, Array]:
        change, report = jax.grad(loss, has_aux=True)(gates, reg, *args)
        return report, change

    return jax.jit(slope)


def make_step(
    slope: Callable[..., tuple[Report, Array]], optimizer: optax.GradientTransformation, reg: float
) -> Step:
    """One update: (state, *args) -> (state, report).

    Args:
      slope: from `make_slope`.
      optimizer: of the gates.
      reg: the weight of the gates' mean.
    """

    @jax.jit
    def update(gates: Array, state: Any, change: Array) -> tuple[Array, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
            change, state = optimizer.update(change, state, gates)  # type: ignore[assignment]
        return gates + change, state

    def step(state: State, *args: Any) -> tuple[State, Report]:
        # Clipped in place before they are used: then the derivative at 0 and at 1 is that of the
        # inside, where `jnp.clip` would give half of it.
        gates = jnp.clip(state.gates, 0.0, 1.0)
        report, change = slope(gates, jnp.float32(reg), *args)
        gates, after = update(gates, state.optimizer, change)
        return dataclasses.replace(state, gates=gates, optimizer=after), report

    return step


def start(gates: Array, optimizer: optax.GradientTransformation) -> State:
    """A run of no steps."""
    return State(gates, optimizer.init(gates), gates, jnp.float32(jnp.inf))


def train(
    step: Step,
    state: State,
    batch: Callable[[int], tuple[Array, ...]],
    judge: Callable[[Array], float],
    steps: int,
    checkpoints: Checkpoints,
    every: int,
    progress: Progress,
) -> np.ndarray:
    """All steps, from the newest checkpoint on, if there is one; and the best gates on the way.

    More steps are not always better: gates go on to fit what they are trained on.

    Args:
      step: from `make_step`; it is compiled for every shape that `batch` gives.
      state: before the first step.
      batch: what a step is called with, by its number from 0.
      judge: how bad gates in [0, 1] are on what is never trained on.
      steps: how many.
      checkpoints: where states are kept.
      every: so many steps gates are judged and the state is kept, and at the end.
      progress: called after every step.

    Returns:
      The gates that were judged best, float32 [L, K], in [0, 1].

    Raises:
      InputError: a checkpoint of another run, or a loss that is not finite.
    """

    def tell(state: State, means: np.ndarray, seconds: float | None) -> str:
        took = "" if seconds is None else f"{seconds:.1f} s  "
        loss, distill = means
        shown = histogram(np.asarray(state.gates))
        return f"{took}loss {loss:.4f}  distill {distill:.4f}  {shown}"

    state = run(
        step, state, batch, functools.partial(_judged, judge), tell,
        Rhythm(steps, judged=every, kept=every), checkpoints,
        functools.partial(progress, "training gates"),
    )  # fmt: skip
    return np.asarray(state.best)


def _judged(judge: Callable[[Array], float], state: State, done: int) -> State:
    """The state, which knows whether its gates are the best so far."""
    gates = jnp.clip(state.gates, 0.0, 1.0)
    found = judge(gates)
    better = found < float(state.least)
    print(
        f"step {done}: held out {found:.4f}{', the best so far' if better else ''}",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return dataclasses.replace(state, best=gates, least=jnp.float32(found)) if better else state


def histogram(gates: np.ndarray) -> str:
    """Such as "gates 0.810 |▁   ▂    █|": their mean, and how many there are in each tenth."""
    counts, _ = np.histogram(np.clip(gates, 0.0, 1.0), _BINS, (0.0, 1.0))
    # A bin with one gate shows, however full the others are.
    heights = -(-counts * (len(_BLOCKS) - 1) // counts.max())
    bars = "".join(_BLOCKS[height] for height in heights)
    return f"gates {np.clip(gates, 0.0, 1.0).mean():.3f} |{bars}|"
