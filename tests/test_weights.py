# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights as whole multiples of scales: what they hold, from every source and through the model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxkv
from jaxkv.cache.bytes import nbytes
from jaxkv.checkpoints import gguf, orbax, sources, toy
from jaxkv.core.errors import InputError
from jaxkv.models.decoder import constants_of
from jaxkv.models.weights import GROUP, Multiples, count, form_of, multiples, times, widened


def wide(held: object) -> np.ndarray:
    assert isinstance(held, Multiples)
    return np.asarray(widened(held, jnp.float32), np.float64)


def exactly(params: Any) -> Any:
    """The same parameters as floats."""
    is_held = lambda x: isinstance(x, Multiples)  # noqa: E731
    return jax.tree.map(lambda x: widened(x, jnp.float32), params, is_leaf=is_held)


@settings(deadline=None, max_examples=20)
@given(exponent=st.integers(-3, 3), seed=st.integers(0, 1000))
def test_int8_is_the_nearest_of_255(exponent: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(24, 5)).astype(np.float32) * 10.0**exponent
    held = multiples(jnp.asarray(x, jnp.float32), "int8")
    exact = np.asarray(x, np.float32).astype(np.float64)
    scale = np.abs(exact).max(axis=0, keepdims=True) / 127
    assert held.values.dtype == jnp.int8 and held.scale.shape == (1, 5)
    np.testing.assert_allclose(np.asarray(held.scale), scale, rtol=1e-6)
    assert np.abs(np.asarray(held.values)).max(axis=0).tolist() == [127] * 5
    assert np.all(np.abs(wide(held) - exact) <= scale * 0.5001)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_int4_is_the_best_of_nine_scales(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(2 * GROUP, 3)).astype(np.float32)
    held = multiples(jnp.asarray(x), "int4")
    assert held.values.dtype == jnp.int4 and held.scale.dtype == jnp.float16
    assert held.scale.shape == (2, 3)
    found = wide(held).reshape(2, GROUP, 3)
    for group in range(2):
        for output in range(3):
            numbers = x.astype(np.float64)[group * GROUP : (group + 1) * GROUP, output]
            reach = numbers[np.argmax(np.abs(numbers))] / -8
            errors = []
            for step in range(9):
                scale = np.float64(np.float16(np.float32(reach) * np.float32(1 - step / 32)))
                near = np.clip(np.round(numbers / scale), -8, 7) * scale
                errors.append(np.sum((near - numbers) ** 2))
            mine = np.sum((found[group, :, output] - numbers) ** 2)
            np.testing.assert_allclose(mine, min(errors), rtol=1e-4)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_what_is_in_the_form_already_comes_back(form: str) -> None:
    rng = np.random.default_rng(0)
    low, high = (-127, 128) if form == "int8" else (-8, 8)
    values = rng.integers(low, high, (96, 7))
    values[::GROUP] = 127 if form == "int8" else -8
    scale = 2.0 ** rng.integers(-4, 4, (1 if form == "int8" else 3, 7))
    x = (values.reshape(len(scale), -1, 7) * scale[:, None]).reshape(96, 7)
    held = multiples(jnp.asarray(x, jnp.float32), form)
    np.testing.assert_array_equal(np.asarray(held.values, np.int32), values)
    np.testing.assert_array_equal(np.asarray(held.scale), scale)


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("inputs", [64, 63])  # of an odd number, all share a scale
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_is_that_of_what_they_stand_for(form: str, inputs: int, dtype: str) -> None:
    rng = np.random.default_rng(1)
    held = multiples(jnp.asarray(rng.normal(size=(inputs, 12)), jnp.float32), form)
    for count_ in (1, 5):
        rows = jnp.asarray(rng.normal(size=(count_, inputs)), dtype)
        out = jax.jit(times)(rows, held)
        expected = np.asarray(rows, np.float64) @ wide(held)
        assert out.dtype == jnp.float32
        close = 1e-5 if dtype == "float32" else 0.02 * np.abs(expected).max()
        np.testing.assert_allclose(np.asarray(out), expected, atol=close, rtol=1e-5)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_zeros_and_nans_stay_what_they_are(form: str) -> None:
    x = np.zeros((64, 2), np.float32)
    x[3, 1] = np.nan
    found = wide(multiples(jnp.asarray(x), form))
    assert np.all(found[:, 0] == 0) and np.isnan(found[3, 1])


