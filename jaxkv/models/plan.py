# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A model under a policy: what each of its layers keeps and needs, and what that costs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax import Array

from jaxkv.cache.bytes import nbytes
from jaxkv.cache.pool import Pool
from jaxkv.cache.shared import Candidates, Shared, share_out
from jaxkv.cache.slab import Slab
from jaxkv.core.errors import InputError
from jaxkv.core.typing import Queries, Rotation
from jaxkv.layers.base import (
    FLEETING,
    Cache,
    Chunk,
    Facts,
    FromFull,
    Geometry,
    LayerCache,
    LayerPolicy,
    Policy,
    WholePrompt,
)
from jaxkv.layers.declared import is_shared
from jaxkv.layers.replayed import Replay
from jaxkv.layers.ring import of_window
from jaxkv.layers.shared import SharedLayer
from jaxkv.policies.full import Full
from jaxkv.policies.registry import check_policy_given


@dataclasses.dataclass(frozen=True)
class Plan:
    """All layers of a model, those with a window of their own included.

    Attributes:
      policy: whose plan it is.
      geometry: the static shapes.
      layers: the policy of each layer.
    """

    policy: Policy
    geometry: Geometry
    layers: tuple[LayerPolicy, ...]

    @functools.cached_property
    def facts(self) -> tuple[Facts, ...]:
        """Of each layer."""
        return tuple(layer.facts() for layer in self.layers)

    @property
    def keeps(self) -> tuple[tuple[int, ...], ...]:
        """The most tokens that each KV head of each layer ever keeps."""
        return tuple(facts.keeps for facts in self.facts)

    @property
    def most_kept(self) -> int:
        """The most that any head keeps."""
        return max((most for keeps in self.keeps for most in keeps), default=0)

    @property
    def grows(self) -> bool:
        """Whether a row is full after `geometry.max_length` tokens."""
        return any(facts.grows for facts in self.facts)

    @property
    def whole_prompt(self) -> bool:
        """Whether a prompt must come in one call, because a layer chooses after it."""
        return any(isinstance(layer, WholePrompt) for layer in self.layers)

    @property
    def chooses(self) -> bool:
        """Whether it can choose from a cache that kept everything: some evidence is gone then."""
        return all(
            isinstance(layer, FromFull) and not set(FLEETING) & set(layer.looks_at()[0])
            for layer in self.layers
        )

    @property
    def repeats(self) -> Replay | None:
        """How the model repeats a prompt for it, which it then reads twice; None if it does not."""
        asked = [layer.looks_at()[0] for layer in self.layers if isinstance(layer, FromFull)]
        if not any("replay" in needs for needs in asked):
            return None
        return getattr(self.policy, "replay", None) or Replay()

    @property
    def looks_at(self) -> tuple[int, bool]:
        """What it must know of the queries then: how many of the last, and the moments of all."""
        asked = [layer.looks_at() for layer in self.layers if isinstance(layer, FromFull)]
        last = max((count for needs, count in asked if "mass" in needs), default=0)
        return last, any("moments" in needs for needs, _ in asked)

    @property
    def far(self) -> bool:
        """Whether a query may see a key that is any number of tokens away; see `Facts`."""
        return any(facts.far for facts in self.facts)

    @property
    def later(self) -> int | None:
        """Tokens of later prompts that are kept, where only a first one is chosen from."""
        found = [facts.later for facts in self.facts if facts.later is not None]
        return min(found, default=None)

    @property
    def couples_heads(self) -> bool:
        """Whether the KV heads of some layer cannot be kept apart."""
        return any(facts.couples_heads for facts in self.facts)

    @property
    def nominal_bytes(self) -> int:
        """Keys and values that are kept, in bytes, for the whole batch.

        The budget by the policy's own formula, with no slot for the newest token, no positions and
        no rounding: the measure that physical bytes are held against.
        """
        tokens = sum(sum(facts.keeps) + facts.copies * len(facts.keeps) for facts in self.facts)
        return self.geometry.batch_size * tokens * self.geometry.bytes_per_token()

    @functools.cached_property
    def physical_bytes(self) -> int:
        """What the arrays of a cache take, for the whole batch; nothing is allocated."""
        return nbytes(jax.eval_shape(self.init))

    @property
    def joint(self) -> tuple[int, ...]:
        """The layers whose budget is one."""
        return tuple(i for i, layer in enumerate(self.layers) if isinstance(layer, SharedLayer))

    def init(self) -> Cache:
        """An empty cache."""
        pool = None
        if self.joint:
            first = self.layers[self.joint[0]]
            assert isinstance(first, SharedLayer)
            pool = first.pool(len(self.joint))
        return Cache(tuple(layer.init() for layer in self.layers), self.geometry.whole, pool)

    def joined(self, layers: Sequence[LayerCache | Candidates], pool: Pool | None) -> Cache:
        """The cache after what its layers hold has been decided, where they decide together.

        Args:
          layers: what each layer holds, or has to choose from.
          pool: of all, before.
        """
        held = list(layers)
        chosen = [x for x in layers if isinstance(x, Candidates)]
        if chosen and pool is not None:
            first = self.layers[self.joint[0]]
            assert isinstance(first, SharedLayer)
            pool, shares = share_out(pool, chosen, first.total(len(self.joint)))
            for index, share in zip(self.joint, shares, strict=True):
                held[index] = share
        return Cache(tuple(held), self.geometry.whole, pool)

    def check(self, cache: Cache) -> None:
        """Refuses a cache that this policy did not make, whatever form its keys are held in.

        Raises:
          InputError: names the first of them.
        """
        if is_shared(self.policy):
            return  # in a program of ours, whose caches are made or read by the policy itself
        name, layers = type(self.policy).__name__, cache.layers
        if len(layers) != len(self.layers):
            raise InputError(f"the cache has {len(layers)} layers; {name} has {len(self.layers)}")
        for index, (found, made) in enumerate(zip(layers, self._told, strict=True)):
            if (told := _told(found)) != made:
                raise InputError(
                    f"the cache was made for another policy than {name}: its layer {index} holds "
                    f"{told[0]}, and it should be {made[0]}"
                )
        if _told(cache.pool) != _told(jax.eval_shape(self.init).pool):
            raise InputError(f"the cache was made for another policy than {name}: so is its pool")

    @functools.cached_property
    def _told(self) -> tuple[Any, ...]:
        return tuple(_told(layer) for layer in jax.eval_shape(self.init).layers)


