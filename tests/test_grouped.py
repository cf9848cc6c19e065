# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Groups of heads with policies of their own, against each head computed alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from jaxkv import Full, InputError, Rope, StreamingLLM
from jaxkv.cache.bytes import kept_tokens, nbytes
from jaxkv.layers.api import prefill, step
from jaxkv.layers.base import Chunk
from jaxkv.layers.full import FullLayer
from jaxkv.layers.grouped import HeadGroups, part
from jaxkv.layers.ring import RingLayer

ROPE = Rope(8)
GEOMETRY = toys.geometry(batch=2, heads=8, kv_heads=4)
RETRIEVAL, LOCAL = (3, 0), (2, 1)

jit_prefill = jax.jit(functools.partial(prefill, rope=ROPE), static_argnums=0)
jit_step = jax.jit(functools.partial(step, rope=ROPE), static_argnums=0, donate_argnums=1)


def ring(heads) -> RingLayer:
    """A small ring for some heads."""
    return RingLayer(part(GEOMETRY, heads), sinks=2, window=5, in_cache=False)


def duo() -> HeadGroups:
    """Two heads that keep everything and two that keep little, out of order."""
    full = FullLayer(part(GEOMETRY, RETRIEVAL))
    return HeadGroups(GEOMETRY, (RETRIEVAL, LOCAL), (full, ring(LOCAL)))


def run(layer, q, k, v):
    """15 tokens of prompt, padded in row 1, and 4 steps: (cache, outs [B, 19, N, H])."""
    lengths = jnp.asarray([15, 11], jnp.int32)
    cache, out = jit_prefill(layer, layer.init(), q[:, :15], k[:, :15], v[:, :15], lengths=lengths)
    outs = [jnp.where((jnp.arange(15)[None] < lengths[:, None])[..., None, None], out, 0.0)]
    for t in range(15, 19):
        cache, out = jit_step(layer, cache, *(x[:, t : t + 1] for x in (q, k, v)))
        outs.append(out)
    return cache, np.asarray(jnp.concatenate(outs, axis=1))


def test_every_head_is_as_it_would_be_alone() -> None:
    q, k, v = toys.qkv(2, 19, heads=8, kv_heads=4)
    cache, out = run(duo(), q, k, v)
    alone = {True: FullLayer(part(GEOMETRY, (0,))), False: ring((0,))}
    for head in range(4):
        mine = slice(2 * head, 2 * head + 2)
        one = [q[:, :, mine], k[:, :, head : head + 1], v[:, :, head : head + 1]]
        _, expected = run(alone[head in RETRIEVAL], *one)
        np.testing.assert_allclose(out[:, :, mine], expected, atol=1e-5)
    assert kept_tokens((cache, cache)) == [[19, 8, 8, 19]] * 2
    assert kept_tokens((cache,), row=1) == [[15, 8, 8, 15]]


@pytest.mark.parametrize(
    "groups", [((0, 1), (2, 3)), ((0, 1, 2, 3),), ((), (0, 1, 2, 3)), ((2, 0), (), (3, 1))]
)
def test_a_split_without_a_difference_makes_none(groups) -> None:
    q, k, v = toys.qkv(2, 19, heads=8, kv_heads=4)
    layer = HeadGroups(GEOMETRY, groups, tuple(ring(heads) for heads in groups))
    plain = ring((0, 1, 2, 3))
    cache, out = run(layer, q, k, v)
    whole, expected = run(plain, q, k, v)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert kept_tokens((cache,)) == kept_tokens((whole,)) == [[8, 8, 8, 8]]
    assert layer.facts().kept(100) == plain.facts().kept(100) == (7, 7, 7, 7)
    assert len(cache.slabs) == sum(bool(heads) for heads in groups)


def test_heads_in_order_are_not_moved() -> None:
    """No gather of q, k, v or the output, where a slice does."""
    q, k, v = toys.qkv(2, 1, heads=8, kv_heads=4)

    def takes(groups) -> int:
        layer = HeadGroups(GEOMETRY, groups, tuple(ring(heads) for heads in groups))
        half = Chunk(q[:, :, :4], k[:, :, :2], v[:, :, :2], None, None, decoding=True)
        ungrouped = str(jax.make_jaxpr(ring((0, 1)).take)(ring((0, 1)).init(), half))
        ungrouped = ungrouped.count(" gather[")
        whole = Chunk(q, k, v, None, None, decoding=True)
        text = str(jax.make_jaxpr(layer.take)(layer.init(), whole))
        return text.count(" gather[") - 2 * ungrouped

    assert takes(((0, 1), (2, 3))) == 0
    assert takes(((1, 0), (2, 3))) > 0


def test_bytes_and_budgets_are_those_of_the_groups() -> None:
    layer = duo()
    assert layer.facts().kept(100) == (64, 7, 7, 64)
    assert layer.facts().kept(5) == (5, 5, 5, 5)
    cache = layer.init()
    slabs = sum(nbytes(one.init()) for one in layer.layers)
    assert nbytes(cache) == slabs
    assert cache.slabs[0].k.shape == (2, 2, 64, 8) and cache.slabs[1].k.shape == (2, 2, 8, 8)


def test_it_is_static_under_jit_and_its_cache_is_donated() -> None:
    q, k, v = (jnp.asarray(x) for x in toys.qkv(2, 1, heads=8, kv_heads=4))
    assert duo() == duo() and hash(duo()) == hash(duo())
    one = jax.jit(
        lambda layer, cache: step(layer, cache, q, k, v), static_argnums=0, donate_argnums=1
    )
    cache = duo().init()
    before = jax.tree.leaves(cache)
    after, _ = one(duo(), cache)
    assert all(leaf.is_deleted() for leaf in before)
    assert jax.tree.structure(after) == jax.tree.structure(cache)
    one(duo(), after)
    assert one._cache_size() == 1


@pytest.mark.parametrize("groups", [((0, 1), (2,)), ((0, 1), (1, 2, 3)), ((0, 1), (2, 4))])
def test_groups_that_are_no_partition_are_refused(groups) -> None:
    with pytest.raises(InputError, match="each of the 4 KV heads once"):
        HeadGroups(GEOMETRY, groups, tuple(ring(heads) for heads in groups))
    with pytest.raises(InputError, match="each group needs one"):
        HeadGroups(GEOMETRY, ((0, 1), (2, 3)), (ring((0, 1)),))


def test_policies_that_are_alike_for_all_heads_agree_with_their_groups() -> None:
    """`Policy.at` over a group's geometry is all that a wrapper needs."""
    q, k, v = toys.qkv(2, 19, heads=8, kv_heads=4)
    for policy in (Full(), StreamingLLM(2, 5)):
        groups = ((1, 3), (0, 2))
        layers = tuple(policy.at(0, part(GEOMETRY, heads)) for heads in groups)
        _, out = run(HeadGroups(GEOMETRY, groups, layers), q, k, v)
        _, expected = run(policy.at(0, GEOMETRY), q, k, v)
        np.testing.assert_allclose(out, expected, atol=1e-5)
