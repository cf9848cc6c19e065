# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""flax nnx' attention, its weights and its own cache beside ours."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxkv
from jaxkv.cache.bytes import kept_tokens
from jaxkv.core.errors import InputError
from jaxkv.integrations.nnx import MultiHeadAttention

HEADS, WIDTH, BATCH, LENGTH = 8, 32, 2, 24
NORMED = {"normalize_qk": True}
GROUPED = {"num_kv_heads": 2, "use_bias": False}
run = nnx.jit(lambda module, x: module(x))


def pair(policy: Any = None, seed: int = 0, **how: Any) -> tuple[Any, MultiHeadAttention]:
    """Theirs and ours, with the same weights and empty caches."""
    own = {key: how.pop(key) for key in ("rope", "window", "mesh") if key in how}
    sizes = {"num_heads": HEADS, "in_features": WIDTH, "decode": True, **how}
    theirs = nnx.MultiHeadAttention(**sizes, rngs=nnx.Rngs(seed))
    ours = MultiHeadAttention(
        **sizes, rngs=nnx.Rngs(seed + 1), policy=policy or jaxkv.Full(), **own
    )
    nnx.update(ours, nnx.state(theirs, nnx.Param))
    for module in (theirs, ours):
        module.init_cache((BATCH, LENGTH, WIDTH))
    return theirs, ours


def states(count: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(BATCH, count, WIDTH)), jnp.float32)


def token_by_token(module: Any, x: jax.Array) -> np.ndarray:
    return np.concatenate([run(module, x[:, t : t + 1]) for t in range(x.shape[1])], axis=1)


@pytest.mark.parametrize("how", [{}, NORMED, GROUPED], ids=["plain", "normed", "grouped"])
def test_full_is_their_own_cache(how: dict[str, Any]) -> None:
    """Token by token, and with a prompt in one call; and without a cache."""
    theirs, ours = pair(**how)
    x = states(12)
    expected = token_by_token(theirs, x)
    np.testing.assert_allclose(token_by_token(ours, x), expected, atol=1e-5)
    ours.init_cache((BATCH, LENGTH, WIDTH))
    out = np.concatenate([run(ours, x[:, :9]), token_by_token(ours, x[:, 9:])], axis=1)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    mask = nnx.make_causal_mask(x[..., 0])
    plain = {"mask": mask, "decode": False}
    np.testing.assert_array_equal(ours(x, **plain), theirs(x, **plain))


def test_the_parameters_have_their_names() -> None:
    theirs, ours = pair(**NORMED)
    shapes = [
        jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(m, nnx.Param))) for m in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]


def test_padding_on_the_right_does_not_matter() -> None:
    _, ours = pair()
    x, lengths = states(9), jnp.asarray([9, 5], jnp.int32)
    ours(x, lengths=lengths)
    after = ours(states(1, 1))
    _, alone = pair()
    alone.init_cache((1, LENGTH, WIDTH))
    alone(x[1:, :5])
    np.testing.assert_allclose(after[1:], alone(states(1, 1)[1:]), atol=1e-5)


def test_rotations_are_the_same_with_and_without_a_cache() -> None:
    _, ours = pair(rope=jaxkv.Rope(WIDTH // HEADS))
    x = states(12)
    whole = ours(x, mask=nnx.make_causal_mask(x[..., 0]), decode=False)
    out = np.concatenate([ours(x[:, :8]), token_by_token(ours, x[:, 8:])], axis=1)
    np.testing.assert_allclose(out, whole, atol=1e-5)
    _, plain = pair()
    assert np.abs(out - plain(x)).max() > 1e-3


def test_a_window_of_the_layer_s_own() -> None:
    _, ours = pair(jaxkv.SnapKV(8, window=2), window=4)
    x = states(12)
    at = np.arange(12)
    mask = (at[None] <= at[:, None]) & (at[None] >= at[:, None] - 4)
    mask = jnp.asarray(np.broadcast_to(mask, (BATCH, 1, 12, 12)))
    out = np.concatenate([ours(x[:, :8]), token_by_token(ours, x[:, 8:])], axis=1)
    np.testing.assert_allclose(out, ours(x, mask=mask, decode=False), atol=1e-5)


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (jaxkv.StreamingLLM(2, 5), 2 + 5 + 1),
        (jaxkv.SnapKV(6, window=2, kernel=1, decode_room=4), 6 + 4 + 1),
        (jaxkv.RecycledAttention(4, 2), 24 + 4),
    ],
    ids=["streaming", "snapkv", "recycled"],
)
def test_policies_keep_what_they_should(policy: Any, kept: int) -> None:
    """As many tokens as they say; and what they evicted makes a difference."""
    theirs, ours = pair(policy)
    x = states(24)
    out = np.concatenate([run(ours, x[:, :16]), token_by_token(ours, x[:, 16:])], axis=1)
    assert ours.kept is not None
    counts = kept_tokens((ours.kept.get_value().kept,))[0]
    assert set(counts) == {kept}, counts
    expected = token_by_token(theirs, x)
    assert np.isfinite(out).all() and np.abs(out - expected).max() > 1e-3
    if not isinstance(policy, jaxkv.StreamingLLM):  # the others read a prompt with all of it
        np.testing.assert_allclose(out[:, :16], expected[:, :16], atol=1e-5)