def _told(layer: LayerCache) -> tuple[str, Any]:
    """What a layer's cache is, but for the form of its keys and values: in words, and its tree."""
    parts, tree = jax.tree.flatten(layer, is_leaf=lambda x: isinstance(x, Slab | Pool))
    arrays = [part.pos if isinstance(part, Slab | Pool) else part for part in parts]
    words = ", ".join(f"{x.dtype}{list(x.shape)}" for x in arrays)
    return f"{type(layer).__name__} of {words}", tree


def with_pool(layer: LayerCache, pool: Pool | None) -> LayerCache:
    """A layer's cache, with the pool that it shares if it does."""
    return dataclasses.replace(layer, pool=pool) if isinstance(layer, Shared) else layer


def plan(policy: Policy, geometry: Geometry) -> Plan:
    """The plan of a model's cache.

    Raises:
      InputError: what was given is no policy; no layer is left to one that is to keep less than
        everything; or a layer's policy is not one.
    """
    return _plan(check_policy_given(policy), geometry)


@functools.lru_cache(maxsize=64)
def _plan(policy: Policy, geometry: Geometry) -> Plan:
    windows = geometry.windows
    if windows and all(windows) and not isinstance(policy, Full):
        raise InputError(
            f"policy is {type(policy).__name__}, but every layer of this model has a sliding "
            f"window of its own, of {windows[0] + 1} tokens; it must be full, which keeps just "
            "these"
        )
    layers = []
    for index in range(geometry.num_layers):
        if windows and windows[index] and not isinstance(policy, Full):
            layers.append(of_window(windows[index], geometry))
            continue
        layer = policy.at(index, geometry)
        if isinstance(layer, type) or not isinstance(layer, LayerPolicy):
            raise InputError(
                f"{type(policy).__name__}.at gives {layer!r:.60}; a layer's policy has init, take "
                "and facts"
            )
        layers.append(layer)
    return Plan(policy, geometry, tuple(layers))


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

    def facts(self) -> Facts:
        """As the layer."""
        return self.layer.facts()