@pytest.mark.parametrize(("form", "kind"), [("int8", Kind.Q8_0), ("int4", Kind.Q4_0)])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_blocks_of_a_file_are_taken_as_they_are(
    tmp_path: Path, form: str, kind: Kind, family: str
) -> None:
    config = {**checkpoints.WIDE, "model_type": family, "attention_bias": family == "llama"}
    path = checkpoints.write_gguf(tmp_path / "m.gguf", config, kind=kind)
    exact, held = gguf.load(path), gguf.load(path, weights=form)
    assert form_of(held.params) == form and held.config == exact.config
    for mine, theirs in zip(held.params["layers"], exact.params["layers"], strict=True):
        for name, array in theirs.items():
            if name.startswith("w"):
                assert mine[name].scale.shape[0] == array.shape[0] // 32, name
                np.testing.assert_array_equal(wide(mine[name]), np.asarray(array), name)
            else:
                np.testing.assert_array_equal(mine[name], array, name)


def test_blocks_of_another_kind_are_rounded(tmp_path: Path) -> None:
    path = checkpoints.write_gguf(tmp_path / "m.gguf", checkpoints.WIDE, kind=Kind.Q8_0)
    held, exact = gguf.load(path, weights="int4"), gguf.load(path)
    ours, theirs = held.params["layers"][1]["w_down"], exact.params["layers"][1]["w_down"]
    np.testing.assert_array_equal(ours.values, multiples(theirs, "int4").values)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_every_source_gives_the_same(tmp_path: Path, form: str) -> None:
    folder = checkpoints.write_hf(tmp_path / "hf", checkpoints.CONFIG)
    exact = sources.load(folder)
    held = sources.load(folder, weights=form)
    assert held.fingerprint == f"{exact.fingerprint}-{form}"
    assert count(held.params) == count(exact.params)
    assert f"{count(exact.params):,} {form} and float32" in repr(held)
    for mine, theirs in zip(held.params["layers"], exact.params["layers"], strict=True):
        for name in ("wqkv", "wo", "w_gate_up", "w_down"):
            jax.tree.map(np.testing.assert_array_equal, mine[name], multiples(theirs[name], form))
        assert mine["attn_norm"].dtype == jnp.float32
    saved, rounded = tmp_path / "saved", tmp_path / "exact"
    orbax.save(saved, held)
    orbax.save(rounded, exact)
    for path, weights in ((saved, None), (saved, form), (rounded, form)):
        again = sources.load(path, weights=weights)
        assert again.fingerprint == held.fingerprint and form_of(again.params) == form
        jax.tree.map(np.testing.assert_array_equal, again.params, held.params)
    other = {"int8": "int4", "int4": "int8"}[form]
    with pytest.raises(InputError, match=f"are {form}, and {other} was asked for"):
        sources.load(saved, weights=other)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_checkpoint_says_what_its_source_says(tmp_path: Path, form: str) -> None:
    held = sources.load("tiny-random", weights=form)
    orbax.save(tmp_path / "m", held)
    told = {"max_new_tokens": 4, "chat": False}
    found = [jaxkv.generate(x, "A text", **told) for x in (held, sources.load(tmp_path / "m"))]
    assert found[0].token_ids == found[1].token_ids


def test_nothing_is_rounded_twice(tmp_path: Path) -> None:
    """Weights of int8 are those of the float32 that was read, whatever the rest is."""
    folder = checkpoints.write_hf(tmp_path / "hf", checkpoints.CONFIG)
    orbax.save(tmp_path / "m", sources.load(folder))
    for source in (folder, tmp_path / "m", "tiny-random"):
        exact, other = (sources.load(source, x, weights="int8") for x in ("float32", "bfloat16"))
        mine, theirs = (x.params["layers"][0]["wqkv"] for x in (other, exact))
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)
        assert other.params["embed"].dtype == jnp.bfloat16


