# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How many tokens and rows a batch of streams has room for, on one device or on many."""

from __future__ import annotations

import dataclasses
import functools

import jax

from jaxkv.cache.geometry import Geometry
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.machine import check_memory
from jaxkv.core.shards import BLOCK, DATA, MODEL
from jaxkv.generate.running import running
from jaxkv.generate.state import abstract
from jaxkv.layers.base import Policy
from jaxkv.models.decoder import geometry
from jaxkv.models.layouts import settled, suiting
from jaxkv.models.mesh import Meshed, device_bytes
from jaxkv.policies.registry import describe

ROUND = 128  # capacities are rounded up to this, so that similar prompts share their programs


def default_chunk(longest: int, whole: bool = False) -> int:
    """Tokens per prefill call: large ones run faster, a short prompt should not pay for them.

    `whole` is for policies that choose after the prompt, which must come in one call.
    """
    chunk = 64
    while chunk < min(longest, 512):
        chunk *= 2
    return -(-longest // chunk) * chunk if whole else chunk


def capacity(max_length: int | None, longest: int, new_tokens: int, fills: bool) -> int:
    """Tokens that a cache which keeps everything must hold, if this one `fills`.

    `max_length` is what was asked for, if anything was.

    Raises:
      InputError: `max_length` was set and is too small for the prompt.
    """
    if max_length is None:
        return -(-(longest + new_tokens) // ROUND) * ROUND
    if fills and longest >= max_length:
        raise InputError(
            f"the prompt has {longest} tokens; with max-length {max_length} a full cache "
            f"holds at most {max_length - 1} and the answer; raise --max-length or choose "
            "a policy that evicts"
        )
    return max_length


def check_room(
    model: Model, policy: Policy, batch_size: int, length: int, dtype: str, chunk: int, part: int
) -> None:
    """Refuses what could not fit before any of it is allocated.

    Args:
      model: the model.
      policy: what is kept.
      batch_size: B.
      length: tokens of a cache that grows with the stream.
      dtype: of keys and values.
      chunk: tokens of a prompt a call.
      part: how many of them go through a layer at once.

    Raises:
      InputError: says what would take how many bytes.
    """
    config = model.config
    shapes = geometry(config, batch_size, length, dtype)
    cache, rows, shares, told = running(policy, shapes).physical_bytes, batch_size, 1, ""
    # A CPU that plays many devices has the memory of one.
    if isinstance(config, Meshed) and jax.default_backend() != "cpu":
        cache = device_bytes(abstract(config, policy, batch_size, length, dtype).cache)
        rows, shares, told = rows // config.lies.data, config.lies.model, ", on each device,"
    name = describe(policy)["name"]
    check_memory(cache, f"a cache of {name} for {batch_size} x {length} tokens{told}")
    # The least that is there at once: the residual stream, and of a part what the MLP is made of.
    inner = config.intermediate_size // shares * (2 if config.gated else 1)
    least = rows * (chunk * config.hidden_size + min(part, chunk) * inner)
    size = least * model.params["embed"].dtype.itemsize
    check_memory(size, f"prefill in chunks of {chunk} tokens")


def over_devices(
    model: Model, policy: Policy, layout: str | None, batch_size: int, length: int, fixed: bool
) -> tuple[Model, int, int]:
    """The model with the layout of its caches, their capacity, and their rows.

    Args:
      model: any; one that is on one device stays as it is.
      policy: what is kept.
      layout: of caches, where one was asked for.
      batch_size: rows that were asked for. More are added, which have ended, until they divide.
      length: capacity that is needed.
      fixed: whether it is what it must be; else it is rounded to what slots divide into.

    Raises:
      InputError: caches cannot lie so; says what would work.
    """
    config = model.config
    if not isinstance(config, Meshed):
        if layout is not None:
            raise InputError(
                f"cache-layout is {layout!r}, and the model is on one device; give a mesh too"
            )
        return model, length, batch_size
    config = config.with_layout(layout or config.layout)
    data, devices = (config.mesh.shape[name] for name in (DATA, MODEL))
    block = devices * (BLOCK if length > devices * BLOCK // 2 else ROUND // 2)
    even = length if fixed else -(-length // block) * block
    planner = functools.partial(running, policy)

    def padded(unit: int) -> Geometry:
        return geometry(config, -(-batch_size // unit) * unit, even)

    shapes = padded(data)
    nowhere = config.layout is None and suiting(config, planner, shapes) is None
    if nowhere and not planner(shapes).grows:  # what grows would be on one device for each row
        config = config.with_layout("rows")
    if config.layout == "rows":
        shapes = padded(data * devices)
    config = settled(config, planner, shapes)
    kept = even if config.layout == "slots" else length
    return dataclasses.replace(model, config=config), kept, shapes.batch_size
