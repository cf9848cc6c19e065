# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A step of training: the loss of given tokens goes through a policy, and so does its gradient."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from jaxkv.core.shards import DATA
from jaxkv.core.typing import Params, Tokens
from jaxkv.layers.base import Cache, Policy
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import head, init_cache, run_layers
from jaxkv.train.recipe import Recipe, make_optimizer


@flax.struct.dataclass
class State:
    """What a run is after some steps.

    Attributes:
      params: float32.
      optimizer: the state of the optimiser.
    """

    params: Any
    optimizer: Any


@flax.struct.dataclass
class Report:
    """What a step found, before its update: float32 scalars.

    Attributes:
      loss: mean negative log-likelihood of a token, in nats.
      gradient: its length, before it is clipped.
    """

    loss: Array
    gradient: Array


def start(params: Params, recipe: Recipe) -> State:
    """A run of no steps."""
    return State(params, make_optimizer(recipe).init(params))


def losses(
    params: Params,
    config: ModelConfig,
    policy: Policy,
    recipe: Recipe,
    tokens: Tokens,
    targets: Tokens,
) -> Array:
    """Negative log-likelihood of every target, in nats, under a policy.

    Tokens go chunk by chunk into a cache that is empty at first: what a chunk sees of those before
    it is what the policy kept, and the derivative goes through that. Of several chunks each is
    computed again on the way back, so that only caches are kept between them.

    Args:
      params: the model's, in float32; they are computed with in the recipe's dtype.
      config: the model.
      policy: what the cache keeps.
      recipe: for its chunk, its dtype and what is computed again.
      tokens: int32 [B, T].
      targets: int32 [B, T], the tokens that follow.

    Returns:
      float32 [B, T].
    """
    params = as_computed(params, recipe)
    batch, count = tokens.shape
    size = recipe.chunk or count

    def one(cache: Cache, part: tuple[Array, Array]) -> tuple[Cache, Array]:
        x, cache = run_layers(params, config, policy, part[0], cache, None, remat=recipe.remat)
        logits = head(params, config, x)
        chosen = jnp.take_along_axis(logits, part[1][..., None], axis=-1)[..., 0]
        return cache, jax.nn.logsumexp(logits, axis=-1) - chosen

    cache = init_cache(config, policy, batch, count, recipe.dtype)
    if size == count:
        return one(cache, (tokens, targets))[1]
    parts = tuple(x.reshape(batch, -1, size).swapaxes(0, 1) for x in (tokens, targets))
    _, found = lax.scan(jax.checkpoint(one), cache, parts)
    return found.swapaxes(0, 1).reshape(batch, count)


def as_computed(params: Params, recipe: Recipe) -> Params:
    """Parameters as they are computed with; sink logits that say what attention is stay so."""

    def of(name: str, x: Array) -> Array:
        if name == "sink_logits":
            return x if recipe.learn_sinks else lax.stop_gradient(x)
        return x.astype(recipe.dtype)

    layers = tuple({name: of(name, x) for name, x in layer.items()} for layer in params["layers"])
    return {**{n: of(n, x) for n, x in params.items() if n != "layers"}, "layers": layers}


def update(
    rows: tuple[Array, Array],
    state: State,
    *,
    config: ModelConfig,
    policy: Policy,
    recipe: Recipe,
    skip: int,
    over: Mesh | None,
) -> tuple[State, Report]:
    """One step, to be compiled; the state is donated.

    Args:
      rows: tokens and targets, int32 [A, B, T]: B samples at once, A times, over a mesh of as many
        devices as share each B.
      state: before the step.
      config: static.
      policy: static.
      recipe: static.
      skip: first targets of each sample that do not count.
      over: the mesh; None is one device.

    Returns:
      The state after the step, and what it found.
    """

    def mine(rows: tuple[Array, Array], state: State) -> tuple[State, Report]:
        def mean(params: Params, row: tuple[Array, Array]) -> Array:
            return jnp.mean(losses(params, config, policy, recipe, *row)[:, skip:])

        def add(total: Any, row: tuple[Array, Array]) -> tuple[Any, None]:
            found = jax.value_and_grad(mean)(state.params, row)
            return jax.tree.map(jnp.add, total, found), None

        count = rows[0].shape[0]
        if count == 1:
            loss, slope = jax.value_and_grad(mean)(state.params, (rows[0][0], rows[1][0]))
        else:
            zero = jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params)
            total, _ = lax.scan(add, zero, rows)
            loss, slope = jax.tree.map(lambda x: x / jnp.float32(count), total)
        if over is not None:
            loss, slope = lax.pmean((loss, slope), DATA)
        return _moved(state, slope, loss, recipe)

    if over is None:
        return mine(rows, state)
    specs = PartitionSpec(None, DATA), PartitionSpec()
    run = jax.shard_map(mine, mesh=over, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return run(rows, state)


def _moved(state: State, slope: Params, loss: Array, recipe: Recipe) -> tuple[State, Report]:
    """The state after the optimiser has seen a derivative."""
    import optax

    length = jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(slope)))
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
        change, kept = make_optimizer(recipe).update(slope, state.optimizer, state.params)
        params = optax.apply_updates(state.params, change)
    return State(params, kept), Report(loss, length)


def judged(
    params: Params,
    total: Array,
    rows: tuple[Array, Array],
    weights: Array,
    *,
    config: ModelConfig,
    policy: Policy,
    recipe: Recipe,
    skip: int,
    over: Mesh | None,
) -> tuple[Array, None]:
    """Adds to `total`, which is donated, the weighted mean losses of samples [B, T]."""

    def mine(params: Params, rows: tuple[Array, Array], weights: Array) -> Array:
        found = losses(params, config, policy, recipe, *rows)[:, skip:]
        added = jnp.sum(jnp.mean(found, axis=1) * weights)
        return added if over is None else lax.psum(added, DATA)

    if over is not None:
        by_rows = PartitionSpec(DATA)
        specs = PartitionSpec(), by_rows, by_rows
        mine = jax.shard_map(
            mine, mesh=over, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
        )
    return total + mine(params, rows, weights), None
