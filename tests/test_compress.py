# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A full cache made small afterwards, beside policies that read the prompt themselves."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from policy_cases import AT_AN_END, CASES, SCORE_ALONE

import jaxkv
from jaxkv.cache.pool import Pool
from jaxkv.cache.slab import Slab
from jaxkv.checkpoints import toy
from jaxkv.core.errors import InputError
from jaxkv.generate.loop import forget_programs, kept_program
from jaxkv.models.plan import plan

READ = jaxkv.Full(queries=8, moments=True)
LENGTHS = [40, 23]
run = jax.jit(jaxkv.forward)
# What a layer keeps when it has chosen from full attention; a ring reads with its own.
CHOOSING = [
    name for name, case in CASES.items()
    if not isinstance(case.policy, jaxkv.SlidingRecompute)
    and case.hard_for not in (SCORE_ALONE, AT_AN_END, (*AT_AN_END, "rows"))
    and plan(case.policy, toys.geometry()).chooses
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> jaxkv.Model:
    return dataclasses.replace(toy.load(), config=toys.CONFIG, params=toys.params())


def read(policy: jaxkv.Policy) -> jaxkv.Cache:
    """A cache after two ragged prompts, in one call."""
    cache = jaxkv.init_cache(toys.CONFIG, policy, 2, 64)
    tokens = jnp.asarray(toys.tokens(2, 40))
    lengths = jnp.asarray(LENGTHS, jnp.int32)
    return run(toys.params(), toys.CONFIG, policy, tokens, cache, lengths)[1]


def told(cache: jaxkv.Cache) -> list[dict]:
    """Of each layer's parts: which token is where, and the keys and values of those that are."""
    parts = jax.tree.leaves(cache.layers, is_leaf=lambda x: isinstance(x, Slab | Pool))
    found = []
    for part in parts:
        if not isinstance(part, Slab | Pool):
            found.append({"other": np.asarray(part)})
            continue
        pos = np.asarray(part.pos)
        shape = (*part.k.shape[:-1], 1)
        held = np.broadcast_to(pos >= 0, shape[:-1]).reshape(shape)
        found.append({"pos": pos, "k": np.where(held, part.k, 0), "v": np.where(held, part.v, 0)})
    return found


@pytest.mark.parametrize("name", CHOOSING)
def test_it_is_what_the_policy_keeps_when_it_reads_the_prompt(name: str, model) -> None:
    policy = CASES[name].policy
    small = jaxkv.compress(model, read(READ), policy)
    expected = read(policy)
    assert jax.tree.structure(small) == jax.tree.structure(expected)
    rings = isinstance(policy, jaxkv.Window | jaxkv.StreamingLLM | jaxkv.DuoAttention)
    for mine, theirs in zip(told(small), told(expected), strict=True):
        for key, value in theirs.items():
            # The second layer of a ring read what the first could still see.
            if not rings or key == "pos":
                np.testing.assert_allclose(mine[key], value, atol=2e-5, err_msg=key)
    tokens = jnp.asarray(toys.tokens(2, 1))
    logits, _ = run(model.params, model.config, policy, tokens, small)
    if not rings:
        wanted, _ = run(model.params, model.config, policy, tokens, expected)
        np.testing.assert_allclose(logits, wanted, atol=1e-4)


def test_chunks_and_steps_leave_the_same_evidence() -> None:
    """Whatever the prompt came in, the last queries and the moments are those of all of it."""
    whole = read(READ)
    cache = jaxkv.init_cache(toys.CONFIG, READ, 2, 64)
    tokens = toys.tokens(2, 40)
    for begin, end in ((0, 13), (13, 39), (39, 40)):
        lengths = jnp.asarray([min(max(n - begin, 0), end - begin) for n in LENGTHS], jnp.int32)
        part = jnp.asarray(tokens[:, begin:end])
        _, cache = run(toys.params(), toys.CONFIG, READ, part, cache, lengths)
    for mine, theirs in zip(jax.tree.leaves(cache), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-4)


def test_many_budgets_from_one_cache(model) -> None:
    cache = read(READ)
    sizes = [jaxkv.nbytes(jaxkv.compress(model, cache, jaxkv.TOVA(n))) for n in (4, 8, 16)]
    assert sizes == sorted(set(sizes)) and sizes[-1] < jaxkv.nbytes(cache)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(cache))


def test_its_programs_are_kept_and_let_go(model) -> None:
    cache = read(READ)
    forget_programs()
    for _ in range(2):
        jaxkv.compress(model, cache, jaxkv.TOVA(8))
    assert kept_program.cache_info()[:2] == (1, 1)  # hits, misses
    forget_programs()
    assert not kept_program.cache_info().currsize


def test_what_cannot_be_chosen_afterwards_is_said(model) -> None:
    plain = read(jaxkv.Full())
    snapkv = CASES["snapkv"].policy
    with pytest.raises(InputError, match=r"last 2 queries .* kept 0; .* under Full\(queries=2\)"):
        jaxkv.compress(model, plain, snapkv)
    with pytest.raises(InputError, match="'h2o' cannot choose from a full cache; it must read"):
        jaxkv.compress(model, plain, jaxkv.H2O(8))
    with pytest.raises(InputError, match="cannot choose from a full cache; it must"):
        jaxkv.compress(model, read(READ), CASES["own-outputs"].policy)
    with pytest.raises(InputError, match="'compactor' cannot choose from a full cache; it must"):
        jaxkv.compress(model, read(READ), CASES["compactor"].policy)
    other = dataclasses.replace(toys.CONFIG, vocab_size=99)
    with pytest.raises(InputError, match="the cache is of the model layers2-.*-vocab61, and this"):
        jaxkv.compress(dataclasses.replace(model, config=other), plain, jaxkv.TOVA(8))
    with pytest.raises(InputError, match="made for another policy than Full"):
        jaxkv.compress(model, read(jaxkv.Window(9)), jaxkv.TOVA(8))
    with pytest.raises(InputError, match="'full' cannot choose from a full cache; it must read"):
        jaxkv.compress(model, plain, jaxkv.Full(queries=4))
    with pytest.raises(InputError, match="queries is -1"):
        jaxkv.Full(queries=-1)
