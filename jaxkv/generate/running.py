# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How the streams of a policy are run: with a cache, or by running the model again each time."""

from __future__ import annotations

import dataclasses
import functools

from jax import Array

from jaxkv.checkpoints.model import Model
from jaxkv.core.typing import Lengths, Logits, Params, Tokens
from jaxkv.generate import recompute
from jaxkv.generate.recompute import Recomputing, Remembered
from jaxkv.layers.base import Cache, Geometry, Policy
from jaxkv.models import decoder, layouts
from jaxkv.models.config import ModelConfig
from jaxkv.models.layouts import settled
from jaxkv.models.mesh import Meshed
from jaxkv.models.placed import beside
from jaxkv.models.plan import Plan, plan
from jaxkv.policies.recompute import SlidingRecompute
from jaxkv.policies.scored import ScoredPolicy


def running(policy: Policy, geometry: Geometry) -> Plan | Recomputing:
    """What a policy keeps of its streams, and how it begins them.

    Raises:
      InputError: the policy cannot be this model's.
    """
    if isinstance(policy, SlidingRecompute):
        return Recomputing(policy.window, geometry)
    return plan(policy, geometry)


def prepared(model: Model, policy: Policy) -> Model:
    """The model with what a policy has beside its parameters."""
    if not isinstance(policy, ScoredPolicy):
        return model
    params = policy.prepare(model.params, decoder.geometry(model.config, 1, 1))
    if params is model.params:
        return model
    return dataclasses.replace(model, params=beside(model.config, params))


def laid_out(config: ModelConfig, policy: Policy, geometry: Geometry) -> ModelConfig:
    """The model with the layout of caches that was asked for or suits the policy: see `settled`."""
    if not isinstance(config, Meshed):
        return config
    return settled(config, functools.partial(running, policy), geometry)


def begun(config: ModelConfig, policy: Policy, geometry: Geometry) -> Cache | Remembered:
    """An empty cache where the model is, whose layout is settled."""
    planner = functools.partial(running, policy)
    if isinstance(config, Meshed):
        return layouts.begun(config, planner, geometry)
    return planner(geometry).init()


def forward(
    params: Params,
    config: ModelConfig,
    policy: Policy,
    tokens: Tokens,
    held: Cache | Remembered,
    lengths: Lengths | None = None,
) -> tuple[Logits, Cache | Remembered]:
    """As `decoder.forward`, under any policy; `held` is what `running(..).init()` began."""
    if isinstance(held, Remembered):
        return recompute.forward(params, config, tokens, held, lengths)
    return decoder.forward(params, config, policy, tokens, held, lengths)


def advance(
    params: Params,
    config: ModelConfig,
    policy: Policy,
    tokens: Tokens,
    held: Cache | Remembered,
    lengths: Lengths,
) -> tuple[Array, Cache | Remembered]:
    """As `decoder.advance`, under any policy."""
    if isinstance(held, Remembered):
        return recompute.advance(params, config, tokens, held, lengths)
    return decoder.advance(params, config, policy, tokens, held, lengths)
