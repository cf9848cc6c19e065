# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One prefill for many policies: a cache that kept everything becomes a small one."""

from __future__ import annotations

from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.typing import Params
from jaxkv.generate.loop import Program, Signature, kept_program
from jaxkv.layers.base import Cache, FromFull, Policy
from jaxkv.layers.draft import Read
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import constants_of
from jaxkv.models.plan import plan
from jaxkv.policies.full import Full
from jaxkv.policies.registry import describe


def compress(model: Model, cache: Cache, policy: Policy) -> Cache:
    """What a policy keeps of a prompt that was read with everything kept.

    The same as if the policy had read the prompt: then, too, it was read with full attention (but
    for rounding, as the programs differ). That holds of one prompt: a policy that has read several
    chose after each of them. Attention sinks and windows lose the tokens that they would have lost,
    yet read the prompt with full attention here and not with their own.

    One compiled program; the full cache stays, so one prefill serves many policies and budgets.

    Args:
      model: whose cache it is.
      cache: made under `Full`, whose `queries` and `moments` are what some policies look at.
      policy: any that keeps a part of a prompt.

    Returns:
      A cache of `policy`, of the same geometry.

    Raises:
      InputError: the cache was not made under `Full`, or for another model, or lacks what the
        policy looks at, or the policy cannot choose afterwards.
    """
    return compressed(model, cache, policy)[0]


def compressed(model: Model, cache: Cache, policy: Policy) -> tuple[Cache, Program]:
    """As `compress`, with the program that did it."""
    made_for = cache.geometry.model
    if made_for not in ("", model.config.identity):
        raise InputError(
            f"the cache is of the model {made_for}, and this one is {model.config.identity}"
        )
    plan(_read_under(cache), cache.geometry).check(cache.layers)
    planned = plan(policy, cache.geometry)
    if not planned.chooses:
        raise InputError(
            f"policy {describe(policy)['name']!r} cannot choose from a full cache; it must read "
            "the prompt itself"
        )
    empty = planned.init()
    statics = (("config", model.config), ("policy", policy))
    program = kept_program(choose, Signature.of((model.params, empty, cache)), statics)
    return program.call(model.params, empty, cache), program


def choose(
    params: Params, empty: Cache, full: Cache, *, config: ModelConfig, policy: Policy
) -> Cache:
    """As `compress`, to be compiled; the empty cache is donated."""
    layers = []
    for index, (layer, none, kept) in enumerate(
        zip(plan(policy, empty.geometry).layers, empty.layers, full.layers, strict=True)
    ):
        assert isinstance(layer, FromFull)
        constants = constants_of(params["layers"][index], config)
        layers.append(layer.from_full(none, kept, config.scoring(index), constants))
    return Cache(tuple(layers), empty.geometry)


def _read_under(cache: Cache) -> Full:
    """The policy that would have made such a cache, if any did."""
    found = [layer for layer in cache.layers if isinstance(layer, Read)]
    if not found:
        return Full()
    last = found[0].last
    queries = 0 if last is None else last.q.shape[1]
    return Full(queries=queries, moments=found[0].moments is not None)
