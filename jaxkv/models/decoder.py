# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A decoder as pure functions: one token can be followed here from its id to its logits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from jaxkv.cache.geometry import part_of
from jaxkv.cache.slab import past_the_end
from jaxkv.core.errors import InputError
from jaxkv.core.shards import DATA
from jaxkv.core.typing import (
    Hidden,
    Lengths,
    Logits,
    NewKeys,
    Params,
    Queries,
    Residual,
    Rotation,
    Tokens,
)
from jaxkv.layers.base import (
    Cache,
    Chunk,
    Constants,
    Geometry,
    LayerCache,
    LayerPolicy,
    Policy,
    WholePrompt,
)
from jaxkv.models.block import closed, mlp, norm, project, soft_capped
from jaxkv.models.config import ModelConfig
from jaxkv.models.layouts import begun, cache_specs, settled
from jaxkv.models.mesh import Meshed, lying, on_all
from jaxkv.models.placed import param_specs
from jaxkv.models.plan import InChunks, plan, with_pool
from jaxkv.models.weights import widened
from pallas_kernels import compiler
from pallas_kernels.loops import loop
from pallas_kernels.precision import einsum

CHUNK = 512  # tokens of a whole prompt that go through a layer at once


def init_cache(
    config: ModelConfig, policy: Policy, batch_size: int, max_length: int, dtype: str = "float32"
) -> Cache:
    """An empty cache of static shape.

    Args:
      config: the model.
      policy: what to keep.
      batch_size: B.
      max_length: tokens that a cache which keeps everything can hold; others ignore it.
      dtype: of keys and values.
    """
    planner = functools.partial(plan, policy)
    shapes = geometry(config, batch_size, max_length, dtype)
    if isinstance(config, Meshed):
        return begun(settled(config, planner, shapes), planner, shapes)
    return planner(shapes).init()


def geometry(
    config: ModelConfig, batch_size: int, max_length: int, dtype: str = "float32"
) -> Geometry:
    """The shapes of a cache for this model; see `init_cache`."""
    return Geometry(
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        batch_size=batch_size,
        max_length=max_length,
        dtype=dtype,
        model=config.identity,
        windows=config.windows,
    )


def forward(
    params: Params,
    config: ModelConfig,
    policy: Policy,
    tokens: Tokens,
    cache: Cache,
    lengths: Lengths | None = None,
) -> tuple[Logits, Cache]:
    """Runs tokens through the model and into the cache. Pure; jit with config and policy static.

    Args:
      params: the tree of `parameter_shapes(config)`.
      config: the model.
      policy: the one that `cache` was made for.
      tokens: int32 [B, T]. T > 1 is (a part of) a prompt: it attends to all that is kept and to
        itself. T == 1 is a decode step.
      cache: from `init_cache` or the last call.
      lengths: int32 [B], valid tokens in each row, the rest is padding on the right; None if all
        are. A row of length 0 leaves its cache as it was.

    Returns:
      logits [B, T, V] float32, undefined where padded, and the new cache. They are NaN in rows
      whose positions have come to the end of int32, after 2,147,483,647 tokens.
    """
    if isinstance(config, Meshed):
        return _on_mesh(params, config, policy, tokens, cache, lengths)
    decoding = tokens.shape[1] == 1
    x, cache = run_layers(params, config, policy, tokens, cache, lengths, decoding=decoding)
    return head(params, config, x), cache


def _on_mesh(
    params: Params, config: Meshed, policy: Policy, tokens: Tokens, cache: Cache,
    lengths: Lengths | None,
) -> tuple[Logits, Cache]:  # fmt: skip
    """As `forward`; the logits lie as the rows do."""
    planner, rows = functools.partial(plan, policy), PartitionSpec(DATA)
    config = settled(config, planner, cache.geometry)
    specs = cache_specs(config, planner, cache.geometry)
    part = config.part

    def run(
        params: Params, tokens: Tokens, cache: Cache, lengths: Lengths | None
    ) -> tuple[Logits, Cache]:
        return forward(params, part, policy, tokens, cache, lengths)

    tokens = lying(config, tokens, DATA)
    lengths = None if lengths is None else lying(config, lengths, DATA)
    in_specs = param_specs(config, params), rows, specs, rows
    return on_all(run, config, in_specs, (rows, specs))(params, tokens, cache, lengths)


def advance(
    params: Params,
    config: ModelConfig,
    policy: Policy,
    tokens: Tokens,
    cache: Cache,
    lengths: Lengths,
) -> tuple[Array, Cache]:
    """Reads (a part of) a prompt, of any T, as `forward`: logits of each row's last token, [B, V].

    The output head is a fifth of a small model; a prompt needs it once.
    """
    x, cache = run_layers(params, config, policy, tokens, cache, lengths, only_last=True)
    return head(params, config, x)[:, 0], cache


