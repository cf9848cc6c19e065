# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""KVzap: its files, what is kept by them, and how they are made for a model."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import toys
from safetensors import safe_open
from safetensors.numpy import save_file
from test_evidence import first_layer
from test_global import held_by
from test_replay import dense, oracle

import jaxkv
from jaxkv import InputError
from jaxkv.calibrate import kvzap, pairs, states
from jaxkv.calibrate.command import parse_options, run
from jaxkv.calibrate.fitting import explained, mlps, ridge
from jaxkv.calibrate.task import Common
from jaxkv.checkpoints import toy
from jaxkv.core.progress import no_progress
from jaxkv.layers.replayed import Replay
from jaxkv.models import decoder
from jaxkv.policies.kvzap import KVzap
from jaxkv.policies.surrogates import save_surrogates, surrogates, worth

WIDTH, HEADS = toys.CONFIG.hidden_size, toys.CONFIG.num_kv_heads
LENGTHS = (48, 29)
forward = jax.jit(jaxkv.forward)
ignored = lambda *told: None  # noqa: E731


def network(layer: int, kind: str = "linear", zero: bool = False) -> dict[str, np.ndarray]:
    """One as files hold it, [outputs, inputs]."""
    rng = np.random.default_rng(layer + 7)

    def made(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * (not zero)).astype(np.float32)

    if kind == "linear":
        return {"weight": made(HEADS, WIDTH), "bias": made(HEADS)}
    inner = WIDTH // 8
    return {
        "0.weight": made(inner, WIDTH), "0.bias": made(inner),
        "2.weight": made(HEADS, inner), "2.bias": made(HEADS),
    }  # fmt: skip


def published(path: Path, kind: str = "linear", zero: bool = False, **note: str) -> str:
    """A file of the toy's networks in the authors' names."""
    parts = {
        f"layers.{layer}.{name}": x
        for layer in range(toys.CONFIG.num_layers)
        for name, x in network(layer, kind, zero).items()
    }
    save_file(parts, path, metadata=note or None)
    return str(path)


@pytest.fixture(scope="module")
def gate(tmp_path_factory) -> str:
    return published(tmp_path_factory.mktemp("gate") / "linear.safetensors")


@pytest.fixture(scope="module")
def model() -> jaxkv.Model:
    """A toy's tokenizer, and parameters that fit its vocabulary."""
    small = toy.load()
    config = dataclasses.replace(toys.CONFIG, vocab_size=small.config.vocab_size)
    return dataclasses.replace(small, config=config, params=toys.params(config))


