# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Bytes and the roofline of a decode step, from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import AbstractMesh

from jaxkv.cache.bytes import nbytes
from jaxkv.cache.geometry import part_of
from jaxkv.checkpoints.named import abstract_params
from jaxkv.core.shards import BLOCK, DATA, MODEL
from jaxkv.layers.base import Cache, Policy
from jaxkv.models import layouts, placed
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import geometry
from jaxkv.models.layouts import settled
from jaxkv.models.mesh import Meshed, device_bytes, meshed
from jaxkv.models.plan import Plan, plan
from jaxkv.plan.chips import LATENCY, Chip

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
      data, model: chips of the mesh's axes.
      layout: of caches over them; None is what suits the policy.
    """

    config: ModelConfig
    batch: int
    dtype: str
    kv_dtype: str
    weights: str | None
    data: int = 1
    model: int = 1
    layout: str | None = None

    @property
    def devices(self) -> int:
        """Of the mesh."""
        return self.data * self.model

    @functools.cached_property
    def over(self) -> ModelConfig:
        """The model on the mesh."""
        if self.devices == 1:
            return self.config
        made = meshed(self.config, AbstractMesh((self.data, self.model), (DATA, MODEL)))
        assert isinstance(made, Meshed)
        return made.with_layout(self.layout)

    @functools.cached_property
    def params(self) -> Any:
        """Abstract, as they lie."""
        return placed.abstract(self.over, abstract_params(self.config, self.dtype, self.weights))

    def plan(self, policy: Policy, tokens: int) -> Plan:
        """Of a cache with room for `tokens`."""
        return plan(policy, geometry(self.config, self.batch, tokens, self.kv_dtype))

    def laid_out(
        self, policy: Policy, tokens: int, over: ModelConfig | None = None
    ) -> tuple[ModelConfig, int]:
        """The model with the layout of a cache for so many tokens, and the cache's capacity.

        Args:
          policy: any.
          tokens: T.
          over: the model on devices in the place of these.
        """
        config = self.over if over is None else over
        if not isinstance(config, Meshed):
            return config, tokens
        block = self.model * (BLOCK if tokens > self.model * BLOCK else 8)
        even = -(-tokens // block) * block
        shapes = geometry(config, self.batch, even, self.kv_dtype)
        made = settled(config, functools.partial(plan, policy), shapes)
        return made, even if made.layout == "slots" else tokens

    def cache_bytes(self, policy: Policy, tokens: int) -> int:
        """Of a cache for so many tokens, on each chip: of the cache of its part."""
        config, size = self.laid_out(policy, tokens)
        shapes = geometry(config, self.batch, size, self.kv_dtype)
        if isinstance(config, Meshed):
            shapes = part_of(shapes, config.lies)
        return plan(policy, shapes).physical_bytes

    def cache(self, policy: Policy, tokens: int) -> tuple[ModelConfig, Cache]:
        """Of so many tokens: abstract, as it lies; and the model with its layout."""
        config, size = self.laid_out(policy, tokens)
        shapes = geometry(config, self.batch, size, self.kv_dtype)
        if not isinstance(config, Meshed):
            return config, jax.eval_shape(plan(policy, shapes).init)
        return config, layouts.abstract(config, functools.partial(plan, policy), shapes)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one policy at one length on one chip, or on each chip of a mesh.

    Attributes:
      tokens: T, of the context.
      weights_bytes: of all parameters.
      cache_bytes: of the cache's arrays.
      read_bytes: of weights and of kept keys and values, that a decode step reads.
      share: of the chip's memory that weights and cache take.
      fits: whether what is left is as much as `RESERVED`.
      step_ms: milliseconds a decode step takes at least: what it reads at the chip's bandwidth, and
        `LATENCY` for each collective.
      longest: tokens of the longest context that fits; `ENDLESS` if any does.
      layout: of the cache over a mesh; None on one chip.
      collectives: of a decode step, in which chips that share weights wait for each other.
    """

    tokens: int
    weights_bytes: int
    cache_bytes: int
    read_bytes: int
    share: float
    fits: bool
    step_ms: float
    longest: int
    layout: str | None = None
    collectives: int = 0


def estimate(setting: Setting, policy: Policy, tokens: int, chip: Chip) -> Estimate:
    """Counts bytes; nothing is allocated and nothing compiled."""
    params = setting.params
    weights, planned = device_bytes(params), setting.plan(policy, tokens)
    config, held = setting.cache(policy, tokens)
    cache = device_bytes(held)
    room = int(chip.memory * (1 - RESERVED)) - weights
    share = cache / nbytes(held)
    read = _weights_read(setting.config, params) + int(_cache_read(planned, tokens) * share)
    layout = config.layout if isinstance(config, Meshed) else None
    waits = _collectives(layout, held) if setting.model > 1 else 0
    return Estimate(
        tokens=tokens,
        weights_bytes=weights,
        cache_bytes=cache,
        read_bytes=read,
        share=(weights + cache) / chip.memory,
        fits=cache <= room,
        step_ms=(read / chip.bandwidth + waits * LATENCY[chip.target.platform]) * 1e3,
        longest=longest(setting, policy, room),
        layout=layout,
        collectives=waits,
    )


def _collectives(layout: str | None, held: Cache) -> int:
    """Of each layer those out of attention and MLP; into the embedding's rows, and the logits.

    By rows and by slots a layer also gathers its queries, keys and values; by rows, what comes out
    of attention too; where slots are dealt out, a maximum and a sum merge it.
    """
    layers, dealt = len(held.layers), 0
    for layer in held.layers:
        specs = [x.sharding.spec for x in jax.tree.leaves(layer)]
        dealt += any(len(spec) > layouts.SLOTS and spec[layouts.SLOTS] for spec in specs)
    more = {"heads": 0, "rows": 2 * layers, "slots": layers + 2 * dealt}[layout or "heads"]
    return 2 * layers + 2 + more


def _weights_read(config: ModelConfig, params: Any) -> int:
    """Every weight, but of an embedding that is not the head too the rows of its tokens."""
    rows = 0 if config.tie_embeddings else device_bytes(params["embed"])
    return device_bytes(params) - rows


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
        return setting.cache_bytes(policy, tokens)

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