def run_layers(
    params: Params,
    config: ModelConfig,
    policy: Policy,
    tokens: Tokens,
    cache: Cache,
    lengths: Lengths | None,
    only_last: bool = False,
    decoding: bool = False,
    remat: bool = False,
) -> tuple[Residual, Cache]:
    """Embedding and layers, without the final norm: [B, T] -> [B, T, D], and the cache.

    With `only_last`, of each row's last valid token alone: [B, 1, D]. With `decoding` the tokens
    are one decoded token a row, else a prompt; see `Chunk`. With `remat` a derivative keeps no
    layer's activations: each layer is computed again on the way back.
    """
    layers, geometry, shards = cache.layers, cache.geometry, config.shards
    planned = plan(policy, part_of(geometry, shards))
    planned.check(cache)
    if tokens.shape[0] * shards.data != geometry.batch_size:
        rows = tokens.shape[0] * shards.data
        raise InputError(f"tokens have {rows} rows, and the cache has {geometry.batch_size}")
    x = embed(params, config, tokens)
    caches, policies = [], planned.layers
    for index, (layer, held) in enumerate(zip(params["layers"], layers, strict=True)):
        mine, rope = policies[index], config.scoring(index)
        if tokens.shape[1] > CHUNK and geometry.windows and geometry.windows[index]:
            mine = InChunks(mine)
        ends = only_last and index == len(layers) - 1
        args = layer, config, mine, rope, x, with_pool(held, cache.pool), lengths, ends
        whole = isinstance(mine, WholePrompt) and not decoding
        run, args = (_whole_prompt, args) if whole else (run_layer, (*args, decoding))
        if remat:
            run = jax.checkpoint(run, static_argnums=(1, 2, 3, *range(7, len(args))))
        with jax.named_scope(f"layer_{index}"):
            x, held = run(*args)
        caches.append(with_pool(held, None))
    over = past_the_end(layers[0], tokens.shape[1])
    if over is not None:
        over = shards.sized(over, x.shape[0], axis=0)[:, None, None]
        x = jnp.where(over, jnp.asarray(jnp.nan, x.dtype), x)
    return x, planned.joined(caches, cache.pool)


def embed(params: Params, config: ModelConfig, tokens: Tokens) -> Hidden:
    """[B, T] -> [B, T, D]."""
    x = config.shards.looked_up(params["embed"], tokens, config.vocab_size)
    return x if config.embed_scale == 1 else x * jnp.asarray(config.embed_scale, x.dtype)


def head(params: Params, config: ModelConfig, x: Hidden) -> Logits:
    """Final norm and output head: [B, T, D] -> [B, T, V] float32."""
    x = norm(x, params, "final_norm", config)
    weight = params["embed"] if config.tie_embeddings else params["lm_head"]
    logits = soft_capped(einsum("btd,vd->btv", x, weight), config.final_soft_cap)
    return config.shards.sized(logits, config.vocab_size)


def last_valid(x: Array, lengths: Lengths) -> Array:
    """The last valid position of each row: [B, T, ...] -> [B, 1, ...]; the first if none is."""
    index = jnp.maximum(lengths - 1, 0).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.take_along_axis(x, index, axis=1)


# Layers of one kind are traced once and called many times: tracing each of them anew would take
# longer than reading the compiled program from disk. XLA inlines the calls.
@functools.partial(jax.jit, static_argnums=(1, 2, 3, 7, 8))
def run_layer(
    layer: Params,
    config: ModelConfig,
    policy: LayerPolicy,
    rope: Rotation | None,
    x: Hidden,
    cache: LayerCache,
    lengths: Lengths | None,
    only_last: bool = False,
    decoding: bool = False,
) -> tuple[Residual, LayerCache]:
    """A layer over a decoded token, or over a chunk of a prompt."""

    def attend(q: Queries, k: NewKeys, v: NewKeys, y: Hidden) -> tuple[LayerCache, Queries]:
        del y
        chunk = Chunk(q, k, v, mine, rope, decoding, sink_logits=sink_logits_of(layer, config))
        return policy.take(cache, chunk)

    mine = config.shards.own_rows(lengths)
    return run_block(layer, config, x, attend, lengths if only_last else None)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 7))
