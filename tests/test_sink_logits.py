# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A score that goes to no key: learned for each query head, or zero."""

from __future__ import annotations

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from dense_model import DenseModel
from policy_cases import CASES, SLAB_CASES, law

import jaxkv
from jaxkv import InputError, StreamingLLM
from jaxkv.attention import attend_one_mass
from jaxkv.checkpoints import orbax, toy
from jaxkv.generate.running import forward
from jaxkv.layers import api
from jaxkv.layers.api import prefill, step
from jaxkv.policies.keydiff import KeyDiff

CONFIG = dataclasses.replace(toys.CONFIG, sink_logits=True)
ROPE = CONFIG.rope
LENGTH, ROWS = 30, (30, 19)
# Every kind of layer at a budget that is never reached, and one budget over all layers.
ROOMY = {name: case.roomy for name, case in CASES.items() if case.hard_for is None} | {
    "global": KeyDiff(200, window=2, sinks=1, decode_room=40, allocation="global")
}
jit_step = jax.jit(step, static_argnums=0, static_argnames="rope")
jit_prefill = jax.jit(prefill, static_argnums=0, static_argnames="rope")
run = jax.jit(forward, static_argnums=(1, 2))


@pytest.fixture(scope="module")
def params():
    """Of which the sink logits are large enough to matter."""
    found = toys.params(CONFIG)
    for layer in found["layers"]:
        layer["sink_logits"] = layer["sink_logits"] * 4 + 1
    return found


@pytest.fixture(scope="module")
def expected(params) -> list[np.ndarray]:
    """Of dense attention with one more term below the line, in NumPy: logits [T, V] of each row."""
    oracle, found = DenseModel(params, CONFIG), []
    for row, length in zip(toys.tokens(2, LENGTH), ROWS, strict=True):
        x = oracle.last(row[:length].tolist())
        found.append(oracle.norm(x, oracle.params["final_norm"]) @ oracle.params["embed"].T)
    return found


@pytest.mark.parametrize("name", ROOMY)
def test_every_kind_of_layer_counts_it(name, params, expected) -> None:
    """In prompts and in steps, of which the last four are."""
    policy, tokens = ROOMY[name], toys.tokens(2, LENGTH)
    cache = toys.begun(CONFIG, policy, 2, 64)
    lengths, got = np.asarray(ROWS, np.int32), [[], []]
    logits, cache = run(params, CONFIG, policy, tokens, cache, lengths - 4)
    for row, length in enumerate(ROWS):
        got[row].append(np.asarray(logits)[row, : length - 4])
    for index in range(-4, 0):
        some = np.stack([tokens[row, length + index] for row, length in enumerate(ROWS)])
        logits, cache = run(params, CONFIG, policy, some[:, None], cache)
        for row in range(2):
            got[row].append(np.asarray(logits)[row])
    for mine, wanted in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.concatenate(mine), wanted, atol=3e-5)


@law("jit", SLAB_CASES)
def test_it_is_one_more_term_of_what_is_kept(name) -> None:
    """Where tokens were evicted: attention to a value that is 1 everywhere tells its whole share.

    That share is z / (z + exp(logit)) with the same z for every logit, and the other values of the
    output are what they are without a sink, times that share.
    """
    layer = CASES[name].policy.at(0, toys.geometry(2))
    q, k, v = toys.qkv(2, 28)
    v[..., 0] = 1
    some = [jnp.asarray([-1.0, 0.5, 2.0, 0.0]) + more for more in (0.0, 1.5)]
    lengths = jnp.asarray([16, 11], jnp.int32)
    cache, begin = layer.init(), 0

    def compare(call, end: int, **lengths) -> object:
        part = [jnp.asarray(x[:, begin:end]) for x in (q, k, v)]
        after, plain = call(layer, cache, *part, rope=ROPE, **lengths)
        totals = []
        for logits in some:
            _, out = call(layer, cache, *part, rope=ROPE, sink_logits=logits, **lengths)
            share = np.asarray(out, np.float64)[..., :1]
            np.testing.assert_allclose(out, np.asarray(plain) * share, atol=1e-5)
            totals.append(share[..., 0] / (1 - share[..., 0]) * np.exp(np.asarray(logits)))
        first, second = (x[0] for x in totals)  # whose row has no padding
        np.testing.assert_allclose(first, second, rtol=1e-3)
        assert (first > 0.01).all()
        return after

    cache, begin = compare(jit_prefill, 16, lengths=lengths), 16
    for end in range(17, 29):  # more steps than from one that reads everything to the next
        cache, begin = compare(jit_step, end), end


