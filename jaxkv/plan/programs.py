# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The two programs of generation as a chip would run them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxkv.generate.loop import decode_tokens, prefill_chunk
from jaxkv.generate.sampling import Greedy
from jaxkv.generate.state import start
from jaxkv.layers.base import Policy
from jaxkv.plan.aot import measured
from jaxkv.plan.chips import Chip
from jaxkv.plan.estimate import Setting

CHUNK = 512


def decode_step(setting: Setting, policy: Policy, tokens: int, chip: Chip) -> dict[str, Any]:
    """The program that decodes; see `aot.measured`."""
    step = functools.partial(decode_tokens, config=setting.config, policy=policy, sampler=Greedy())
    args = setting.params, _state(setting, policy, tokens), _integers(), _integers(2)
    return measured(chip, step, *args, donate=(1,))


def prompt_chunk(
    setting: Setting, policy: Policy, tokens: int, chunk: int | None, chip: Chip
) -> dict[str, Any]:
    """The program that reads a part of a prompt, or all of it where it must come at once."""
    whole = setting.plan(policy, tokens).whole_prompt
    size = tokens if whole else min(chunk or CHUNK, tokens)
    read = functools.partial(prefill_chunk, config=setting.config, policy=policy)
    batch = setting.batch
    args = setting.params, _state(setting, policy, tokens), _integers(batch, size)
    return measured(chip, read, *args, _integers(batch), donate=(1,))


def _state(setting: Setting, policy: Policy, tokens: int) -> Any:
    return jax.eval_shape(
        lambda: start(setting.config, policy, setting.batch, tokens, setting.kv_dtype, 0)
    )


def _integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
