# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Every way to share out a budget under every kind of score, against the formulas in NumPy."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import policy_cases
import pytest
import toys
from own_policies import KeyDiff
from test_selected import Oracle, positions_held, rotated

import jaxkv
from jaxkv import AdaKV, HeadKV, PyramidKV, Rope, SnapKV
from jaxkv.eval.__main__ import main as evaluate
from jaxkv.layers.api import prefill
from jaxkv.policies.scored import ScoredPolicy
from jaxkv.policies.shares import save_shares

LONGEST = 40
jit_prefill = jax.jit(functools.partial(prefill, rope=Rope(8)), static_argnums=0)
POLICIES = {
    "keydiff": KeyDiff(12, sinks=2, window=3, decode_room=4),
    "snapkv": SnapKV(12, window=3, kernel=3, decode_room=4),
    "snapkv-sinks": SnapKV(12, sinks=3, window=3, kernel=3, decode_room=4),
    "pyramidkv": PyramidKV(11, window=2, kernel=5, decode_room=4),
}


def scores_of(policy: ScoredPolicy, q, k, v, length: int) -> np.ndarray:
    """Of the tokens before the window: [K, P]."""
    if isinstance(policy, SnapKV):
        return Oracle(q, k, v, policy.window, policy.kernel, 1).scores(length)
    keys = rotated(k[:length].astype(float), np.arange(length)).swapaxes(0, 1)
    unit = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    cosines = np.einsum("ksh,kh->ks", unit, unit.mean(axis=1))
    return -cosines[:, : max(length - policy.window, 0)]


