# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One layer's cache for attention that is written elsewhere, and caches as dicts of arrays."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax import export
from own_policies import KeyDiff
from policy_cases import CASES, SLAB_CASES

import jaxkv
from jaxkv.alone import KeptLayer
from jaxkv.core.errors import InputError
from jaxkv.core.scoring import Scoring, alibi_slopes
from jaxkv.policies.kvzip import KVzip

SHAPE = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "batch_size": 2, "max_length": 64}
ROPE = jaxkv.Rope(8)
LENGTHS = (20, 13)
KINDS = [name for name, case in SLAB_CASES.items() if case.hard_for is None]
take = jax.jit(
    KeptLayer.attend, static_argnames=("rope", "scale", "soft_cap"), donate_argnames="self"
)


def layer_of(name: str, **changes: Any) -> KeptLayer:
    return jaxkv.layer_cache(CASES[name].policy, 1, num_layers=2, **{**SHAPE, **changes})


def chunk(count: int, seed: int = 0, batch: int = 2, heads: int = 4, kv_heads: int = 2):
    return tuple(jnp.asarray(x) for x in toys.qkv(batch, count, heads, kv_heads, seed=seed))


def dense(
    q: Any, k: Any, v: Any, scale: float, cap: float | None = None, window: int | None = None,
    sinks: Any = None,
) -> np.ndarray:  # fmt: skip
    """Causal attention over whole texts, in float64; `sinks` are logits [N] that go to no key."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k) * scale
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    at = np.arange(q.shape[1])
    seen = at[None] <= at[:, None]
    seen &= at[None] >= at[:, None] - (len(at) if window is None else window)
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores)
    more = 0 if sinks is None else np.exp(np.asarray(sinks, np.float64))[None, :, None, None]
    return np.einsum("bnts,bsnh->btnh", weights / (weights.sum(-1, keepdims=True) + more), v)


HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.7},
    "capped": {"soft_cap": 2.0},
    "both": {"scale": 1.5, "soft_cap": 3},
    "sinks": {"sink_logits": jnp.asarray([0.5, 2.0, -1.0, 0.0])},
}


@pytest.mark.parametrize("name", HOW)
@pytest.mark.parametrize("window", [None, 5])
def test_a_prompt_and_steps_are_dense_attention(name: str, window: int | None) -> None:
    how = HOW[name]
    q, k, v = chunk(24)
    scale, cap, sinks = how.get("scale", 8**-0.5), how.get("soft_cap"), how.get("sink_logits")
    expected = dense(q, k, v, scale, cap, window, sinks)
    policy = jaxkv.Full() if window is None else jaxkv.SnapKV(budget=8, window=2)
    layer, outs = jaxkv.layer_cache(policy, **SHAPE, window=window), []
    for begin, end in ((0, 20), *((t, t + 1) for t in range(20, 24))):
        layer, out = take(layer, *(x[:, begin:end] for x in (q, k, v)), **how)
        outs.append(out)
    np.testing.assert_allclose(np.concatenate(outs, 1), expected, atol=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_what_prefill_and_step_do(name: str) -> None:
    """Padding and rotations too; and what is donated is gone."""
    layer, tokens = layer_of(name), chunk(20)
    lengths = jnp.asarray(LENGTHS, jnp.int32)
    policy = CASES[name].policy.at(1, layer.geometry)
    cache, expected = jaxkv.prefill(policy, policy.init(), *tokens, rope=ROPE, lengths=lengths)
    before = layer
    layer, out = take(layer, *tokens, rope=ROPE, lengths=lengths)
    assert all(x.is_deleted() for x in jax.tree.leaves(before))
    for row, count in enumerate(LENGTHS):
        np.testing.assert_allclose(out[row, :count], expected[row, :count], atol=1e-5)
    for seed in (1, 2):
        cache, expected = jaxkv.step(policy, cache, *chunk(1, seed), rope=ROPE)
        layer, out = take(layer, *chunk(1, seed), rope=ROPE)
        np.testing.assert_allclose(out, expected, atol=1e-5)
    assert jax.tree.structure(layer.kept) == jax.tree.structure(cache)
    for x, y in zip(jax.tree.leaves(layer.kept), jax.tree.leaves(cache), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize(
    "policy", [jaxkv.StreamingLLM(2, 7), jaxkv.SnapKV(8, window=2), jaxkv.H2O(8)]
)
def test_layers_of_one_shape_go_through_a_scan(policy: Any) -> None:
    layers = [jaxkv.layer_cache(policy, i, num_layers=3, **SHAPE) for i in range(3)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *layers)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(layers: KeptLayer, q: Any, k: Any, v: Any) -> Any:
        def one(x: Any, layer: KeptLayer) -> Any:
            layer, out = layer.attend(q + x, k, v, rope=ROPE)
            return out, layer

        return jax.lax.scan(one, jnp.zeros_like(q), layers)

    for count, seed in ((20, 0), (1, 1), (1, 2)):
        q, k, v = chunk(count, seed)
        x = jnp.zeros_like(q)
        for index, layer in enumerate(layers):
            layers[index], x = take(layer, q + x, k, v, rope=ROPE)
        out, together = run(together, q, k, v)
        np.testing.assert_allclose(out, x, atol=1e-5)


def test_what_policies_look_at_in_a_prompt_is_handed_on() -> None:
    q, k, v = chunk(20)
    layer = jaxkv.layer_cache(CASES["own-outputs"].policy, **SHAPE)
    hidden, wo = jnp.ones((2, 20, 16), jnp.float32), jnp.ones((4, 8, 16), jnp.float32)
    with pytest.raises(InputError, match="hidden is not given"):
        layer.attend(q, k, v)
    with pytest.raises(InputError, match="wo is not given"):
        layer.attend(q, k, v, hidden=hidden)
    _, out = layer.attend(q, k, v, hidden=hidden, wo=wo)
    np.testing.assert_allclose(out, dense(q, k, v, 8**-0.5), atol=2e-5)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no rows": ({"batch_size": 0}, "batch_size is 0; it must be a whole number of at least 1"),
    "odd groups": ({"num_heads": 3}, "num_heads is 3 and num_kv_heads 2"),
    "no such layer": ({"layer": 1}, "layer is 1; with num_layers 1 it must be below"),
    "no window": ({"window": 0}, "window is 0"),
    "another dtype": ({"dtype": jnp.float16}, "dtype is 'float16'; it must be one of float32"),
    "a class": ({"policy": jaxkv.Full}, r"as in Full\(\)"),
    "no cache at all": ({"policy": jaxkv.SlidingRecompute()}, "keeps tokens and no keys"),
    "one budget": ({"policy": KeyDiff(16, allocation="global")}, "a layer alone has no pool"),
    "read twice": ({"policy": KVzip(allocation="uniform")}, "a layer alone cannot"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_refused_in_one_line(what: str) -> None:
    changes, line = WRONG[what]
    with pytest.raises(InputError, match=line) as error:
        jaxkv.layer_cache(**{"policy": jaxkv.Full(), **SHAPE, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"scale": 0.0}, "scale is 0.0; it must be a number above 0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"soft_cap": -1}, "soft_cap is -1"),
    ],
)
def test_numbers_are_checked(how: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        jaxkv.layer_cache(jaxkv.Full(), **SHAPE).attend(*chunk(3), **how)


def test_other_shapes_than_the_cache_s_are_refused() -> None:
    layer = jaxkv.layer_cache(jaxkv.Full(), **SHAPE)
    with pytest.raises(InputError, match=r"q has shape \(3, 2, 4, 8\); this cache takes \(2, T, 4"):
        layer.attend(*chunk(2, batch=3))
    with pytest.raises(InputError, match=r"k has shape .*takes \(2, T, 2, 8\)"):
        layer.attend(*chunk(2, kv_heads=4))
    assert repr(layer) == "<KeptLayer: FullLayer, 2 rows, 16,904 bytes, float32>"


@pytest.mark.parametrize("name", ["full", "streaming", "snapkv", "recycled", "h2o", "knorm"])
def test_devices_share_out_heads_and_rows(name: str) -> None:
    """Each keeps its own part, and asks nothing of the others."""
    shape = {**SHAPE, "num_heads": 8, "num_kv_heads": 4, "batch_size": 4}
    over = jaxkv.mesh(data=2, model=4)
    how: dict[str, Any] = {"rope": ROPE, "sink_logits": jnp.arange(8, dtype=jnp.float32) / 4}
    one, many = layer_of(name, **shape), layer_of(name, **shape, mesh=over)
    arrays = jaxkv.to_arrays(many)
    keys = next(x for place, x in arrays.items() if place.endswith(".k"))
    assert {x.data.shape[:2] for x in keys.addressable_shards} == {(2, 1)}
    for count, seed in ((20, 0), (1, 1), (1, 2)):
        tokens = chunk(count, seed, 4, 8, 4)
        if count == 1:
            text = take.lower(many, *tokens, **how).compile().as_text()
            assert "all-gather" not in text and "all-to-all" not in text
        one, expected = take(one, *tokens, **how)
        many, out = take(many, *tokens, **how)
        np.testing.assert_allclose(out, expected, atol=1e-5)
    for place, x in jaxkv.to_arrays(one).items():
        if place == "kept.query":  # a mean over heads, which is read by what couples them alone
            continue
        np.testing.assert_allclose(jaxkv.to_arrays(many)[place], x, atol=1e-5)


def test_what_devices_cannot_share_out_is_refused() -> None:
    over = jaxkv.mesh(data=1, model=4)
    with pytest.raises(InputError, match="num_kv_heads 2 does not divide by model=4"):
        layer_of("full", mesh=over)
    with pytest.raises(InputError, match="axes names 'tp'; the mesh has data, model"):
        layer_of("full", mesh=over, axes=(None, "tp"))
    over = jaxkv.mesh(data=4, model=2)
    with pytest.raises(InputError, match="batch_size 2 does not divide by data=4"):
        layer_of("full", mesh=over)
    for name in ("adakv", "tova", "duo"):
        with pytest.raises(InputError, match="cannot lie over model=2; share out rows"):
            layer_of(name, mesh=over, batch_size=4)
    layer = layer_of("full", mesh=over, batch_size=4)
    with pytest.raises(InputError, match="slopes depend on the number of a head"):
        layer.attend(*chunk(3, batch=4), rope=Scoring(None, alibi_slopes(4)))
    explicit = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,))
    with pytest.raises(InputError, match="must be AxisType.Auto"):
        layer_of("full", mesh=explicit, axes=(None, "model"))


@pytest.mark.parametrize("name", SLAB_CASES)
def test_every_cache_is_a_dict_of_arrays_and_back(name: str) -> None:
    """Of a model, and of a layer; also abstract, and within a program."""
    cache = jaxkv.init_cache(toys.CONFIG, CASES[name].policy, 2, 64)
    for whole in (cache, layer_of(name)):
        arrays = jaxkv.to_arrays(whole)
        assert len(arrays) == len(jax.tree.leaves(whole))
        assert all(isinstance(x, jax.Array) for x in arrays.values())
        like = jax.eval_shape(lambda: whole)  # noqa: B023
        again = jaxkv.from_arrays(arrays, like)
        assert jax.tree.structure(again) == jax.tree.structure(whole)
        for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(whole), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_pool_and_packed_keys_are_arrays_too() -> None:
    policy = KeyDiff(16, window=3, sinks=2, decode_room=6, allocation="global")
    cache = jaxkv.init_cache(toys.CONFIG, policy, 2, 64, "int8")
    arrays = jaxkv.to_arrays(cache)
    assert {"pool.owner", "pool.k.values", "layers[1].ring.k.scale"} <= arrays.keys()
    assert jaxkv.from_arrays(arrays, cache).geometry == cache.geometry


def test_arrays_of_another_cache_are_refused_in_one_line() -> None:
    window = layer_of("window")
    arrays = jaxkv.to_arrays(window)
    for other, line in (
        (
            layer_of("streaming-default-sinks"),
            r"'kept.k' is float32\[2, 2, 10, 8\], and it should be float32",
        ),
        (layer_of("duo"), "'kept.k' is none of this one's"),
        (layer_of("window", batch_size=3), r"'kept.k' is .* should be float32\[3, 2, 10, 8\]"),
        (layer_of("window", dtype="bfloat16"), "should be bfloat16"),
    ):
        with pytest.raises(InputError, match=line) as error:
            jaxkv.from_arrays(arrays, other)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="'kept.pos' is missing"):
        jaxkv.from_arrays({k: v for k, v in arrays.items() if k != "kept.pos"}, window)
    with pytest.raises(InputError, match="'kept.pos' is list"):
        jaxkv.from_arrays({**arrays, "kept.pos": [1]}, window)


def test_a_step_of_a_dict_is_exported() -> None:
    layer, _ = take(layer_of("adakv"), *chunk(20), rope=ROPE)
    like = jax.eval_shape(lambda: layer)

    def step(arrays: Any, q: Any, k: Any, v: Any) -> Any:
        after, out = jaxkv.from_arrays(arrays, like).attend(q, k, v, rope=ROPE)
        return jaxkv.to_arrays(after), out

    arguments = jaxkv.to_arrays(layer), *chunk(1, 1)
    written = export.export(jax.jit(step))(*arguments).serialize()
    arrays, out = export.deserialize(written).call(*arguments)
    after, expected = take(layer, *chunk(1, 1), rope=ROPE)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert jaxkv.from_arrays(arrays, like).policy == after.policy
