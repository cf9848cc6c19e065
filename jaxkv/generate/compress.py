# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One prefill for many policies: a cache that kept everything becomes a small one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from jaxkv.cache.geometry import part_of
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.typing import Params
from jaxkv.generate.loop import Signature, kept_program
from jaxkv.generate.replay import Scores, repeat, slabs_of
from jaxkv.generate.running import begun, laid_out, prepared
from jaxkv.layers.base import Cache, FromFull, Geometry, Policy
from jaxkv.layers.draft import NOT_REPEATED, Read
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import constants_of
from jaxkv.models.mesh import Meshed
from jaxkv.models.plan import plan
from jaxkv.policies.full import Full
from jaxkv.policies.registry import describe


def compress(
    model: Model,
    cache: Cache,
    policy: Policy,
    prompts: Sequence[Sequence[int]] | None = None,
) -> Cache:
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
      prompts: the token ids that the cache has read, of each row; for policies that let the model
        repeat them.

    Returns:
      A cache of `policy`, of the same geometry.

    Raises:
      InputError: the cache was not made under `Full`, or for another model, or lacks what the
        policy looks at, or the policy cannot choose afterwards; or the prompts are missing.
    """
    return compressed(model, cache, policy, prompts)[0]


def compressed(
    model: Model,
    cache: Cache,
    policy: Policy,
    prompts: Sequence[Sequence[int]] | None = None,
    progress: Callable[[int, int], None] | None = None,
    geometry: Geometry | None = None,
) -> tuple[Cache, int]:
    """As `compress`, with the peak bytes of what did it; the cache may have another geometry."""
    made_for = cache.geometry.model
    if made_for not in ("", model.config.identity):
        raise InputError(
            f"the cache is of the model {made_for}, and this one is {model.config.identity}"
        )
    model = prepared(model, policy)
    plan(_read_under(cache), cache.geometry).check(cache)
    planned = plan(policy, geometry or cache.geometry)
    config = _as_it_lies(model.config, cache, policy, planned.geometry)
    model = dataclasses.replace(model, config=config)
    if not planned.chooses:
        raise InputError(
            f"policy {describe(policy)['name']!r} cannot choose from a full cache; it must read "
            "the prompt itself"
        )
    scores, peak = None, 0
    if planned.repeats is not None:
        if prompts is None:
            raise InputError(NOT_REPEATED)
        scores, repeating = repeat(model, cache, prompts, planned.repeats, progress)
        peak = repeating.peak_bytes if repeating else 0
    args = model.params, begun(config, policy, planned.geometry), cache, scores
    statics = (("config", config), ("policy", policy))
    program = kept_program(choose, Signature.of(args), statics)
    return program.call(*args)[0], max(peak, program.peak_bytes)


def choose(
    params: Params,
    empty: Cache,
    full: Cache,
    scores: Scores | None,
    *,
    config: ModelConfig,
    policy: Policy,
) -> tuple[Cache, None]:
    """As `compress`, to be compiled; the empty cache is donated."""
    geometry = part_of(empty.geometry, config.shards)
    layers, planned, slabs = [], plan(policy, geometry), slabs_of(full)
    for index, (layer, none, kept) in enumerate(
        zip(planned.layers, empty.layers, full.layers, strict=True)
    ):
        assert isinstance(layer, FromFull)
        if scores is not None and (slab := slabs[index]) is not None:
            read = kept if isinstance(kept, Read) else Read(slab, None, None)
            kept = dataclasses.replace(read, replay=scores[index])
        constants = constants_of(params["layers"][index], config)
        layers.append(layer.from_full(none, kept, config.scoring(index), constants))
    return planned.joined(layers, empty.pool), None


def _as_it_lies(
    config: ModelConfig, cache: Cache, policy: Policy, geometry: Geometry
) -> ModelConfig:
    """The model with the layout that its full cache has, in which the policy's must be able to lie.

    Raises:
      InputError: it cannot.
    """
    if not isinstance(config, Meshed):
        return config
    made = laid_out(config, _read_under(cache), cache.geometry)
    assert isinstance(made, Meshed)
    if made.lies.by_slots:
        raise InputError(
            "a cache whose slots lie on many devices cannot be chosen from; read the prompt with "
            "cache_layout 'heads' or 'rows'"
        )
    return laid_out(made, policy, geometry)


def _read_under(cache: Cache) -> Full:
    """The policy that would have made such a cache, if any did."""
    found = [layer for layer in cache.layers if isinstance(layer, Read)]
    if not found:
        return Full()
    last = found[0].last
    queries = 0 if last is None else last.q.shape[1]
    return Full(queries=queries, moments=found[0].moments is not None)