def caps_of(policy: ScoredPolicy, scores: np.ndarray, layer: int) -> list[int]:
    """Tokens that each head chooses, its sinks among them."""
    heads, dealt = len(scores), policy.budget - policy.window - policy.sinks
    sinks = min(policy.sinks, scores.shape[1])
    if policy.allocation == "ada":
        rest = scores[:, sinks:]
        best = np.argsort(-rest.reshape(-1), kind="stable")[: heads * dealt]
        won = [(best // max(rest.shape[1], 1) == head).sum() for head in range(heads)]
        sure = int(policy.floor * dealt)
        return [int(np.round(n * (1 - policy.floor) + sure)) + sinks for n in won]
    if policy.allocation == "table":
        with open(policy_cases.SHARES) as file:
            table = json.load(file)
        (low, high), tables = table["ratios"], np.array(table["shares"])
        part = (policy.budget / 64 - low) / (high - low)
        exact = ((1 - part) * tables[0] + part * tables[1]).reshape(-1) * dealt
        caps = np.floor(exact).astype(int)
        for head in sorted(range(4), key=lambda i: caps[i] - exact[i])[: 4 * dealt - caps.sum()]:
            caps[head] += 1
        return [int(cap) + policy.sinks for cap in caps.reshape(2, 2)[layer]]
    return [dealt + policy.sinks] * heads


def kept_by_hand(policy: ScoredPolicy, q, k, v, length: int, layer: int) -> list[set[int]]:
    """Positions that each head keeps of a prompt."""
    scores = scores_of(policy, q, k, v, length)
    caps = caps_of(policy, scores, layer)
    scores[:, : policy.sinks] = np.inf
    recent = set(range(max(0, length - policy.window), length))
    return [
        recent | set(np.argsort(-mine, kind="stable")[:cap].tolist())
        for mine, cap in zip(scores, caps, strict=True)
    ]


@pytest.mark.parametrize("allocation", ["uniform", "ada", "table"])
@pytest.mark.parametrize("name", POLICIES)
def test_what_is_kept_is_the_formulas(name, allocation) -> None:
    table = policy_cases.SHARES if allocation == "table" else None
    policy = dataclasses.replace(POLICIES[name], allocation=allocation, table=table)
    for index in (0, 1):
        layer = policy.at(index, toys.geometry())
        for length in (1, 3, 7, 13, 40):
            qkv = toys.qkv(1, LONGEST, seed=length)
            lengths = jnp.asarray([length], jnp.int32)
            cache, _ = jit_prefill(layer, layer.init(), *qkv, lengths=lengths)
            rows = [x[0] for x in qkv]
            assert positions_held(cache) == kept_by_hand(policy, *rows, length, index)
        if allocation != "table":  # which is all that tells layers apart
            break


@pytest.mark.parametrize("floor", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("budget", [5, 6, 11, 30])
def test_sinks_are_in_every_head_and_the_pool_suffices(budget, floor) -> None:
    """However the prompt deals the rest out, and also where there is no rest."""
    policy = KeyDiff(budget, sinks=2, window=3, decode_room=2, allocation="ada", floor=floor)
    layer = policy.at(0, toys.geometry(heads=8, kv_heads=4))
    for seed in range(6):
        qkv = toys.qkv(1, LONGEST, heads=8, kv_heads=4, seed=seed)
        cache, _ = jit_prefill(layer, layer.init(), *qkv)
        held = positions_held(cache)
        assert held == kept_by_hand(policy, *(x[0] for x in qkv), LONGEST, 0)
        assert all({0, 1, 37, 38, 39} <= of_head for of_head in held)


def test_own_budgets_leave_room_for_sinks() -> None:
    """By depth or by importance: what is dealt out is what the sinks leave."""
    shapes = toys.geometry(max_length=400)
    same = {"sinks": 4, "window": 3, "kernel": 3, "decode_room": 0}
    plain = {**same, "sinks": 0}
    pairs = [
        (PyramidKV(44, beta=20, **same), PyramidKV(40, beta=20, **plain)),
        (
            HeadKV(44, scores=policy_cases.SCORES, **same),
            HeadKV(40, scores=policy_cases.SCORES, **plain),
        ),
    ]
    for with_sinks, without in pairs:
        for index in (0, 1):
            more, less = (x.at(index, shapes).caps for x in (with_sinks, without))
            assert [cap - 4 for cap in more] == list(less)


def test_budgets_by_shares_are_the_models() -> None:
    """Over both layers, and also where a head cannot fill its share."""
    for budget in (8, 20, 33, 60, 64, 100):
        policy = SnapKV(
            budget, sinks=1, window=4, decode_room=0, allocation="table", table=policy_cases.SHARES
        )
        caps = [policy.at(i, toys.geometry()).caps for i in (0, 1)]
        assert np.sum(caps) == 4 * (min(budget, 64) - 4)
        assert 1 <= np.min(caps) and np.max(caps) <= 60


def test_ada_is_a_policy_of_its_own_and_a_setting() -> None:
    same = {"budget": 11, "window": 3, "kernel": 3, "decode_room": 4}
    named, set_so = AdaKV(**same), SnapKV(**same, allocation="ada")
    qkv = toys.qkv(2, 30)
    caches = [
        jit_prefill(layer, layer.init(), *qkv)[0]
        for layer in (policy.at(0, toys.geometry(2)) for policy in (named, set_so))
    ]
    jax.tree.map(np.testing.assert_array_equal, *caches)
    # The order of settings does not matter: all but the budget have names.
    assert SnapKV(11, kernel=3, window=3, decode_room=4, allocation="ada") == set_so
    with pytest.raises(TypeError, match="positional"):
        SnapKV(11, 3)


def test_flags_and_files_say_the_same(tmp_path, capsys) -> None:
    (tmp_path / "a.yaml").write_text(
        "policy: {name: snapkv, allocation: ada, budget: 50, sinks: 2, floor: 0.5}"
    )
    words = ["heads", "--model", "tiny-random", "--json", "--length", "200"]
    flags = {"allocation": "ada", "budget": "50", "sinks": "2", "floor": "0.5"}
    typed = [word for name, value in flags.items() for word in (f"--policy.{name}", value)]
    told = []
    for more in (
        ["--config", str(tmp_path / "a.yaml")],
        ["--policy", "snapkv", *typed],
        ["--policy", "snapkv:allocation=ada:budget=50:sinks=2:floor=0.5"],
    ):
        evaluate([*words, *more])
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1] == told[2]
    assert told[0]["policy"].items() >= {"allocation": "ada", "floor": 0.5, "table": None}.items()
    assert told[0]["kept_tokens"] == [[50 + 128] * 2] * 3


def test_a_model_generates_by_a_table(tmp_path) -> None:
    """With what was asked for in the report, and in a cache that is kept."""
    model = jaxkv.load("tiny-random")
    layers, heads = model.config.num_layers, model.config.num_kv_heads
    table, shares = tmp_path / "shares.json", np.ones((1, layers, heads))
    shares[0, 0] = [1.5, 0.5]
    save_shares(table, [0.5], shares, model.config.identity, {})
    settings = {"allocation": "table", "table": str(table)}
    policy = jaxkv.make_policy("pyramidkv", {"budget": 20, "decode_room": 4, **settings})
    out = jaxkv.generate(model, "hello there " * 12, policy=policy, max_new_tokens=12)
    assert out.stats["policy"].items() >= settings.items()
    kept = out.stats["cache"]["kept_tokens"][0]
    assert kept == [[25 + 6, 25 - 6], [25, 25], [25, 25]]  # one for the newest
    cache = jaxkv.init_cache(model.config, policy, 1, 64)
    jaxkv.save_cache(tmp_path / "kept", cache, policy)
    again = jaxkv.load_cache(tmp_path / "kept")
    assert jax.tree.map(jnp.shape, again.layers) == jax.tree.map(jnp.shape, cache.layers)
