# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One budget for all layers and heads: what is chosen, what it takes, and that it is read right."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from own_policies import KeyDiff, Unnamed

import jaxkv
from jaxkv.cache.bytes import kept_tokens
from jaxkv.cache.pool import Pool
from jaxkv.cache.shared import Shared, best_of_all
from jaxkv.cache.slab import Slab
from jaxkv.checkpoints import toy
from jaxkv.core.errors import InputError
from jaxkv.models.plan import plan

LENGTHS = (48, 29)
POLICY = KeyDiff(16, window=3, sinks=2, decode_room=6, allocation="global")
run, chosen = jax.jit(jaxkv.forward), jax.jit(best_of_all)


def held_by(cache: jaxkv.Cache, row: int) -> list[list[set[int]]]:
    """The positions that each head of each layer holds."""
    found = []
    for layer in cache.layers:
        heads = [set() for _ in range(cache.geometry.num_kv_heads)]
        slabs = jax.tree.leaves(layer, is_leaf=lambda x: isinstance(x, Slab | Pool))
        if isinstance(layer, Shared):
            assert cache.pool is not None
            pos, owner = np.asarray(cache.pool.pos)[row], np.asarray(cache.pool.owner)[row]
            size = len(pos) // len(owner)
            begins = np.asarray(layer.begins)[row]
            for head, mine in enumerate(heads):
                blocks = range(int(begins[head]), int(begins[head + 1]))
                assert all(owner[block] == head for block in blocks)
                for block in blocks:
                    mine |= set(pos[block * size : (block + 1) * size].tolist())
            slabs = [layer.ring]
        begin = 0
        for part in (x for x in slabs if isinstance(x, Slab | Pool)):
            if isinstance(part, Pool):
                pos, owner = np.asarray(part.pos)[row], np.asarray(part.owner)[row]
                whose = np.repeat(owner, len(pos) // len(owner))
                for head, mine in enumerate(heads):
                    mine |= set(pos[whose == head].tolist())
                continue
            pos = np.broadcast_to(part.pos[row], (part.heads, part.slots))
            for head in range(part.heads):
                heads[(begin + head) % len(heads)] |= set(pos[head].tolist())
            begin += part.heads
        found.append([{p for p in mine if p >= 0} for mine in heads])
    return found


def read(policy, lengths=LENGTHS, config=toys.CONFIG, rows=None) -> tuple[jax.Array, jaxkv.Cache]:
    """Logits and cache after ragged prompts, in one call."""
    cache = jaxkv.init_cache(config, policy, len(lengths), 64)
    tokens = toys.tokens(2, max(LENGTHS))[: len(lengths)] if rows is None else rows
    lengths = jnp.asarray(lengths, jnp.int32)
    return run(toys.params(config), config, policy, jnp.asarray(tokens), cache, lengths)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 999), total=st.integers(0, 40), layers=st.integers(1, 3),
    ties=st.booleans(), hidden=st.floats(0, 1),
)  # fmt: skip
def test_the_best_of_all_are_found(seed, total, layers, ties, hidden) -> None:
    """As a sort finds them, the first of equal ones, sinks and tokens that may not be chosen."""
    rng = np.random.default_rng(seed)
    shape = layers, 2, 2, 8
    scores = rng.integers(-3, 3, shape) if ties else rng.normal(size=shape) * 1e3
    scores = np.where(rng.random(shape) < hidden, -np.inf, scores).astype(np.float32)
    scores[0, 0, 0, 0] = np.inf
    found = np.stack(chosen([jnp.asarray(x) for x in scores], jnp.int32(total)))
    for row in range(2):
        flat = scores[:, row].reshape(-1)
        order = [i for i in np.argsort(-flat, kind="stable") if flat[i] > -np.inf][:total]
        assert set(np.flatnonzero(found[:, row])) == set(order)