def said(parts: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """What a network of a file says of [T, D]: float64 [K, T], GELU by the error function."""
    p = {name: part.astype(np.float64) for name, part in parts.items()}
    x = np.asarray(x, np.float64)
    if "weight" in p:
        return (x @ p["weight"].T + p["bias"]).T
    inner = x @ p["0.weight"].T + p["0.bias"]
    inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
    return (inner @ p["2.weight"].T + p["2.bias"]).T


class TestFile:
    @pytest.mark.parametrize("kind", ["linear", "mlp"])
    def test_networks_say_what_the_formula_says(self, kind, tmp_path) -> None:
        path = published(tmp_path / "model.safetensors", kind)
        x = np.random.default_rng(1).normal(size=(2, 9, WIDTH)).astype(np.float32)
        for where in (path, str(tmp_path)):  # the file, and the folder it is published in
            found = surrogates(where, toys.geometry(), WIDTH)
            assert len(found) == toys.CONFIG.num_layers
            for layer, mine in enumerate(found):
                scores = worth(mine, jnp.asarray(x))
                assert scores.shape == (2, HEADS, 9) and scores.dtype == jnp.float32
                for row in range(2):
                    expected = said(network(layer, kind), x[row])
                    np.testing.assert_allclose(scores[row], expected, rtol=1e-4, atol=1e-4)

    def test_half_precision_is_read(self, tmp_path) -> None:
        parts = {f"layers.{i}.{name}": x for i in (0, 1) for name, x in network(i).items()}
        for dtype in (ml_dtypes.bfloat16, np.float16):
            path = tmp_path / "half.safetensors"
            save_file({name: x.astype(dtype) for name, x in parts.items()}, path)
            found = surrogates(str(path), toys.geometry(), WIDTH)
            expected = parts["layers.1.weight"].astype(dtype).astype(np.float32).T
            np.testing.assert_array_equal(found[1]["w"], expected)

    @pytest.mark.parametrize("kind", ["linear", "mlp"])
    def test_what_is_written_is_read(self, kind, tmp_path) -> None:
        path = tmp_path / "x.safetensors"
        rng = np.random.default_rng(0)
        shapes = {"w": (WIDTH, HEADS), "b": (HEADS,)}
        if kind == "mlp":
            shapes = {"w_in": (WIDTH, 4), "b_in": (4,), "w": (4, HEADS), "b": (HEADS,)}
        made = tuple({n: rng.normal(size=s) for n, s in shapes.items()} for _ in (0, 1))
        save_surrogates(path, made, "", "by hand")
        plain = tmp_path / "plain"
        plain.touch()
        assert path.stat().st_mode == plain.stat().st_mode  # others may read it
        for mine, theirs in zip(surrogates(str(path), toys.geometry(), WIDTH), made, strict=True):
            assert mine.keys() == theirs.keys()
            for name, x in theirs.items():
                np.testing.assert_array_equal(mine[name], x.astype(np.float32))

    @pytest.mark.parametrize(
        "change, told",
        [
            ({"layers.1.weight": None}, "has no network for layer 1 of 2"),
            ({"layers.2.weight": np.ones((HEADS, WIDTH))}, "has more than the model's 2 layers"),
            ({"layers.0.weight": np.ones((HEADS, 31))}, r"layer 0: w has shape \(31, 2\); for"),
            ({"layers.1.bias": np.ones(3)}, r"layer 1: b has shape \(3,\); for this model it is"),
            ({"layers.1.bias": np.array([1, np.nan])}, "layer 1: b has numbers that are not"),
        ],
    )  # fmt: skip
    def test_networks_of_another_model_are_refused(self, change, told, tmp_path) -> None:
        parts = {f"layers.{i}.{name}": x for i in (0, 1) for name, x in network(i).items()} | change
        path = tmp_path / "x.safetensors"
        save_file({name: x.astype(np.float32) for name, x in parts.items() if x is not None}, path)
        with pytest.raises(InputError, match=told) as raised:
            surrogates(str(path), toys.geometry(), WIDTH)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)

    def test_one_is_shipped_for_the_default_model(self) -> None:
        name = "layers30-heads9-kv3-dim64-width576-mlp1536-vocab49152"
        shapes = dataclasses.replace(toys.geometry(), num_layers=30, num_kv_heads=3, model=name)
        found = surrogates(None, shapes, 576)
        assert [network["w"].shape for network in found] == [(576, 3)] * 30

    def test_files_that_are_none_are_refused(self, gate, tmp_path) -> None:
        damaged = tmp_path / "damaged.safetensors"
        damaged.write_bytes(Path(gate).read_bytes()[:-40])
        noise = tmp_path / "noise.safetensors"
        noise.write_bytes(b"\xff" * 300)
        ours = published(tmp_path / "ours.safetensors", format="jaxkv.kvzap", model="another")
        mine = dataclasses.replace(toys.geometry(), model="mine")
        for path, told in (
            (str(damaged), "cannot be read"), (str(noise), "cannot be read"),
            (str(tmp_path / "no"), "is not there"), (str(tmp_path), "is not there"),
            (ours, "was made for a model of 'another', this one is 'mine'"),
            (None, "none is shipped for this model; .* python -m jaxkv.calibrate kvzap"),
        ):  # fmt: skip
            with pytest.raises(InputError, match=told) as raised:
                surrogates(path, mine, WIDTH)
            assert "\n" not in str(raised.value)
        assert len(surrogates(gate, mine, WIDTH)) == 2  # the authors' name no model


def policy_of(gate: str, allocation: str = "uniform", **more) -> KVzap:
    settings = {"budget": 16, "window": 3, "sinks": 2, "decode_room": 6, **more}
    return KVzap(**settings, allocation=allocation, gate=gate)


def read(policy: KVzap, wide: int = max(LENGTHS)) -> jaxkv.Cache:
    """Ragged prompts in one call."""
    cache = jaxkv.init_cache(toys.CONFIG, policy, len(LENGTHS), 64)
    params = policy.prepare(toys.params(), cache.geometry)
    rows = np.pad(toys.tokens(2, max(LENGTHS)), ((0, 0), (0, wide - max(LENGTHS))))
    lengths = jnp.asarray(LENGTHS, jnp.int32)
    return forward(params, toys.CONFIG, policy, jnp.asarray(rows), cache, lengths)[1]