def test_a_saved_scale_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = toy.load(weights="int8")
    broken = jax.tree.map(lambda x: x, model.params)
    held = broken["layers"][0]["wo"]
    broken["layers"][0]["wo"] = Multiples(held.values, jnp.ones((7, held.scale.shape[1])))
    orbax.save(tmp_path / "m", jaxkv.Model(model.config, broken, model.tokenizer, "", ""))
    with pytest.raises(InputError, match="7 groups"):
        orbax.load(tmp_path / "m")


def test_bytes_are_bits() -> None:
    """A matrix of the toy: in int8 a byte a number and a scale an output; in int4 half, and 16."""
    for form, expected in (
        ("int8", 64 * 256 + 4 * 256),
        ("int4", 64 * 256 // 2 + 2 * 2 * 256),
    ):
        held = toy.load(weights=form).params["layers"][0]["w_gate_up"]
        assert held.values.shape == (64, 256) and nbytes(held) == expected
        compiled = jax.jit(lambda x: times(jnp.ones((1, 64)), x)).lower(held).compile()
        memory = compiled.memory_analysis()
        assert memory is not None and memory.argument_size_in_bytes == expected


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_model_says_what_one_of_the_same_numbers_says(form: str) -> None:
    held = toy.load(weights=form)
    exact = exactly(held.params)
    tokens = jnp.asarray(toys.tokens(2, 9, vocab=512))
    found = []
    for params in (held.params, exact):
        cache = jaxkv.init_cache(held.config, jaxkv.Full(), 2, 16)
        logits, cache = jaxkv.forward(params, held.config, jaxkv.Full(), tokens, cache)
        found += [logits, jaxkv.forward(params, held.config, jaxkv.Full(), tokens[:, :1], cache)[0]]
    np.testing.assert_allclose(found[0], found[2], atol=2e-4)
    np.testing.assert_allclose(found[1], found[3], atol=2e-4)
    wo = constants_of(held.params["layers"][0], held.config).wo
    expected = exact["layers"][0]["wo"].reshape(4, 16, 64)
    np.testing.assert_array_equal(wo, expected)


def test_policies_that_look_at_weights_see_what_they_stand_for() -> None:
    model = toy.load(weights="int4")
    exact = dataclasses.replace(model, params=exactly(model.params))
    policy = jaxkv.make_policy("kvzip", {"budget": 16, "plus": True})
    told = {"policy": policy, "max_new_tokens": 4, "chat": False}
    found = [jaxkv.generate(x, "A long text of words", **told) for x in (model, exact)]
    assert found[0].token_ids == found[1].token_ids


def test_what_is_asked_for_wrongly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights is 'int2'; it must be int8 or int4"):
        sources.load("tiny-random", weights="int2")
    with pytest.raises(InputError, match="weights are int8; Hugging Face's format has floats"):
        jaxkv.export_hf(tmp_path / "hf", sources.load("tiny-random", weights="int8"))
    assert not (tmp_path / "hf").exists()


def test_converting_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jaxkv.convert.__main__ import main

    main(["tiny-random", str(tmp_path / "m"), "--weights", "int4", "--json"])
    report = json.loads(capsys.readouterr().out)
    expected = sources.load("tiny-random", weights="int4")
    assert report["weights"] == "int4" and report["bytes"] == nbytes(expected.params)
    assert report["parameters"] == 143_808
    again = sources.load(tmp_path / "m")
    jax.tree.map(np.testing.assert_array_equal, again.params, expected.params)
    with pytest.raises(SystemExit) as ended:
        main(["tiny-random", str(tmp_path / "x"), "--format", "hf", "--weights", "int8"])
    assert ended.value.code == 2 and not (tmp_path / "x").exists()
    assert "--weights int8 is for --format jaxkv" in capsys.readouterr().err