def test_one_budget_is_for_all_layers_and_heads() -> None:
    """By scores from the keys that a full cache holds, one list of them for the model."""
    _, small = read(POLICY)
    _, full = read(jaxkv.Full())
    for row, length in enumerate(LENGTHS):
        scores, where = [], []
        for index, layer in enumerate(full.layers):
            keys = np.asarray(layer.k, np.float64)[row, :, :length]
            keys = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
            cosine = np.einsum("ksh,kh->ks", keys, keys.mean(axis=1))
            for head in range(2):
                for p in range(length - POLICY.window):
                    scores.append(np.inf if p < POLICY.sinks else -cosine[head, p])
                    where.append((index, head, p))
        total = 4 * (POLICY.budget - POLICY.window)
        best = {where[i] for i in np.argsort(-np.asarray(scores), kind="stable")[:total]}
        held = held_by(small, row)
        for index in range(2):
            for head in range(2):
                mine = {p for layer, h, p in best if (layer, h) == (index, head)}
                assert held[index][head] == mine | set(range(length - 3, length))
    counts = kept_tokens(small.layers, 0)
    assert counts == [[len(head) for head in layer] for layer in held_by(small, 0)]
    assert len({count for layer in counts for count in layer}) > 1


def test_it_is_read_as_if_the_rest_were_masked() -> None:
    """Beside a full cache of which only the kept positions may be seen, for some steps."""
    policy = dataclasses.replace(POLICY, decode_room=60)
    logits, small = read(policy)
    _, full = read(jaxkv.Full())
    masked = dataclasses.replace(
        full,
        layers=tuple(
            dataclasses.replace(layer, pos=only(layer.pos, [held_by(small, r)[i] for r in (0, 1)]))
            for i, layer in enumerate(full.layers)
        ),
    )
    hidden = Masked()
    for step in range(4):
        token = jnp.asarray(toys.tokens(2, 1, seed=10 + step))
        mine, small = run(toys.params(), toys.CONFIG, policy, token, small)
        theirs, masked = run(toys.params(), toys.CONFIG, hidden, token, masked)
        np.testing.assert_allclose(mine, theirs, atol=2e-4)


def only(pos: jax.Array, held: list[list[set[int]]]) -> jax.Array:
    """Positions [B, K, S] of those that are held."""
    shown = np.full((pos.shape[0], 2, pos.shape[2]), -1, np.int32)
    for row, heads in enumerate(held):
        for head, tokens in enumerate(heads):
            shown[row, head, sorted(tokens)] = sorted(tokens)
    return jnp.asarray(shown)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Masked:
    """A full cache whose heads may each see other tokens."""

    def at(self, layer, geometry):
        """As `Full`, with positions of each head."""
        return MaskedLayer(jaxkv.Full().at(layer, geometry))


@dataclasses.dataclass(frozen=True)
class MaskedLayer:
    """See `Masked`."""

    full: object

    def init(self):
        """As many heads of positions as keys."""
        slab = self.full.init()
        pos = jnp.broadcast_to(slab.pos, (*slab.k.shape[:3],))
        return dataclasses.replace(slab, pos=pos)

    def take(self, cache, chunk):
        """As `FullLayer`."""
        return self.full.take(cache, chunk)

    def facts(self):
        """As `FullLayer`."""
        return self.full.facts()


def test_a_budget_for_all_is_the_full_cache() -> None:
    policy = dataclasses.replace(POLICY, budget=200, decode_room=30)
    logits, small = read(policy)
    whole, full = read(jaxkv.Full())
    np.testing.assert_allclose(logits[1, :29], whole[1, :29], atol=2e-4)
    for step in range(3):
        token = jnp.asarray(toys.tokens(2, 1, seed=step))
        mine, small = run(toys.params(), toys.CONFIG, policy, token, small)
        theirs, full = run(toys.params(), toys.CONFIG, jaxkv.Full(), token, full)
        np.testing.assert_allclose(mine, theirs, atol=2e-4)


def test_rows_are_alone_and_padding_is_nothing() -> None:
    _, both = read(POLICY)
    for row, length in enumerate(LENGTHS):
        tokens = toys.tokens(2, max(LENGTHS))[row : row + 1]
        for padded in (tokens[:, :length], np.pad(tokens[:, :length], ((0, 0), (0, 5)))):
            _, alone = read(POLICY, lengths=(length,), rows=padded)
            assert held_by(alone, 0) == held_by(both, row)


