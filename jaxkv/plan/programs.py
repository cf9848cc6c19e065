# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The two programs of generation as a chip would run them, or each chip of a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxkv.core.shards import DATA, MODEL
from jaxkv.generate.loop import Signature, decode_tokens, lowered, prefill_chunk
from jaxkv.generate.sampling import Greedy
from jaxkv.generate.state import abstract
from jaxkv.layers.base import Policy
from jaxkv.models import placed
from jaxkv.models.config import ModelConfig
from jaxkv.models.mesh import Meshed, sharding
from jaxkv.plan.aot import devices_of, measured, on_one
from jaxkv.plan.chips import Chip
from jaxkv.plan.estimate import Setting

CHUNK = 512


def decode_step(setting: Setting, policy: Policy, tokens: int, chip: Chip) -> dict[str, Any]:
    """The program that decodes; see `aot.measured`."""

    def args(config: ModelConfig, state: Any) -> tuple:
        return state, _integers(config), _integers(config, 2)

    return _measured(setting, policy, tokens, chip, decode_tokens, args, sampler=Greedy())


def prompt_chunk(
    setting: Setting, policy: Policy, tokens: int, chunk: int | None, chip: Chip
) -> dict[str, Any]:
    """The program that reads a part of a prompt, or all of it where it must come at once."""
    whole = setting.plan(policy, tokens).whole_prompt
    size, batch = tokens if whole else min(chunk or CHUNK, tokens), setting.batch

    def args(config: ModelConfig, state: Any) -> tuple:
        rows = functools.partial(_integers, config, axes=(DATA,))
        return state, rows(batch, size), rows(batch)

    return _measured(setting, policy, tokens, chip, prefill_chunk, args)


def _measured(
    setting: Setting, policy: Policy, tokens: int, chip: Chip, function: Callable[..., Any],
    args: Callable[[ModelConfig, Any], tuple], **statics: Any,
) -> dict[str, Any]:  # fmt: skip
    config, size = setting.laid_out(policy, tokens, _on_chips(setting, chip))
    params = placed.abstract(config, setting.params)
    state = abstract(config, policy, setting.batch, size, setting.kv_dtype)
    given = params, *args(config, state)
    if not isinstance(config, Meshed):
        given = on_one(chip, given)
    static = ("config", config), ("policy", policy), *statics.items()
    return measured(chip, lambda: lowered(function, Signature.of(given), static))


def _on_chips(setting: Setting, chip: Chip) -> ModelConfig:
    """The model on chips that are not here."""
    config = setting.over
    if not isinstance(config, Meshed):
        return config
    shape = setting.data, setting.model
    chips = np.asarray(devices_of(chip, setting.devices)).reshape(shape)
    return dataclasses.replace(config, over=Mesh(chips, (DATA, MODEL)))


def _integers(config: ModelConfig, *shape: int, axes: tuple[str, ...] = ()) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding(config, *axes))
