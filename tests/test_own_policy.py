# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A policy from outside the package is as good as one of ours."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import toys
from own_policies import Allotted, KeyDiff, Loose, Unnamed, Wrong

import jaxkv
from jaxkv.core.errors import InputError
from jaxkv.decode.__main__ import main as decode
from jaxkv.eval.__main__ import main as evaluate
from jaxkv.policies.registry import (
    check_policy_given,
    describe,
    make_policies,
    make_policy,
    register,
)

HERE = Path(__file__).parent


def kept_by_numpy(k: np.ndarray, lengths: list[int], policy: KeyDiff) -> list[list[set[int]]]:
    """Positions of each row and head, from the formula alone."""
    kept = []
    for row, length in enumerate(lengths):
        heads = []
        for head in range(k.shape[2]):
            keys = k[row, :length, head].astype(np.float64)
            unit = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
            score = -unit @ unit.mean(axis=0)
            score[: policy.sinks] = np.inf
            score[max(length - policy.window, 0) :] = np.inf
            heads.append({int(i) for i in np.argsort(-score, kind="stable")[: policy.budget]})
        kept.append(heads)
    return kept


@pytest.mark.parametrize("sinks", [0, 3])
def test_the_kept_tokens_are_the_formulas(sinks: int) -> None:
    policy, lengths = KeyDiff(budget=12, sinks=sinks, window=4, decode_room=6), [40, 33]
    layer = policy.at(0, toys.geometry(batch=2))
    q, k, v = toys.qkv(2, 40)
    cache, out = jaxkv.prefill(
        layer, layer.init(), *map(jnp.asarray, (q, k, v)), lengths=jnp.asarray(lengths, jnp.int32)
    )
    assert np.isfinite(out[0]).all()
    expected = kept_by_numpy(k, lengths, policy)
    (slab,) = cache.slabs
    for row in range(2):
        for head in range(2):
            found = {int(p) for p in np.asarray(slab.pos[row, head]) if p >= 0}
            assert found == expected[row][head]


def test_it_generates_and_its_settings_are_reported() -> None:
    model = jaxkv.load("tiny-random")
    policy = KeyDiff(budget=16, sinks=2, window=4, decode_room=4)
    out = jaxkv.generate(model, "hello there " * 12, policy=policy, max_new_tokens=12)
    own = {"budget": 16, "sinks": 2, "window": 4, "decode_room": 4}
    others = {"allocation": "uniform", "table": None, "floor": 0.2}
    assert out.stats["policy"] == {"name": "own-keydiff", **own, **others}
    assert {count for layer in out.stats["cache"]["kept_tokens"][0] for count in layer} == {
        16 + 4 + 1
    }
    assert make_policy("own-keydiff", own) == policy
    whole = jaxkv.generate(model, "hello there", policy=KeyDiff(budget=64), max_new_tokens=12)
    assert whole.token_ids == jaxkv.generate(model, "hello there", max_new_tokens=12).token_ids


def test_commands_take_it_by_its_module(capsys, tmp_path, monkeypatch) -> None:
    kept = str(tmp_path / "kept")
    words = ["--model", "tiny-random", "--raw", "--max-new-tokens", "4", "--json"]
    own = ["--policy", "own_policies:Unnamed", "--policy.budget", "20", "--policy.power", "2.0"]
    decode([*words, *own, "--prompt", "hello there " * 6, "--save-cache", kept])
    report = json.loads(capsys.readouterr().out)
    assert report["policy"]["name"] == "own_policies:Unnamed" and report["policy"]["power"] == 2.0
    decode([*words, *own, "--load-cache", kept, "--prompt", "more"])
    assert json.loads(capsys.readouterr().out)["policy"] == report["policy"]
    # A file that names a module does not get it imported.
    with pytest.raises(SystemExit):
        decode([*words, "--load-cache", kept, "--prompt", "more"])
    assert "is not registered; give the policy" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_has_it_beside_ours(capsys, tmp_path) -> None:
    out = tmp_path / "sweep.jsonl"
    evaluate(
        ["passkey", "--model", "tiny-random", "--lengths", "512", "--depths", "1", "--json",
         "--policy", "snapkv,own_policies:KeyDiff:sinks=2", "--budgets", "64,96", "--out", str(out)]
    )  # fmt: skip
    rows = json.loads(capsys.readouterr().out)
    names = [(row["policy"]["name"], row["policy"]["budget"]) for row in rows]
    assert names == [
        ("snapkv", 64), ("snapkv", 96), ("own-keydiff", 64), ("own-keydiff", 96)
    ]  # fmt: skip
    assert len(out.read_text().splitlines()) == 4