def test_a_row_that_has_no_prompt_yet_takes_one_later() -> None:
    """Rows are chosen for when they have read; the others' tokens stay where they are."""
    cache = jaxkv.init_cache(toys.CONFIG, POLICY, 2, 64)
    tokens = jnp.asarray(toys.tokens(2, 48))
    args = toys.params(), toys.CONFIG, POLICY, tokens
    _, cache = run(*args, cache, jnp.asarray([48, 0], jnp.int32))
    first = held_by(cache, 0)
    _, cache = run(*args, cache, jnp.asarray([0, 29], jnp.int32))
    assert held_by(cache, 0) == first
    _, both = read(POLICY)
    assert held_by(cache, 1) == held_by(both, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_held_is_what_is_claimed(dtype) -> None:
    """At a mean budget of 256 and up, positions and the ends of blocks included."""
    config = dataclasses.replace(
        toys.CONFIG, head_dim=64, num_layers=4, num_heads=9, num_kv_heads=3
    )
    for budget in (256, 1024):
        policy = KeyDiff(budget, allocation="global")
        planned = plan(policy, jaxkv.models.decoder.geometry(config, 2, 8192, dtype))
        assert planned.nominal_bytes < planned.physical_bytes <= 1.08 * planned.nominal_bytes


def test_a_layer_reads_its_own_blocks_alone() -> None:
    """What other layers and heads hold may be anything: it is not looked at."""
    _, small = read(POLICY)
    token = jnp.asarray(toys.tokens(2, 1))
    clean, _ = run(toys.params(), toys.CONFIG, POLICY, token, small)
    pool = small.pool
    used = np.zeros(pool.pos.shape, bool)
    size = used.shape[1] // pool.owner.shape[1]
    for row in range(2):
        end = int(small.layers[-1].begins[row, -1])
        used[row, : end * size] = np.asarray(pool.pos)[row, : end * size] >= 0
    dirty = dataclasses.replace(
        pool, k=jnp.where(used[..., None], pool.k, 1e9), v=jnp.where(used[..., None], pool.v, 1e9)
    )
    found, _ = run(
        toys.params(), toys.CONFIG, POLICY, token, dataclasses.replace(small, pool=dirty)
    )
    np.testing.assert_array_equal(found, clean)


def test_it_is_saved_generated_with_and_refused(tmp_path) -> None:
    model = toy.load()
    policy = jaxkv.make_policy("expected", {"budget": 16, "allocation": "global"})
    found = jaxkv.generate(model, ["one two three four five six"], policy=policy, max_new_tokens=4)
    cache = found.state.cache
    jaxkv.save_cache(tmp_path / "c", cache, policy)
    again = jaxkv.load_cache(tmp_path / "c", policy)
    for mine, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(cache), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert "bytes" in repr(cache)
    other = dataclasses.replace(policy, budget=32)
    with pytest.raises(InputError, match="made for another policy than ExpectedAttention"):
        plan(other, cache.geometry).check(cache)
    layer = POLICY.at(0, toys.geometry())
    with pytest.raises(InputError, match="a layer alone has no pool"):
        jaxkv.prefill(layer, layer.init(), *map(jnp.asarray, toys.qkv(1, 8)), rope=jaxkv.Rope(8))


def test_its_prompts_share_a_program() -> None:
    """Shares are data: the same program serves prompts that share out differently."""
    policy = Unnamed(16, window=3, sinks=2, decode_room=6, allocation="global")
    traced = []

    @jax.jit
    def counted(tokens, cache):
        traced.append(1)
        return jaxkv.forward(toys.params(), toys.CONFIG, policy, tokens, cache)

    shares = set()
    for seed in range(3):
        cache = jaxkv.init_cache(toys.CONFIG, policy, 1, 64)
        _, cache = counted(jnp.asarray(toys.tokens(1, 48, seed=seed)), cache)
        shares.add(str(kept_tokens(cache.layers)))
    assert len(traced) == 1 and len(shares) > 1
