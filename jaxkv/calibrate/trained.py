# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Gates of KV heads, trained to give up the whole context (arXiv 2410.10819, section 3.2)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.calibrate.gated import Gated, losses, stack_layers
from jaxkv.calibrate.needles import default_haystack
from jaxkv.calibrate.passkeys import Example, Recipe, make_example
from jaxkv.calibrate.training import (
    Report,
    State,
    make_optimizer,
    make_slope,
    make_step,
    start,
    train,
)
from jaxkv.calibrate.wordings import HELD_OUT
from jaxkv.checkpoints.model import Model
from jaxkv.core.progress import Progress
from jaxkv.policies.head_scores import sparsify
from jaxkv.train.checkpoints import Checkpoints

_CHUNK = 128  # tokens that attend at a time
_PADDED = 256  # examples are padded to multiples of this: one compiled program for each
_JUDGED_AT = (0.5, 0.75)  # sparsities at which heads are open or closed, as when deployed
HELD_OUT_EXAMPLES = 4


@dataclasses.dataclass(frozen=True)
class Training:
    """Attributes:
    recipe: of the examples.
    steps: how many, one example each.
    sinks, recent: of the streaming heads.
    lr: the highest learning rate.
    reg: weight of the gates' mean.
    checkpoint_every: steps.
    """

    recipe: Recipe
    steps: int
    sinks: int
    recent: int
    lr: float
    reg: float
    checkpoint_every: int


def train_gates(
    model: Model, how: Training, seed: int, checkpoints: Checkpoints, progress: Progress
) -> np.ndarray:
    """The gates that do best on wordings and a haystack that they never saw.

    Returns:
      Float32 [L, K], in [0, 1].
    """
    config = model.config
    policy = Gated(how.sinks, how.recent, _CHUNK)

    def loss(gates: Array, params: Any, *example: Array) -> tuple[Array, Array]:
        return losses(params, config, gates, policy, *example)

    def batch(index: int) -> tuple[Any, ...]:
        return _batch(model, how.recipe, seed, index)

    optimizer, slope = make_optimizer(how.lr, how.steps), make_slope(loss)
    update = make_step(slope, optimizer, how.reg)
    gates = jnp.ones((config.num_layers, config.num_kv_heads), jnp.float32)
    params = stack_layers(model.params)
    recipe = held_out(how.recipe)
    unseen = [_batch(model, recipe, seed, index) for index in range(HELD_OUT_EXAMPLES)]

    def step(state: State, *example: Array) -> tuple[State, Report]:
        return update(state, params, *example)

    def judge(gates: Array) -> float:
        # The derivative is thrown away: its program is there, and another would take as long.
        masks = [jnp.asarray(sparsify(np.asarray(gates), x), jnp.float32) for x in _JUDGED_AT]
        found = [
            slope(mask, jnp.float32(0), params, *example)[0].distill
            for mask in masks
            for example in unseen
        ]
        return float(np.mean([float(x) for x in found]))

    return train(
        step, start(gates, optimizer), batch, judge, how.steps, checkpoints,
        how.checkpoint_every, progress,
    )  # fmt: skip


def held_out(recipe: Recipe) -> Recipe:
    """The same of other wordings, in a haystack that is of no recipe."""
    return dataclasses.replace(
        recipe, wordings=tuple(HELD_OUT.values()), haystacks=(default_haystack(),)
    )


def padded(example: Example, multiple: int) -> tuple[Array, Array, Array]:
    """A batch of one: tokens [1, T], lengths [1] and labels [1, T], T a multiple."""
    size = len(example.tokens)
    room = [(0, 0), (0, -size % multiple)]
    return (
        jnp.asarray(np.pad(example.tokens[None], room)),
        jnp.asarray([size], jnp.int32),
        jnp.asarray(np.pad(example.labels[None], room)),
    )


def _batch(model: Model, recipe: Recipe, seed: int, index: int) -> tuple[Array, Array, Array]:
    example = make_example(recipe, model.tokenizer, seed, index)
    model.check_ids(example.tokens.tolist(), "an example's")
    return padded(example, _PADDED)