def test_mass_is_of_all_that_is_looked_at() -> None:
    q, k, v = toys.qkv(1, 9)
    logits, at = jnp.asarray([0.3, -2.0, 4.0, 0.0]), jnp.asarray([[8]], jnp.int32)
    keys, values = (jnp.asarray(x).swapaxes(1, 2) for x in (k, v))
    pos = jnp.arange(9, dtype=jnp.int32)[None, None]
    last = jnp.asarray(q[:, -1:])
    out, mass = attend_one_mass(last, keys, values, at, pos, None, logits)
    scores = np.einsum("ngh,sgh->ngs", q[0, -1].reshape(2, 2, 8).swapaxes(0, 1), k[0]) / 8**0.5
    weights = np.exp(scores.swapaxes(0, 1).reshape(4, 9))
    weights = weights / (weights.sum(-1, keepdims=True) + np.exp(np.asarray(logits))[:, None])
    np.testing.assert_allclose(mass[0], weights, atol=1e-6)
    wanted = np.einsum("ngs,sgh->gnh", weights.reshape(2, 2, 9).swapaxes(0, 1), v[0])
    np.testing.assert_allclose(out[0, 0], wanted.reshape(4, 8), atol=1e-6)


def test_its_gradient_is_the_slope(params) -> None:
    """Through a prompt and steps of sinks and a window, by differences."""
    policy, tokens = StreamingLLM(2, 6), jnp.asarray(toys.tokens(1, 14))

    @jax.jit
    def loss(logits):
        layers = [
            {**layer, "sink_logits": mine}
            for layer, mine in zip(params["layers"], logits, strict=True)
        ]
        moved = {**params, "layers": tuple(layers)}
        cache = toys.begun(CONFIG, policy, 1, 64)
        out, cache = forward(moved, CONFIG, policy, tokens[:, :12], cache)
        for t in (12, 13):
            more, cache = forward(moved, CONFIG, policy, tokens[:, t : t + 1], cache)
            out = jnp.concatenate([out, more], axis=1)
        return jnp.mean(jnp.square(out))

    at = jnp.stack([layer["sink_logits"] for layer in params["layers"]])
    found = np.asarray(jax.grad(loss)(at))
    assert (np.abs(found) > 0).all()
    length = float(np.linalg.norm(found))
    move = 1e-2 * found / length
    slope = (float(loss(at + move)) - float(loss(at - move))) / 2e-2
    assert slope == pytest.approx(length, rel=0.02)


def test_it_is_saved_and_loaded_and_has_no_word_elsewhere(params, tmp_path) -> None:
    small = toy.load()
    config = dataclasses.replace(CONFIG, vocab_size=small.config.vocab_size)
    model = dataclasses.replace(small, config=config, params=toys.params(config))
    model.params["layers"][0]["sink_logits"] += 3
    orbax.save(tmp_path / "kept", model)
    again = jaxkv.load(str(tmp_path / "kept"))
    assert again.config == config
    for mine, theirs in zip(model.params["layers"], again.params["layers"], strict=True):
        np.testing.assert_array_equal(mine["sink_logits"], theirs["sink_logits"])
    with pytest.raises(InputError, match="sink_logits"):
        jaxkv.export_hf(tmp_path / "theirs", model)
    assert not (tmp_path / "theirs").exists()


def test_their_number_is_that_of_the_query_heads() -> None:
    """Without jaxtyping's check of arguments, which is there in tests alone."""
    parts = map(jnp.asarray, toys.qkv(1, 5))
    with pytest.raises(InputError, match=r"sink_logits have shape \(2,\) .* they must be \[N\]"):
        inspect.unwrap(api._check)(*parts, jnp.zeros(2))
