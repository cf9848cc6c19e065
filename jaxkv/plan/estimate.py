# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Bytes and the roofline of a decode step, from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jaxkv.cache.bytes import nbytes
from jaxkv.checkpoints.named import abstract_params
from jaxkv.layers.base import Policy
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import geometry
from jaxkv.models.plan import Plan, plan
from jaxkv.plan.chips import Chip

# Of a chip's memory, for programs, what they compute and the runtime: assumed. `--compile` tells.
RESERVED = 0.03
ENDLESS = 2**30  # tokens of a stream; whoever has room for them has room for more
EXACT = 1000  # the longest context is found to this part of it


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is planned.

    Attributes:
      config: the model.
      batch: B.
      dtype: of parameters and of what is computed.
      kv_dtype: of keys and values.
      weights: of the layers' linear maps: None is `dtype`.
    """

    config: ModelConfig
    batch: int
    dtype: str
    kv_dtype: str
    weights: str | None

    @functools.cached_property
    def params(self) -> Any:
        """Abstract."""
        return abstract_params(self.config, self.dtype, self.weights)

    def plan(self, policy: Policy, tokens: int) -> Plan:
        """Of a cache with room for `tokens`."""
        return plan(policy, geometry(self.config, self.batch, tokens, self.kv_dtype))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one policy at one length on one chip.

    Attributes:
      tokens: T, of the context.
      weights_bytes: of all parameters.
      cache_bytes: of the cache's arrays.
      read_bytes: of weights and of kept keys and values, that a decode step reads.
      share: of the chip's memory that weights and cache take.
      fits: whether what is left is as much as `RESERVED`.
      step_ms: milliseconds a decode step takes at least: what it reads at the chip's bandwidth.
      longest: tokens of the longest context that fits; `ENDLESS` if any does.
    """

    tokens: int
    weights_bytes: int
    cache_bytes: int
    read_bytes: int
    share: float
    fits: bool
    step_ms: float
    longest: int


def estimate(setting: Setting, policy: Policy, tokens: int, chip: Chip) -> Estimate:
    """Counts bytes; nothing is allocated and nothing compiled."""
    params = setting.params
    weights, planned = nbytes(params), setting.plan(policy, tokens)
    cache = planned.physical_bytes
    room = int(chip.memory * (1 - RESERVED)) - weights
    read = _weights_read(setting.config, params) + _cache_read(planned, tokens)
    return Estimate(
        tokens=tokens,
        weights_bytes=weights,
        cache_bytes=cache,
        read_bytes=read,
        share=(weights + cache) / chip.memory,
        fits=cache <= room,
        step_ms=read / chip.bandwidth * 1e3,
        longest=longest(setting, policy, room),
    )


def _weights_read(config: ModelConfig, params: Any) -> int:
    """Every weight, but of an embedding that is not the head too the rows of its tokens."""
    rows = 0 if config.tie_embeddings else nbytes(params["embed"])
    return nbytes(params) - rows


def _cache_read(planned: Plan, tokens: int) -> int:
    """Keys and values that a step reads after so many tokens, on average over its steps."""
    read = 0.0
    for facts in planned.facts:
        everything = sum(min(tokens, most) for most in facts.keeps)
        if facts.copies:  # which most steps read in place of everything
            part = min(tokens, facts.copies) * len(facts.keeps)
            everything = everything / facts.stride + part * (1 - 1 / facts.stride)
        read += everything
    return int(planned.geometry.batch_size * read * planned.geometry.bytes_per_token())


@functools.lru_cache(maxsize=256)
def longest(setting: Setting, policy: Policy, room: int) -> int:
    """Tokens of the longest context whose cache takes at most `room` bytes; 0 if none does.

    By bisection, first where a straight line would have it: caches grow by as much a token.
    """

    def size(tokens: int) -> int:
        return setting.plan(policy, tokens).physical_bytes

    low, high = 1, ENDLESS
    least, most = size(low), size(high)
    if most <= room:
        return ENDLESS
    if least > room:
        return 0
    straight = True
    while high - low > max(1, low // EXACT):
        guess = (low + high) // 2
        if straight:
            guess = low + (high - low) * (room - least) // (most - least)
            guess = min(max(guess, low + 1), high - 1)
        found = size(guess)
        straight = not straight
        if found <= room:
            low, least = guess, found
            # A little above the line's guess no more should fit.
            if straight is False and (above := guess + max(1, guess // EXACT)) < high:
                beyond = size(above)
                if beyond > room:
                    high, most = above, beyond
                else:
                    low, least = above, beyond
        else:
            high, most = guess, found
    return low
