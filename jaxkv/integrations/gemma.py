# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Models of google-deepmind/gemma whose caches a policy keeps; its own `Sampler` runs them as is.

    from jaxkv.integrations.gemma import with_policy

    sampler = gm.text.Sampler(model=with_policy(model, jaxkv.SnapKV(budget=512)), params=params)

The sampler reads a prompt, and then gives each row's last token a second time, to go on from it.
So a prompt is taken in without each row's last token, whose result is computed all the same and
then forgotten. Who calls the model without the sampler does the same: a token that comes before
the one that the cache waits for is looked at as if it were not there, and one that comes after it
makes its row NaN.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from gemma.gm.nn import _modules, _transformer  # pyright: ignore[reportMissingImports]
from jax import Array

from jaxkv.alone import KeptLayer, begun
from jaxkv.core.errors import InputError
from jaxkv.core.rope import LinearScaling, Rope
from jaxkv.layers.base import Geometry, Policy
from jaxkv.models.plan import plan


def with_policy(model: Any, policy: Policy, *, kv_dtype: str | None = None) -> KeptModel:
    """A gemma model with another cache.

    Args:
      model: a Gemma 2 or 3 of `gm.nn`, without a vision encoder.
      policy: what to keep in layers that see everything; the others keep their window.
      kv_dtype: of keys and values, see `jaxkv.layer_cache`; None is that of the parameters.

    Returns:
      What the sampler takes as a model.

    Raises:
      InputError: another model, or a policy that it cannot run.
    """
    if not isinstance(model, _transformer.Transformer):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise InputError(f"the model is a {kind}; it must be a gm.nn.Transformer: Gemma 2 or 3")
    if model.config.vision_encoder is not None:
        raise InputError(
            "the model sees images, whose tokens see each other both ways; make it with "
            "text_only=True"
        )
    kept = KeptModel(model, policy, kv_dtype)
    jax.eval_shape(lambda: kept.init_cache(batch_size=1, dtype=jnp.float32, cache_length=64))
    return kept


@dataclasses.dataclass(frozen=True)
class KeptModel:
    """A model, and what keeps its caches: what `gm.text.Sampler` asks of a model, and no more.

    Attributes:
      model: the model.
      policy: see `with_policy`.
      kv_dtype: likewise.
    """

    model: Any
    policy: Policy
    kv_dtype: str | None = None

    @property
    def config(self) -> Any:
        """Of the model."""
        return self.model.config

    @property
    def INFO(self) -> Any:  # noqa: N802  the sampler's name for it
        """Of the model."""
        return self.model.INFO

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Parameters, as the model makes them."""
        return self.model.init(*args, **kwargs)

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """As the model; with a cache of `init_cache`, attention goes through that."""
        with nn.intercept_methods(_intercepted):
            return self.model.apply(variables, *args, **kwargs)

    def init_cache(
        self, *, batch_size: int, dtype: Any, cache_length: int, sharding: Any = None
    ) -> dict[str, dict[str, Any]]:
        """An empty cache, as the sampler asks for it."""
        if sharding is not None:
            raise InputError("sharding of caches is not supported here; leave it None")
        config = self.model.config
        geometry = Geometry(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            batch_size=batch_size,
            max_length=cache_length,
            dtype=self.kv_dtype or jnp.dtype(dtype).name,
            windows=tuple(_window(config, kind) for kind in config.attention_types),
        )
        made = {}
        for index in range(config.num_layers):
            layer = begun(lambda g, at=index: plan(self.policy, g).layers[at], geometry)
            made[f"layer_{index}"] = {
                # Their checks of types look at the first entry, which is an array as theirs is.
                "end_index": jnp.zeros((batch_size,), jnp.int32),
                "k": Carried(layer, jnp.zeros((batch_size,), jnp.int32), cache_length),
                "positions": jnp.zeros((batch_size, cache_length, 0), jnp.int32),
                "v": jnp.zeros((batch_size, cache_length, 0, 0), jnp.dtype(dtype)),
            }
        return made


@flax.struct.dataclass
class Carried:
    """One layer's cache, where theirs has an array [B, S, K, H] of keys.

    The sampler cuts that array to the length of the prompt, and writes what comes back from it
    into the whole. Here the cut is of the length alone, and what comes back is the new whole.

    Attributes:
      layer: the cache.
      seen: int32 [B], tokens that each row has taken in.
      length: S, that it pretends to.
    """

    layer: KeptLayer
    seen: Array
    length: int = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, S, K, H]."""
        g = self.layer.geometry
        return g.batch_size, self.length, g.num_kv_heads, g.head_dim

    def __getitem__(self, key: Any) -> Carried:
        """With as many slots as the second of the slices leaves."""
        _check(key)
        return dataclasses.replace(self, length=len(range(self.length)[key[1]]))

    @property
    def at(self) -> Place:
        """As `Array.at`."""
        return Place(self)