@functools.lru_cache(maxsize=2)
def scores_by_hand(row: int) -> list[np.ndarray]:
    """Of each layer [K, T], of states from a dense model in NumPy."""
    ids = toys.tokens(2, max(LENGTHS))[row, : LENGTHS[row]].tolist()
    plain = dataclasses.replace(toy.load(), config=toys.CONFIG, params=toys.params())
    layers = dense(plain, ids)
    np.testing.assert_allclose(layers[0][3], first_layer(plain.params, np.array(ids))[3], atol=1e-5)
    return [said(network(index), y) for index, (_, _, _, y) in enumerate(layers)]


def kept_by_hand(policy: KVzap, row: int) -> list[list[set[int]]]:
    """Of one budget for each head, or one for all."""
    scores, length = np.stack(scores_by_hand(row)), LENGTHS[row]
    scores = scores[:, :, : length - policy.window].copy()
    if policy.threshold is not None:
        scores[scores < policy.threshold] = -np.inf
    scores[:, :, : policy.sinks] = np.inf
    cap = policy.budget - policy.window
    groups = (
        [scores] if policy.allocation == "global" else [x[None, None] for y in scores for x in y]
    )
    chosen = []
    for group in groups:
        flat = group.reshape(-1)
        best = np.argsort(-flat, kind="stable")[: cap * group.shape[0] * group.shape[1]]
        kept = np.zeros(flat.shape, bool)
        kept[best] = flat[best] > -np.inf
        chosen.append(kept.reshape(group.shape))
    whole = np.concatenate([x.reshape(-1, x.shape[-1]) for x in chosen]).reshape(scores.shape)
    recent = set(range(length - policy.window, length))
    return [[set(np.flatnonzero(head)) | recent for head in layer] for layer in whole]


class TestPolicy:
    @pytest.mark.parametrize(
        "allocation, threshold", [("uniform", None), ("ada", None), ("global", 1.0)]
    )
    def test_what_is_kept_is_the_formulas(self, allocation, threshold, gate) -> None:
        more = {"floor": 1.0} if allocation == "ada" else {}  # as many in each head
        policy = policy_of(gate, allocation, threshold=threshold, **more)
        cache = read(policy)
        for row in (0, 1):
            expected = kept_by_hand(policy, row)
            assert held_by(cache, row) == expected
            if threshold is not None:
                assert min(len(head) for layer in expected for head in layer) < policy.budget

    def test_below_the_threshold_nothing_is_kept_where_there_is_room(self, gate) -> None:
        policy = policy_of(gate, budget=64, threshold=0.5)
        cache = read(policy)
        for row, length in enumerate(LENGTHS):
            always = {0, 1, *range(length - 3, length)}
            for mine, scores in zip(held_by(cache, row), scores_by_hand(row), strict=True):
                assert mine == [set(np.flatnonzero(x >= 0.5)) | always for x in scores]

    def test_networks_of_zeros_keep_the_first_and_the_last(self, tmp_path) -> None:
        policy = policy_of(published(tmp_path / "zero.safetensors", zero=True))
        cache = read(policy)
        for row, length in enumerate(LENGTHS):
            expected = {*range(policy.budget - 3), *range(length - 3, length)}
            assert held_by(cache, row) == [[expected] * HEADS] * 2

    def test_a_prompt_in_chunks_is_a_prompt(self, gate, monkeypatch) -> None:
        """Tokens wider or narrower: what is traced is kept by its shapes."""
        policy = policy_of(gate, "global")
        whole = read(policy)
        monkeypatch.setattr(decoder, "CHUNK", 8)
        chunked = read(policy, wide=56)
        for row in (0, 1):
            assert held_by(chunked, row) == held_by(whole, row)

    def test_a_later_prompt_is_average_beside_an_earlier_one(self, gate) -> None:
        """Its tokens are chosen from too, and do not lose to all that was kept before."""
        policy = policy_of(gate)
        cache = read(policy)
        params = policy.prepare(toys.params(), cache.geometry)
        tokens = jnp.asarray(toys.tokens(2, 30, seed=5))
        lengths = jnp.asarray([30, 0], jnp.int32)
        _, after = forward(params, toys.CONFIG, policy, tokens, cache, lengths)
        assert held_by(after, 1) == held_by(cache, 1)
        begin, late = LENGTHS[0], LENGTHS[0] + 30 - policy.window
        for old, layer in zip(held_by(cache, 0), held_by(after, 0), strict=True):
            for was, now in zip(old, layer, strict=True):
                assert len(now) == policy.budget and {p for p in now if p < begin} < was
                assert {p for p in now if begin <= p < late}

    def test_without_its_networks_it_says_what_to_give(self, gate) -> None:
        policy = policy_of(gate)
        cache = jaxkv.init_cache(toys.CONFIG, policy, 1, 64)
        tokens = jnp.asarray(toys.tokens(1, 20))
        with pytest.raises(InputError, match=r"give policy.prepare\(params, geometry\)"):
            jaxkv.forward(toys.params(), toys.CONFIG, policy, tokens, cache)