def test_a_kept_cache_of_it_comes_back(tmp_path) -> None:
    for policy in (KeyDiff(budget=20), Unnamed(budget=20, power=3.0)):
        cache = jaxkv.init_cache(toys.CONFIG, policy, 1, 64)
        jaxkv.save_cache(tmp_path / "kept", cache, policy)
        assert jaxkv.load_cache(tmp_path / "kept", policy).geometry == cache.geometry
        other = dataclasses.replace(policy, budget=24)
        with pytest.raises(InputError, match="was made for|not registered"):
            jaxkv.load_cache(tmp_path / "kept", other)
    with pytest.raises(InputError, match="not registered; give the policy"):
        jaxkv.load_cache(tmp_path / "kept")


def test_a_command_finds_a_module_where_it_is_run(tmp_path) -> None:
    (tmp_path / "mine.py").write_text((HERE / "own_policies.py").read_text())
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    words = "--model tiny-random --prompt hello --max-new-tokens 2 --policy mine:KeyDiff --json"
    run = subprocess.run(
        [sys.executable, "-m", "jaxkv.decode", *words.split()], cwd=tmp_path, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["policy"]["name"] == "own-keydiff"


def test_mistakes_get_a_sentence(tmp_path, monkeypatch) -> None:
    given = {
        "snapkv": "policy is the text 'snapkv'; give make_policy",
        KeyDiff: "policy is the class KeyDiff; give one of it",
        Loose(): "Loose is not a frozen dataclass",
    }
    for policy, said in given.items():
        with pytest.raises(InputError, match=said):
            check_policy_given(policy)
    wrong, model = Wrong(budget=16), jaxkv.load("tiny-random")
    with pytest.raises(InputError, match=r"score of Wrong has shape .*; it must be \[B, K, S\]"):
        jaxkv.generate(model, "hello", policy=wrong, max_new_tokens=1)
    for name, said in {
        "no.such:Policy": "cannot be imported: ModuleNotFoundError",
        "own_policies:Nothing": "the module has no Nothing",
        "own_policies:Loose": "is not a frozen dataclass",
        "os:system": "is no class",
        "nosuch": "is unknown; choose one of",
        "a:b:c": "is unknown; choose one of",
    }.items():
        with pytest.raises(InputError, match=said):
            make_policy(name)
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="cannot be imported: ZeroDivisionError: division by zero"):
        make_policy("broken:Policy")
    with pytest.raises(InputError, match=r"has 'own' among its allocations, and no own_caps"):
        Allotted(budget=16, allocation="own").at(0, toys.geometry())
    with pytest.raises(InputError, match="take another name"):
        register("snapkv")(KeyDiff)
    with pytest.raises(InputError, match="budget is 5; it must be at least the 4 sinks"):
        KeyDiff(budget=5)
    for field in ("sinks", "window", "decode_room"):
        with pytest.raises(InputError, match=f"{field} is -1"):
            KeyDiff(**{field: -1})
    with pytest.raises(InputError, match="has no field 'nosuch'"):
        make_policies("own_policies:KeyDiff:nosuch=1", {})
    assert describe(make_policies("own_policies:KeyDiff:budget=99", {})[0])["budget"] == 99
