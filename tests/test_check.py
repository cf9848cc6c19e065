# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What an author is told whose policy does not keep the laws."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from own_policies import KeyDiff

from jaxkv.cache.slab import Slab
from jaxkv.check import LAWS, check_policy
from jaxkv.core.errors import InputError
from jaxkv.layers.base import Chunk, Facts, Geometry
from jaxkv.layers.full import FullLayer
from jaxkv.layers.ring import RingLayer
from jaxkv.policies.streaming import StreamingLLM


@pytest.mark.slow
def test_ours_and_theirs_pass_and_each_law_is_told() -> None:
    told: list[str] = []
    for policy in (StreamingLLM(2, 7), KeyDiff(12, sinks=2, window=4)):
        check_policy(policy, told.append)
    assert told == [*LAWS, *LAWS]


@dataclasses.dataclass(frozen=True)
class Faulty:
    """A full cache with a fault of one kind; a fault that is planted turns one law red."""

    fault: str = ""

    def at(self, layer: int, geometry: Geometry) -> Any:
        """The same for every layer."""
        del layer
        return FaultyLayer(FullLayer(geometry), self.fault)


@dataclasses.dataclass(frozen=True)
class FaultyLayer:
    """See `Faulty`."""

    full: FullLayer
    fault: str

    def init(self) -> Slab:
        """As a full one."""
        return self.full.init()

    def facts(self) -> Facts:
        """As a full one."""
        if self.fault == "one head":
            return Facts((64,))
        if self.fault == "says less":
            return Facts((20, 20))
        return self.full.facts()

    def take(self, cache: Slab, chunk: Chunk) -> Any:
        """As a full one, but for the fault."""
        if self.fault == "pads":  # counts padding as tokens
            chunk = dataclasses.replace(chunk, lengths=None)
        after, out = self.full.take(cache, chunk)
        if self.fault == "swapped":
            return out, after
        if self.fault == "grows":
            after = dataclasses.replace(after, pos=jnp.pad(after.pos, ((0, 0), (0, 0), (0, 1))))
        if self.fault == "nan":
            out = jnp.where(after.seen[:, None, None, None] > 41, jnp.nan, out)
        if self.fault == "rows":
            out = out + jnp.mean(out, axis=0, keepdims=True)
        if self.fault == "idle":
            after = dataclasses.replace(after, seen=after.seen + 1)
        if self.fault == "traced" and isinstance(chunk.q, jax.core.Tracer):
            out = out * 1.5
        if self.fault == "crash":
            raise RuntimeError("it broke\nin two lines")
        return after, out


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("one head", r"Faulty: facts\(\) says .* it must be 2 ints, one a KV head"),
        ("says less", "no head holds more than .* heads hold .44, 44. tokens of 44"),
        ("swapped", r"\(cache, out\) is the order"),
        ("grows", r"after 7 tokens int32\(3, 1, 64\) is int32\(3, 1, 65\)"),
        ("nan", "finite, .* comes out of step"),
        ("rows", "gives what it gives alone, but row 0 in a batch is"),
        ("pads", "padding does not matter, but|row . in a batch|heads hold"),
        ("idle", "a row that takes no token stays as it is, but int32"),
        ("traced", "compiled and op by op are the same, but they are .* apart"),
        ("crash", r"never change a cache's shapes, but RuntimeError: it broke"),
    ],
)
def test_a_fault_is_said_in_a_line(fault: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        check_policy(Faulty(fault))
    assert "\n" not in str(caught.value)


def test_what_is_no_policy_at_all() -> None:
    @dataclasses.dataclass(frozen=True)
    class Layerless:
        def at(self, layer: int, geometry: Geometry) -> Any:
            return RingLayer  # the class, and not one of it

    @dataclasses.dataclass(frozen=True)
    class Unhashable:
        sizes: Any = dataclasses.field(default_factory=list)

        def at(self, layer: int, geometry: Geometry) -> Any: ...

    for policy, says in (
        (
            Layerless(),
            "Layerless.at gives .*RingLayer.*; a layer's policy has init, take and facts",
        ),
        (Unhashable(), "Unhashable cannot be hashed .* numbers, texts and tuples"),
        (StreamingLLM(4, 12.0), "window of StreamingLLM is 12.0; it must be int"),
    ):
        with pytest.raises(InputError, match=says):
            check_policy(policy)