class TestFit:
    def test_ridge_finds_a_planted_map(self) -> None:
        """Where states have numbers of any size, and one that never changes."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(300, 12)).astype(np.float32)
        x *= np.logspace(-2, 3, 12, dtype=np.float32)[None]
        x[:, 3] = 5.0
        w, b = rng.normal(size=(12, 2)) / np.logspace(-2, 3, 12)[:, None], np.array([-9.0, 4.0])
        y = (x @ w + b).astype(np.float32)
        found = ridge(x[:200], y[:200], 1e-6)
        rest = [i for i in range(12) if i != 3]
        np.testing.assert_allclose(found["w"][rest], w[rest], rtol=1e-4)
        np.testing.assert_allclose(found["w"][3], 0, atol=1e-6)  # it is the bias's
        np.testing.assert_allclose(explained(found, x[200:], y[200:]), 1, atol=1e-6)
        # A penalty beyond measure leaves the mean.
        flat = ridge(x[:200], y[:200], 1e12)
        np.testing.assert_allclose(flat["b"], y[:200].mean(axis=0), rtol=1e-5)
        assert explained(flat, x[200:], y[200:]).max() < 0.01

    def test_mlps_learn_what_no_linear_map_tells(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2, 2548, 64)).astype(np.float32) * 30 + 5
        z = (x - 5) / 30
        y = np.stack([np.abs(z[..., 0]) - 4, z[..., 1] + np.abs(z[..., 2])], axis=-1)
        told: list[tuple[int, int]] = []

        def tells(epochs: int) -> np.ndarray:
            found = mlps(x[:, :2048], y[:, :2048], epochs, 0, lambda *done: told.append(done))
            assert [part.dtype for part in found[0].values()] == [np.float32] * 4
            unseen = zip(found, x[:, 2048:], y[:, 2048:], strict=True)
            return np.stack([explained(*layer) for layer in unseen])

        few, many = tells(2), tells(100)
        assert told[0] == (0, 8) and told[-1] == (400, 400)
        assert many.min() > few.max() and many.min() > 0.5
        linear = ridge(x[0, :2048], y[0, :2048], 1.0)
        assert explained(linear, x[0, 2048:], y[0, 2048:])[0] < 0.1


def told_by(path: Path) -> dict[str, str]:
    with safe_open(str(path), "np") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("book") / "book.txt"
    rng = np.random.default_rng(0)
    words = ["the", "of", "snow", "prince", "and", "war", "peace", "a", "horse", "said", "gate"]
    path.write_text(" ".join(rng.choice(words, 900)), encoding="utf-8")
    return str(path)


class TestCalibration:
    @pytest.mark.parametrize("samples", [9, 99])
    def test_pairs_are_states_and_kvzips_scores(self, model, samples, monkeypatch) -> None:
        """Of a prompt in some calls; all tokens but those before the user's text, or some."""
        monkeypatch.setattr(states, "CHUNK", 16)
        prompt = toys.tokens(1, 40, vocab=model.config.vocab_size)[0].tolist()
        found = pairs.gather(model, [prompt], samples, 3, no_progress)
        expected = np.log(oracle(model, prompt, Replay(outputs=True)))
        begin = int(np.isinf(expected[0, 0]).sum())
        count = min(samples, len(prompt) - begin)
        of_layers = np.stack([y for *_, y in dense(model, prompt)])
        assert found.x.shape == (2, 1, count, WIDTH) and found.y.shape == (2, 1, count, HEADS)
        # Which tokens they are, the states of the last layer tell.
        off = np.abs(found.x[1, 0][:, None] - of_layers[1][None]).max(axis=-1)
        picked = off.argmin(axis=1)
        assert (np.diff(picked) > 0).all() and picked.min() >= begin
        np.testing.assert_allclose(found.x[:, 0], of_layers[:, picked], atol=1e-4)
        theirs = expected[:, :, picked].swapaxes(1, 2)
        np.testing.assert_allclose(found.y[:, 0], theirs, atol=1e-2)

    @pytest.mark.parametrize("kind", ["linear", "mlp"])
    def test_from_a_text_to_an_answer(self, kind, book, tmp_path, capsys) -> None:
        out, plot = tmp_path / "gate.safetensors", tmp_path / "r2.png"
        command = ["kvzap", "--model", "tiny-random", "--text", book, "--out", str(out)]
        small = ["--tokens", "60", "--passages", "4", "--hold-out", "2", "--kind", kind]
        run([*command, *small, "--plot", str(plot), "--epochs", "2"])
        line = capsys.readouterr().out
        assert f"of 2 held-out passages ({kind}; layers" in line
        note = told_by(out)
        about = json.loads(note["about"])
        assert note["format"] == "jaxkv.kvzap" and note["model"]
        assert about["kind"] == kind and len(about["r2_of_layers"]) == 3
        assert f"R2 {about['r2']:.3f}" in line
        assert about["command"].startswith("python -m jaxkv.calibrate kvzap --model tiny-random")
        assert plot.read_bytes().startswith(b"\x89PNG")
        if kind == "linear":
            policy = KVzap(budget=24, window=8, decode_room=8, gate=str(out))
            said = [
                jaxkv.generate(toy.load(), "the prince said " * 9, policy=some, max_new_tokens=3)
                for some in (policy, None)
            ]
            assert len(said[0].token_ids[0]) == 3
            bytes_of = [answer.stats["cache"]["physical_bytes"] for answer in said]
            assert bytes_of[0] < bytes_of[1]

    def test_layers_with_a_window_are_passed_over(self, model, book, tmp_path) -> None:
        config = dataclasses.replace(model.config, windows=(6, 0))
        local = dataclasses.replace(model, config=config)
        out = tmp_path / "gate.safetensors"
        common = Common("local", "float32", None, str(out), None, 0, "")
        options = kvzap.Options(Path(book).read_text(), "linear", 40, 2, 99, 2, 1.0, 1)
        kvzap.run(local, common, options, no_progress)
        first, second = surrogates(str(out), decoder.geometry(config, 1, 64), WIDTH)
        assert not np.any(first["w"]) and np.all(second["w"])
        jaxkv.generate(local, "war and peace " * 9, policy=policy_of(str(out)), max_new_tokens=2)
        none = dataclasses.replace(model, config=dataclasses.replace(config, windows=(6, 6)))
        with pytest.raises(InputError, match="every layer of the model has a window of its own"):
            kvzap.run(none, common, options, no_progress)

    def test_passages_are_of_all_of_the_text(self, model) -> None:
        text = " ".join(f"{index:04d}" for index in range(2000))
        found = pairs.passages(model, text, 50, 4)
        decoded = [model.tokenizer.decode(ids) for ids in found]
        for index, passage in enumerate(decoded):
            assert f"{index * 500 + 2:04d}" in passage
        with pytest.raises(InputError, match=r"too short: .* --tokens is 5000 and --passages is 4"):
            pairs.passages(model, text, 5000, 4)
        with pytest.raises(InputError, match="--tokens is 2200, which takes .* trained for 4096"):
            pairs.passages(model, text, 2200, 2)

    @pytest.mark.parametrize(
        "arguments, told",
        [
            (["--kind", "tree"], "--kind is 'tree'; it must be one of linear, mlp"),
            (["--tokens", "0"], "--tokens is 0; it must be at least 1"),
            (["--hold-out", "1"], "--hold-out is 1; it must be at least 2"),
            (["--passages", "3"], "--hold-out is 4; .* --passages, which is 3"),
            (["--ridge", "0"], "--ridge is 0.0; it must be above 0"),
            (["--ridge", "nan"], "--ridge is 'nan'; it must be a number"),
            (["--text", "no/such"], "--text no/such"),
            ([], "--text is missing"),
        ],
    )
    def test_wrong_input_is_one_line(self, arguments, told, tmp_path) -> None:
        out = str(tmp_path / "x.safetensors")
        with pytest.raises(InputError, match=told) as raised:
            parse_options(["kvzap", "--out", out, *arguments])
        assert "\n" not in str(raised.value)
