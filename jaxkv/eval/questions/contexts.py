# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Contexts that are read once, with everything kept, for all policies that can choose from it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxkv.cache.bytes import nbytes
from jaxkv.checkpoints.model import Model
from jaxkv.generate.compress import compressed
from jaxkv.generate.room import ROUND
from jaxkv.generate.session import Session, Settings
from jaxkv.generate.state import State, row_keys
from jaxkv.layers.base import Cache, Policy
from jaxkv.models.decoder import geometry
from jaxkv.models.mesh import Meshed
from jaxkv.models.plan import Plan, plan
from jaxkv.policies.full import Full
from jaxkv.policies.recompute import SlidingRecompute

MOST_BYTES = 2**31  # of full caches that are held; others are read again for each policy


@dataclasses.dataclass(frozen=True)
class Reading:
    """A batch of contexts after one prefill.

    Attributes:
      prompts: their token ids.
      state: of `Full`, with what the policies look at.
      seconds: that the prefill took.
      peak_bytes: of its program.
    """

    prompts: list[list[int]]
    state: State
    seconds: float
    peak_bytes: int


@dataclasses.dataclass
class Contexts:
    """Batches by their key, each read when it is first asked for.

    Attributes:
      model: the model.
      policy: what reads them.
      serves: the policies that choose from what was read.
      held: batches.
    """

    model: Model
    policy: Full
    serves: tuple[Policy, ...]
    held: dict[str, Reading] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, policies: Sequence[Policy]) -> Contexts:
        """For those of the policies that choose after a prompt, if there are two or more.

        Over a mesh each reads for itself: not all of their caches lie alike.
        """
        if isinstance(model.config, Meshed):
            return cls(model, Full(), ())
        plans: dict[Policy, Plan] = {}
        for policy in policies:
            if not isinstance(policy, SlidingRecompute):
                planned = plan(policy, geometry(model.config, 1, ROUND))
                if planned.whole_prompt and planned.chooses:
                    plans[policy] = planned
        if len(plans) < 2:
            return cls(model, Full(), ())
        asked = [planned.looks_at for planned in plans.values()]
        queries, moments = zip(*asked, strict=True)
        reads = Full(queries=max(queries), moments=any(moments))
        return cls(model, reads, tuple(plans))

    def read(self, key: str, settings: Settings, prompts: list[list[int]]) -> Reading:
        """A batch, read now or before."""
        if key in self.held:
            return self.held[key]
        mine = dataclasses.replace(settings, policy=self.policy)
        longest = max(map(len, prompts))
        session = Session.begin(self.model, mine, len(prompts), longest, decodes=False)
        session.feed(prompts)
        peak = session.made.prefill.peak_bytes
        reading = Reading(prompts, session.state, session.timing.prefill_s, peak)
        size = sum(nbytes(kept.state.cache) for kept in [*self.held.values(), reading])
        if size <= MOST_BYTES:
            self.held[key] = reading
        return reading

    def choose(self, reading: Reading, policy: Policy, seed: int) -> tuple[State, float, int]:
        """What a policy keeps of a batch; what choosing took: seconds, and bytes at once."""
        began = time.perf_counter()
        cache = reading.state.cache
        assert isinstance(cache, Cache), "of `Full`"
        small, peak = compressed(self.model, cache, policy, reading.prompts)
        jax.block_until_ready(small)
        rows = reading.state.done.shape[0]
        state = State(
            small, jnp.copy(reading.state.logits), row_keys(seed, rows), jnp.zeros((rows,), bool)
        )
        return state, time.perf_counter() - began, peak
