# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A policy that is a score, and a way to share out a budget among heads."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import ClassVar

import numpy as np
from jax import Array

from jaxkv.core.errors import InputError
from jaxkv.core.typing import Params
from jaxkv.layers.base import NEEDS, Geometry
from jaxkv.layers.declared import swept
from jaxkv.layers.pooled import PooledLayer
from jaxkv.layers.prompt import Prompt
from jaxkv.layers.ring import within_windows
from jaxkv.layers.selected import SelectedLayer
from jaxkv.layers.shared import SharedLayer
from jaxkv.policies.budgets import by_shares, in_tokens, of_ruled, redistribute
from jaxkv.policies.shares import head_shares


@dataclasses.dataclass(frozen=True)
class ScoredPolicy(abc.ABC):
    """Base of policies that are a score. A subclass is a frozen dataclass with `score`.

    The prompt is read with full attention; then each KV head keeps its `sinks` first tokens, its
    `window` last ones, and of the others those with the highest score. A later prompt is chosen
    from together with what was kept; where a class says that its score is `agnostic` of questions,
    only if it does not fit into the room for decoded tokens, and it is kept whole if it does. Where
    a head's score looks at other heads, a class says that it `couples_heads`. All fields but
    `budget` are given by name.

    Attributes:
      budget: tokens of a prompt that a KV head keeps, sinks and window included, mean over the
        heads; as a float, a share of `max_length`.
      sinks: first tokens that are always kept.
      window: last tokens of the prompt that are always kept, and whose attention is `mass()`.
      decode_room: decoded tokens that are kept before the oldest of the newest are overwritten.
      allocation: how many of the mean a head gets: "uniform", as many in each; "ada", by where the
        prompt's best scores of the layer are (Ada-KV, arXiv 2407.11550), for scores that can be
        compared from head to head; "global", by where those of the whole model are, for scores
        that can be compared from layer to layer; "table", by a file.
      table: the file of "table": a share for each head, see `jaxkv.policies.shares`.
      floor: with "ada", the share of the mean that every head is sure of, in [0, 1].

    What a score is made from costs nothing where it is not asked for. A subclass says what it asks
    for beside keys, values and positions: `needs = ("mass",)`. There are "mass", the attention of
    the last `window` queries (`prompt.mass()`); "moments", mean and covariance of the prompt's
    queries (`query_mean()`, `query_covariance()`); "hidden", the states that the projections read
    (`hidden()`); "constants", the output projection (`wo()`); "queries", all of the prompt's
    (`queries()`); and "unrotated_keys" (`unrotated_keys()`). The last two take the memory of one
    layer's, until the layer has chosen.

    Memory: `budget + decode_room` tokens per KV head on average, and one slot for the newest token;
    with "ada" and "global", the unused end of each head's last block of 8 to 32 too. "global" holds
    all layers of a prompt in full until it has chosen from them.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    agnostic: ClassVar[bool] = False
    couples_heads: ClassVar[bool] = False
    allocations: ClassVar[tuple[str, ...]] = ("uniform", "ada", "global", "table")

    budget: int | float = swept(1024)
    _: dataclasses.KW_ONLY
    sinks: int = 4
    window: int = 8
    decode_room: int = 128
    allocation: str = "uniform"
    table: str | None = None
    floor: float = 0.2

    def __post_init__(self) -> None:
        for name, least in (("sinks", 0), ("window", 1), ("decode_room", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if isinstance(self.budget, float):
            if not 0 < self.budget <= 1:
                raise InputError(f"budget is {self.budget}; a share is above 0 and at most 1")
        elif self.budget < self.sinks + self.window:
            sinks = f"{self.sinks} sinks and the " if self.sinks else ""
            raise InputError(
                f"budget is {self.budget}; it must be at least the {sinks}window of {self.window} "
                "tokens, which are always kept"
            )
        if isinstance(self.needs, str) or not set(self.needs) <= set(NEEDS):
            raise InputError(
                f"needs of {type(self).__name__} is {self.needs!r}; it must be a tuple of some of "
                f"{NEEDS}"
            )
        self._check_allocation()

    def _check_allocation(self) -> None:
        *most, last = self.allocations
        known = f"it must be {', '.join(most)} or {last}"
        if self.allocation not in self.allocations:
            raise InputError(f"allocation is {self.allocation!r}; {known}")
        if self.allocation == "table" and self.table is None:
            raise InputError("table is not given; allocation 'table' needs a file of shares")
        if not 0 <= self.floor <= 1:
            raise InputError(f"floor is {self.floor}; it must be from 0 to 1")
        self.only_with("table", "table")
        self.only_with("ada", "floor")

    def only_with(self, allocation: str, *names: str) -> None:
        """Refuses fields that another allocation would not look at, where they are not the default.

        Raises:
          InputError: names the field.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            unused = field.name in names and self.allocation != allocation
            if unused and value != field.default:
                raise InputError(
                    f"{field.name} is {value!r}, which is for allocation {allocation!r}; the "
                    f"allocation is {self.allocation!r}"
                )

    @abc.abstractmethod
    def score(self, prompt: Prompt) -> Array:
        """The score of each token.

        Args:
          prompt: what is known of it.

        Returns:
          [B, K, S], higher is kept; what stands where `prompt.valid` is False is not looked at.
        """

    def prepare(self, params: Params, geometry: Geometry) -> Params:
        """A model's parameters, with what the policy has beside them: most have nothing."""
        del geometry
        return params

    def own_caps(self, layer: int, geometry: Geometry) -> tuple[int, ...]:
        """Chosen tokens of a layer's KV heads, beside the window, where a method says how many.

        For classes that have "own" among their `allocations`.
        """
        raise InputError(
            f"{type(self).__name__} has 'own' among its allocations, and no "
            "own_caps(layer, geometry)"
        )

    def budget_tokens(self, geometry: Geometry) -> int:
        """The budget in tokens, at least what is always kept."""
        return max(in_tokens(self.budget, geometry.max_length), self.window + self.sinks)

    def table_shares(self, geometry: Geometry) -> np.ndarray:
        """Of the mean budget, by the table, [L, K].

        Raises:
          InputError: there is none, or it is damaged or of another model.
        """
        if self.table is None:
            raise InputError(f"table is not given; the allocation is {self.allocation!r}")
        kept = self.budget_tokens(geometry) / geometry.max_length
        return head_shares(self.table, kept, geometry)

    @within_windows
    def at(self, layer: int, geometry: Geometry) -> SelectedLayer | PooledLayer | SharedLayer:
        """The same for every layer, but for what its heads may keep."""
        cap = self.budget_tokens(geometry) - self.window
        if self.allocation == "ada":
            return PooledLayer(
                geometry, cap, self.window, self, self.decode_room, self.sinks, self.floor,
                self.needs, self.agnostic,
            )  # fmt: skip
        if self.allocation == "global":
            return SharedLayer(
                geometry, cap, self.window, self, self.decode_room, self.sinks, self.needs
            )
        if self.allocation == "own":
            caps = self.own_caps(layer, geometry)
        elif self.allocation == "table":
            caps = tuple(int(cap) for cap in _by_table(self, geometry)[layer])
        else:
            caps = (cap,) * geometry.num_kv_heads
        return SelectedLayer(
            geometry, caps, self.window, self, self.decode_room, self.sinks, self.needs,
            self.agnostic, self.couples_heads,
        )  # fmt: skip


@functools.lru_cache(maxsize=8)
def _by_table(policy: ScoredPolicy, geometry: Geometry) -> np.ndarray:
    """Chosen tokens of each KV head, [L, K]: its sinks, and its share of what is dealt out.

    What a head would have beyond `max_length` goes to the others.
    """
    shares = policy.table_shares(geometry)[list(geometry.ruled)]
    dealt = by_shares(shares, policy.budget_tokens(geometry) - policy.window - policy.sinks)
    longest = max(geometry.max_length - policy.window, 1)
    return of_ruled(redistribute(dealt + policy.sinks, longest), geometry)
