# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What all layers of a model keep under a policy, those with a window of their own included."""

from __future__ import annotations

import dataclasses

from jax import Array

from jaxkv.errors import InputError
from jaxkv.policies.base import (
    Cache,
    Chunk,
    Geometry,
    LayerCache,
    LayerPolicy,
    Policy,
    TokenPolicy,
    WholePrompt,
)
from jaxkv.policies.full import Full
from jaxkv.policies.streaming import RingLayer
from jaxkv.typing import Queries, Rotation


def layer_policy(policy: Policy, layer: int, geometry: Geometry) -> LayerPolicy:
    """The policy's, or a ring where the model itself lets a layer see only a window.

    Raises:
      InputError: no layer is left to a policy that is to keep less than everything.
    """
    window = geometry.windows[layer] if geometry.windows else 0
    if not window:
        return policy.at(layer, geometry)
    if all(geometry.windows) and not isinstance(policy, Full):
        raise InputError(
            f"policy is {type(policy).__name__}, but every layer of this model has a sliding "
            f"window of its own, of {window + 1} tokens; it must be full, which keeps just these"
        )
    if isinstance(policy, Full):  # which holds no more in any row
        window = min(window, geometry.max_length)
    return RingLayer(geometry, sinks=0, window=window, in_cache=False)


@dataclasses.dataclass(frozen=True)
class InChunks(WholePrompt):
    """Lets a layer take a whole prompt as those do that choose after it: chunk by chunk.

    Where some layers of a model need a prompt in one call, all get it so; a ring would then compare
    every token with every other.
    """

    layer: LayerPolicy

    def init(self) -> LayerCache:
        """That of the layer."""
        return self.layer.init()

    def step(self, cache: LayerCache, chunk: Chunk) -> tuple[LayerCache, Queries]:
        """As the layer."""
        return self.layer.take(cache, chunk)

    def open(self, cache: LayerCache, count: int) -> LayerCache:
        """The cache itself."""
        del count
        return cache

    def feed(
        self, draft: LayerCache, start: Array, count: int, chunk: Chunk
    ) -> tuple[LayerCache, Queries]:
        """A chunk goes in."""
        del start, count
        return self.layer.take(draft, chunk)

    def close(self, draft: LayerCache, cache: LayerCache, rope: Rotation | None) -> LayerCache:
        """What the chunks left."""
        del cache, rope
        return draft

    def kept(self, seen: int) -> tuple[int, ...]:
        """As the layer."""
        return self.layer.kept(seen)


def init_layers(policy: Policy, geometry: Geometry) -> tuple[LayerCache, ...]:
    """An empty cache for every layer."""
    return tuple(layer_policy(policy, i, geometry).init() for i in range(geometry.num_layers))


def init(policy: Policy, geometry: Geometry) -> Cache:
    """An empty cache."""
    if isinstance(policy, TokenPolicy):
        layer_policy(policy, 0, geometry)  # or be refused
        return Cache((), policy.empty_memory(geometry), geometry)
    return Cache(init_layers(policy, geometry), None, geometry)


def nominal_bytes(policy: Policy, geometry: Geometry) -> int:
    """What the policy says that it keeps, in bytes of keys and values, for the whole batch.

    The budget by the policy's own formula, with no slot for the newest token, no positions and no
    rounding: the measure that physical bytes are held against.
    """
    if isinstance(policy, TokenPolicy):
        return policy.nominal_bytes(geometry)
    for_ever = 2**31 - 1
    tokens = sum(
        sum(layer_policy(policy, layer, geometry).kept(for_ever))
        for layer in range(geometry.num_layers)
    )
    return geometry.batch_size * tokens * geometry.bytes_per_token()


def reads_whole_prompt(policy: Policy, geometry: Geometry) -> bool:
    """Whether a prompt must come in one call, because the policy chooses after it."""
    if isinstance(policy, TokenPolicy):
        return False
    layers = (layer_policy(policy, i, geometry) for i in range(geometry.num_layers))
    return any(isinstance(layer, WholePrompt) for layer in layers)


def sized_by_length(policy: Policy, geometry: Geometry) -> bool:
    """Whether what is kept depends on `geometry.max_length`."""
    if isinstance(policy, TokenPolicy):
        return False

    def kept(max_length: int) -> list[tuple[int, ...]]:
        g = dataclasses.replace(geometry, max_length=max_length)
        return [layer_policy(policy, layer, g).kept(2**31 - 1) for layer in range(g.num_layers)]

    return kept(1) != kept(2**20)


def sees_far(policy: Policy, geometry: Geometry) -> bool:
    """Whether a query may see a key that is any number of tokens away.

    A window bounds distances, and so do positions inside the cache. Where nothing does, a stream
    longer than what the model was trained on meets distances that it never saw.
    """
    if isinstance(policy, TokenPolicy):
        return False
    layers = (layer_policy(policy, i, geometry) for i in range(geometry.num_layers))
    return not all(
        isinstance(layer, RingLayer) and (layer.in_cache or not layer.sinks) for layer in layers
    )


def most_kept(policy: Policy, geometry: Geometry) -> int | None:
    """The most tokens that any KV head ever keeps, or None if one of them keeps everything.

    None means that a row is full after `geometry.max_length` tokens.
    """
    endless = 2**30
    wide = dataclasses.replace(geometry, max_length=endless)
    kept = [
        count
        for layer in range(geometry.num_layers)
        for count in layer_policy(policy, layer, wide).kept(2**31 - 1)
    ]
    most = max(kept, default=0)
    return None if most >= endless else most