def _whole_prompt(
    layer: Params,
    config: ModelConfig,
    policy: WholePrompt,
    rope: Rotation | None,
    x: Hidden,
    cache: LayerCache,
    lengths: Lengths | None,
    only_last: bool = False,
) -> tuple[Residual, LayerCache]:
    """A layer over a whole prompt, chunk by chunk, and only as many as the longest row has."""
    (batch, count, _), shards = x.shape, config.shards
    size = min(CHUNK, count)
    if lengths is None:
        lengths = jnp.full((batch,), count, jnp.int32)
    padded = -(-count // size) * size
    x = jnp.pad(x, ((0, 0), (0, padded - count), (0, 0)))
    chunks = (jnp.max(lengths) + size - 1) // size

    def body(
        index: Array, carry: tuple[Hidden, Any], consts: tuple[Params, Lengths]
    ) -> tuple[Residual, Any]:
        (x, draft), (layer, lengths) = carry, consts
        start = index * size
        valid = shards.own_rows(jnp.clip(lengths - start, 0, size))

        def attend(q: Queries, k: NewKeys, v: NewKeys, y: Hidden) -> tuple[Any, Queries]:
            hidden = y if "hidden" in policy.needs else None
            sink_logits = sink_logits_of(layer, config)
            chunk = Chunk(q, k, v, valid, rope, False, hidden, sink_logits=sink_logits)
            return policy.feed(draft, start, padded, chunk)

        mine = jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
        some, draft = run_block(layer, config, mine, attend)
        return jax.lax.dynamic_update_slice_in_dim(x, some, start, axis=1), draft

    def whole(
        carry: tuple[Hidden, LayerCache], consts: tuple[Params, Lengths, Array]
    ) -> tuple[Residual, LayerCache]:
        (x, cache), (layer, lengths, chunks) = carry, consts
        constants = constants_of(layer, config) if "constants" in policy.needs else None
        draft = policy.provide(policy.open(cache, padded), shards.own_rows(x), constants)
        most = padded // size
        x, draft = loop(body, most, chunks, (x, draft), (layer, lengths))
        return x, policy.close(draft, cache, rope)

    consts = layer, lengths, chunks
    if policy.joint:
        x, cache = whole((x, cache), consts)  # what all hold is needed when they choose
    else:
        x, cache = compiler.together(whole, (x, cache), consts, chunks)
    return last_valid(x, lengths) if only_last else x[:, :count], cache


def constants_of(layer: Params, config: ModelConfig) -> Constants:
    """What policies may look at of a layer's parameters."""
    shards, surrogate = config.shards, layer.get("surrogate")
    shape = config.num_heads, config.head_dim, config.hidden_size
    wo = widened(layer["wo"], layer["attn_norm"].dtype)
    wo = shards.sized(wo, config.num_heads * config.head_dim, axis=0)
    if surrogate is not None and shards.by_heads:
        surrogate = surrogate | {name: shards.mine(surrogate[name], -1) for name in ("w", "b")}
    return Constants(wo.reshape(shape), surrogate)


def sink_logits_of(layer: Params, config: ModelConfig) -> Array | None:
    """A layer's sink logits, of the heads that this device has; None in models without."""
    logits, shards = layer.get("sink_logits"), config.shards
    return shards.mine(logits, 0) if logits is not None and shards.by_heads else logits


def run_block(
    layer: Params,
    config: ModelConfig,
    x: Hidden,
    attend: Callable[[Queries, NewKeys, NewKeys, Hidden], tuple[Any, Queries]],
    only_last: Lengths | None = None,
) -> tuple[Residual, Any]:
    """Pre-norm attention and MLP, each added to the residual stream; and what `attend` keeps.

    `attend` is given q, k and v, not rotated, and the states [B, T, D] that they come from. What
    follows attention is a matter of each token alone: with the lengths `only_last` it is done
    for the last valid token of each row, [B, 1, D], which is all that a last layer needs.
    """
    y = norm(x, layer, "attn_norm", config)
    heads, shards = (config.num_kv_heads, config.group_size + 2, config.head_dim), config.shards
    qkv = project(y, layer["wqkv"], layer.get("bqkv"))
    qkv = shards.sized(qkv, math.prod(heads)).reshape(*y.shape[:2], *heads)
    if config.clip_qkv is not None:
        qkv = jnp.clip(qkv, -config.clip_qkv, config.clip_qkv)
    q, k, v = qkv[:, :, :, :-2], qkv[:, :, :, -2], qkv[:, :, :, -1]
    q = q.reshape(*q.shape[:2], config.num_heads, config.head_dim)
    if config.qk_norm:
        q, k = norm(q, layer, "q_norm", config), norm(k, layer, "k_norm", config)
    if config.query_scale != 1:
        q = q * jnp.asarray(config.query_scale, q.dtype)
    if shards.by_rows:
        kept, out = attend(*shards.own_rows((q, k, v, y)))
        out = shards.gathered(out, 0)
    else:
        kept, out = attend(q, k, v, y)
    if only_last is not None:
        x, y, out = (last_valid(z, only_last) for z in (x, y, out))
    out = out.reshape(*out.shape[:2], config.num_heads * config.head_dim)
    width = config.whole.num_heads * config.head_dim
    out = closed(out, layer["wo"], layer.get("bo"), width, shards)
    if config.parallel:
        y = y if config.shared_norm else norm(x, layer, "mlp_norm", config)
        return x + out + mlp(y, layer, config), kept
    if config.post_norms:
        out = norm(out, layer, "attn_post_norm", config)
    x = x + out
    out = mlp(norm(x, layer, "mlp_norm", config), layer, config)
    if config.post_norms:
        out = norm(out, layer, "mlp_post_norm", config)
    return x + out, kept