def test_too_many_tokens_are_no_number() -> None:
    """Theirs overwrites the last slot and says nothing."""
    theirs, ours = pair()
    x = states(LENGTH + 1)
    assert np.isnan(token_by_token(ours, x)[:, -1]).all()
    assert np.isfinite(token_by_token(theirs, x)).all()


class Stack(nnx.Module):
    """Layers of attention, stacked and run by `nnx.scan`."""

    def __init__(self, policy: Any, count: int = 3):
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(key: Any) -> MultiHeadAttention:
            layer = MultiHeadAttention(
                HEADS, WIDTH, policy=policy, decode=True, rngs=nnx.Rngs(key), **GROUPED
            )
            layer.init_cache((BATCH, LENGTH, WIDTH))
            return layer

        self.layers = make(jax.random.split(jax.random.key(0), count))

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def one(layer: Any, x: jax.Array) -> jax.Array:
            return x + layer(x)

        return one(self.layers, x)


@pytest.mark.parametrize("policy", [jaxkv.StreamingLLM(2, 5), jaxkv.SnapKV(6, window=2)])
def test_stacked_layers_are_scanned(policy: Any) -> None:
    stack = Stack(policy)
    graph, state = nnx.split(stack.layers)
    layers = [nnx.merge(graph, jax.tree.map(lambda x: x[i], state)) for i in range(3)]  # noqa: B023
    for count, seed in ((16, 0), (1, 1), (1, 2)):
        x = expected = states(count, seed)
        for layer in layers:
            expected = expected + layer(expected)
        np.testing.assert_allclose(run(stack, x), expected, atol=1e-5)


def test_heads_lie_over_a_mesh() -> None:
    """Eight devices, a head each: the same numbers, and no cache is gathered."""
    over = jaxkv.mesh(data=1, model=8)
    for policy in (jaxkv.Full(), jaxkv.SnapKV(6, window=2)):
        (_, one), (_, many) = pair(policy), pair(policy, mesh=over)
        x = states(20)
        for begin, end in ((0, 16), (16, 17), (17, 18)):
            part = x[:, begin:end]
            np.testing.assert_allclose(run(many, part), run(one, part), atol=1e-5)
        assert many.kept is not None
        arrays = jaxkv.to_arrays(many.kept.get_value())
        keys = next(x for place, x in arrays.items() if place.endswith(".k"))
        assert {x.data.shape[1] for x in keys.addressable_shards} == {1}


def test_a_view_makes_the_cache() -> None:
    """The module of training, and a view of it that decodes."""
    _, made = pair()
    trained = MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=nnx.Rngs(0))
    nnx.update(trained, nnx.state(made, nnx.Param))
    view = nnx.view(trained, decode=True, batch_size=BATCH, max_length=LENGTH)
    assert trained.kept is None
    np.testing.assert_allclose(view(states(5)), made(states(5)), atol=1e-5)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"mask": jnp.ones((BATCH, 1, 3, 3))}, "decode mode does not take a mask"),
        ({"inputs_k": jnp.ones((BATCH, 3, WIDTH))}, "decode mode does not take other inputs"),
        ({"sow_weights": True}, "does not take sown weights"),
        ({"input_positions": jnp.zeros((3,), jnp.int32)}, "does not take input_positions"),
        ({"lengths": jnp.ones((BATCH,), jnp.int32), "decode": False}, "lengths are for decode"),
    ],
)
def test_what_decode_mode_does_not_do_is_refused(how: dict[str, Any], line: str) -> None:
    _, ours = pair()
    with pytest.raises(InputError, match=line):
        ours(states(3), **how)


def test_other_things_that_cannot_be_are_refused() -> None:
    _, ours = pair(dropout_rate=0.1, deterministic=False)
    with pytest.raises(InputError, match="does not take dropout"):
        ours(states(3))
    ours(states(3), deterministic=True)
    _, ours = pair(attention_fn=lambda *_, **__: 0)
    with pytest.raises(InputError, match="does not take an attention_fn of your own"):
        ours(states(3))
    with pytest.raises(InputError, match=r"inputs have shape \(2, 3, 16\)"):
        pair()[1](states(3)[..., :16])
    with pytest.raises(InputError, match=r"must be \(B, max_length, D\)"):
        pair()[1].init_cache((LENGTH, WIDTH))
    fresh = MultiHeadAttention(HEADS, WIDTH, decode=True, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="call init_cache first"):
        fresh(states(3))