@dataclasses.dataclass(frozen=True)
class Place:
    """`whole.at[slices]`, of which there is `set` alone."""

    whole: Carried

    def __getitem__(self, key: Any) -> Place:
        """The place."""
        _check(key)
        return self

    def set(self, part: Carried) -> Carried:
        """What the part became, with the length of the whole."""
        return dataclasses.replace(part, length=self.whole.length)


def _check(key: Any) -> None:
    """Refuses to be cut by rows, or anywhere but from the first slot on."""
    rows, slots, *rest = key
    if rows != slice(None) or slots.start or slots.step or any(x != slice(None) for x in rest):
        raise InputError(f"the cache is cut by {key!r:.80}; it must be [:, :length]")


def _intercepted(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Calls of attention with a cache of ours; all others go through.

    What becomes of a call depends on its arguments alone, so programs that are made within may be
    shared with those that are made without.
    """
    if isinstance(context.module, _modules.Attention) and context.method_name == "__call__":
        found = dict(zip(("x", "segment_pos", "cache", "attn_mask"), args)) | kwargs  # noqa: B905
        cache = found["cache"]
        if cache is not None and isinstance(cache["k"], Carried):
            return _attend(context.module, found["x"], found["segment_pos"], cache)
    return run(*args, **kwargs)


def _attend(
    module: Any, x: Array, positions: Array, cache: dict[str, Any]
) -> tuple[dict[str, Any], Array]:
    """One layer, of hidden states [B, T, D] at positions int32 [B, T]."""
    carried: Carried = cache["k"]
    layer, seen, count = carried.layer, carried.seen, x.shape[1]
    q, k, v = _projected(module, x)
    scaling = LinearScaling(module.rope_scale_factor) if module.rope_scale_factor != 1 else None
    how: dict[str, Any] = {
        "rope": Rope(module.head_dim, module.rope_base_frequency, scaling),
        "scale": module.query_pre_attn_scalar,
        "soft_cap": module.attn_logits_soft_cap,
    }
    if carried.length == layer.geometry.max_length and count == 1:
        here = (positions[:, 0] == seen).astype(jnp.int32)
        layer, out = layer.attend(q, k, v, **how, lengths=here)
    else:
        # Padding on the right has the position of the last token.
        last = positions[:, -1] - positions[:, 0]
        here = last
        if count > 1:
            wo = module.attn_vec_einsum.get_variable("params", "w")
            layer, out = layer.attend(q, k, v, **how, lengths=last, hidden=x, wo=wo)
        else:
            out = jnp.zeros_like(q)
        index = last[:, None, None, None]
        ends = (jnp.take_along_axis(part, index, axis=1) for part in (q, k, v))
        _, end = layer.attend(*ends, **how)
        token = jnp.arange(count, dtype=jnp.int32)[None, :, None, None]
        out = jnp.where(token == index, end, out)
    missed = (positions[:, 0] > seen)[:, None, None, None]
    out = jnp.where(missed, jnp.asarray(jnp.nan, out.dtype), out)
    carried = dataclasses.replace(carried, layer=layer, seen=seen + here)
    after = {**cache, "end_index": cache["end_index"] + count, "k": carried}
    return after, module.attn_vec_einsum("BTNH,NHD->BTD", out)


def _projected(module: Any, x: Array) -> tuple[Array, Array, Array]:
    """Queries [B, T, N, H], keys and values [B, T, K, H]."""
    if module.use_qkv_einsum:
        q, k, v = module.qkv_einsum("BTD,SNDH->SBTNH", x)
    else:
        q, (k, v) = module.q_einsum("BTD,NDH->BTNH", x), module.kv_einsum("BSD,CKDH->CBSKH", x)
    if module.use_qk_norm:
        q, k = module._query_norm(q), module._key_norm(k)
    return q, k, v


def _window(config: Any, kind: Any) -> int:
    """Past tokens that a layer lets a query see; 0 where it sees all."""
    return config.sliding_window_size - 1 if kind == _modules.AttentionType.LOCAL_SLIDING else 0
