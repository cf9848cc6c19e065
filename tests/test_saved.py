# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A cache that was kept is the cache that was, bit for bit; anything else is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from policy_cases import CASES, law

from jaxkv import InputError, StreamingLLM, init_cache, load_cache, save_cache
from jaxkv.generate.running import forward
from jaxkv.generate.saved import load_with_extras

run = jax.jit(forward, static_argnums=(1, 2))
empty = jax.jit(toys.begun, static_argnums=(0, 1, 2, 3, 4))


def filled(policy, dtype: str = "float32"):
    """A cache of two rows after 30 tokens; one program does for this and what follows."""
    cache = empty(toys.CONFIG, policy, 2, 64, dtype)
    for begin in range(6):
        tokens = toys.tokens(2, 5, seed=begin)
        cache = run(toys.params(), toys.CONFIG, policy, tokens, cache)[1]
    return cache


def assert_same(a, b) -> None:
    """Same structure, dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A kept cache that tests copy and damage."""
    path = tmp_path_factory.mktemp("saved") / "kept"
    policy = StreamingLLM(2, 7)
    save_cache(path, init_cache(toys.CONFIG, policy, 1, 64), policy, model="a")
    return path


@pytest.mark.slow
@law("saved", CASES)
def test_a_kept_cache_goes_on_as_if_it_had_never_been_away(name, tmp_path) -> None:
    policy, params = CASES[name].policy, toys.params()
    cache = filled(policy)
    save_cache(tmp_path / "kept", cache, policy)
    loaded = load_cache(tmp_path / "kept", policy)
    assert_same(loaded, cache)
    expected, after = run(params, toys.CONFIG, policy, toys.tokens(2, 5, seed=9), cache)
    got, later = run(params, toys.CONFIG, policy, toys.tokens(2, 5, seed=9), loaded)
    np.testing.assert_array_equal(got, expected)
    assert_same(later, after)


def test_bfloat16_and_extras_survive(tmp_path) -> None:
    policy = StreamingLLM(2, 7)
    cache = filled(policy, "bfloat16")
    extras = {"logits": jnp.asarray([1.5, jnp.nan]), "done": jnp.asarray([True, False])}
    save_cache(tmp_path / "kept", cache, policy, model="m", extras=extras)
    loaded, stored, more = load_with_extras(tmp_path / "kept", model="m")
    assert stored == policy
    assert_same(loaded, cache)
    assert_same(more, extras)


def test_only_arrays_and_json_are_written(kept) -> None:
    """Nothing that loading could execute."""
    assert sorted(path.name for path in kept.iterdir()) == ["cache.json", "cache.safetensors"]
    raw = (kept / "cache.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    assert "cache.layers[0].k" in json.loads(raw[8 : 8 + size])


def test_another_policy_or_model_is_refused(kept) -> None:
    with pytest.raises(InputError, match="was made for .*'window': 7.*not for .*'window': 8"):
        load_cache(kept, StreamingLLM(2, 8))
    with pytest.raises(InputError, match="another model: 'a', not 'b'"):
        load_cache(kept, model="b")
    load_cache(kept, StreamingLLM(2, 7), model="a")


DAMAGE = {
    "no note": lambda path: (path / "cache.json").unlink(),
    "no arrays": lambda path: (path / "cache.safetensors").unlink(),
    "cut arrays": lambda path: cut(path / "cache.safetensors", 100),
    "cut header": lambda path: (path / "cache.safetensors").write_bytes(b"\x80\x04\x95"),
    "a huge header": lambda path: (path / "cache.safetensors").write_bytes(b"\xff" * 64),
    "cut note": lambda path: cut(path / "cache.json", 20),
    "binary note": lambda path: (path / "cache.json").write_bytes(b"\xff\xfe"),
    "a list": lambda path: (path / "cache.json").write_text("[1]"),
    "another format": lambda path: change(path, format=99),
    "an unknown policy": lambda path: change(path, policy={"name": "nope"}),
    "an impossible policy": lambda path: change(path, policy={"name": "window", "window": 0}),
    "no policy name": lambda path: change(path, policy={"window": 3}),
    "other shapes": lambda path: change(path, policy={"name": "window", "window": 3}),
    "an odd geometry": lambda path: change(path, geometry={"num_layers": "two"}),
    "a geometry of text": lambda path: geometry(path, batch_size="two"),
    "a negative geometry": lambda path: geometry(path, head_dim=-1),
    "more layers": lambda path: geometry(path, num_layers=3),
    "another dtype": lambda path: geometry(path, dtype="bfloat16"),
    "no dtype": lambda path: geometry(path, dtype="float33"),
}


def cut(path: Path, count: int) -> None:
    """Drops the last bytes."""
    path.write_bytes(path.read_bytes()[:-count])


def change(path: Path, **values) -> None:
    """Overwrites entries of the note."""
    note = json.loads((path / "cache.json").read_text())
    (path / "cache.json").write_text(json.dumps(note | values))


def geometry(path: Path, **values) -> None:
    """Overwrites entries of the note's geometry."""
    note = json.loads((path / "cache.json").read_text())
    change(path, geometry=note["geometry"] | values)


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_cache_is_refused_in_one_line(what, kept, tmp_path) -> None:
    path = tmp_path / "kept"
    shutil.copytree(kept, path)
    DAMAGE[what](path)
    with pytest.raises(InputError) as error:
        load_cache(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_nothing_else_is_overwritten(tmp_path) -> None:
    policy = StreamingLLM(2, 7)
    cache = init_cache(toys.CONFIG, policy, 1, 64)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("more")
    for name in ("thesis", "file"):
        with pytest.raises(InputError, match="not a saved cache"):
            save_cache(tmp_path / name, cache, policy)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "more"


def test_an_interrupted_save_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    policy = StreamingLLM(2, 7)
    cache = init_cache(toys.CONFIG, policy, 1, 64)

    def interrupted(arrays, path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    save_cache(tmp_path / "old", cache, policy, model="old")
    monkeypatch.setattr("safetensors.numpy.save_file", interrupted)
    for name in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            save_cache(tmp_path / name, cache, policy, model="new")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert_same(load_cache(tmp_path / "old", model="old"), cache)
    monkeypatch.undo()
    save_cache(tmp_path / "old", cache, policy, model="new")
    assert_same(load_cache(tmp_path / "old", model="new"), cache)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
