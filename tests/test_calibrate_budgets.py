# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables of head budgets: what heads get where all compete, on average."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given

import jaxkv
from jaxkv.calibrate import budgets
from jaxkv.calibrate.__main__ import main
from jaxkv.calibrate.command import parse_options
from jaxkv.calibrate.task import Common
from jaxkv.checkpoints import toy
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.progress import no_progress
from jaxkv.generate.session import Session, Settings
from jaxkv.models.decoder import geometry
from jaxkv.policies.expected import ExpectedAttention
from jaxkv.policies.kvzap import KVzap
from jaxkv.policies.kvzip import KVzip
from jaxkv.policies.shares import head_shares
from jaxkv.policies.surrogates import save_surrogates

WIDTH, LAYERS, HEADS = toys.CONFIG.hidden_size, 2, 2


@pytest.fixture(scope="module")
def model() -> Model:
    some = toy.load()
    config = dataclasses.replace(toys.CONFIG, vocab_size=some.config.vocab_size)
    return dataclasses.replace(some, config=config, params=toys.params(config))


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("book") / "book.txt"
    words = ["the", "of", "snow", "prince", "and", "war", "peace", "a", "horse", "said", "gate"]
    chosen = np.random.default_rng(0).choice(words, 900)
    path.write_text(" ".join(chosen), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def gate(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("gate") / "gate.safetensors"
    rng = np.random.default_rng(3)
    networks = [
        {"w": rng.normal(size=(WIDTH, HEADS)), "b": rng.normal(size=HEADS)} for _ in range(LAYERS)
    ]
    save_surrogates(path, tuple(networks), "", "")
    return str(path)


class TestDealt:
    @given(
        hnp.arrays(np.float32, (2, 3, 7), elements=st.integers(-4, 4).map(float)),
        st.floats(0.01, 1.0),
    )
    def test_is_counting_the_best(self, scores, ratio) -> None:
        (found,) = budgets.dealt(scores, [ratio])
        total = max(1, round(ratio * scores.size))
        ranked = sorted(range(scores.size), key=lambda i: (-scores.flat[i], i))
        wanted = np.zeros(6)
        for index in ranked[:total]:
            wanted[index // 7] += 1
        np.testing.assert_allclose(found.reshape(-1) * total / 6, wanted, atol=1e-9)
        assert found.mean() == pytest.approx(1)

    def test_all_of_a_prompt_is_even(self) -> None:
        scores = np.random.default_rng(0).normal(size=(3, 2, 9))
        assert (budgets.dealt(scores, [0.1, 1.0])[1] == 1).all()


@pytest.mark.parametrize("method", list(budgets.METHODS))
def test_counts_are_those_of_the_pool(method, model, gate) -> None:
    """What a head gets is what it has of the pool after `allocation="global"` read the prompt."""
    prompt, sinks, window, chosen = toys.tokens(1, 60)[0].tolist(), 4, 8, 11
    own = {"sinks": sinks, "window": window, "decode_room": 4, "allocation": "global"}
    policy = {
        "kvzip": lambda: KVzip(chosen + sinks + window, **own),
        "expected": lambda: ExpectedAttention(chosen + sinks + window, **own),
        "kvzap": lambda: KVzap(chosen + sinks + window, gate=gate, **own),
    }[method]()
    session = Session.begin(model, Settings(policy=policy), 1, len(prompt))
    session.feed([prompt])
    counts = np.stack([np.asarray(layer.counts)[0] for layer in session.state.cache.layers])
    scores = budgets.METHODS[method](model, prompt, 64, gate if method == "kvzap" else None)
    assert scores.shape == (LAYERS, HEADS, 60)
    free = scores[:, :, sinks : 60 - window]
    (shares,) = budgets.dealt(free, [chosen / free.shape[-1]])
    np.testing.assert_allclose(shares * chosen, counts - sinks, atol=1e-6)
    assert len(set(counts.flat)) > 1


class TestCommand:
    SMALL = ("--tokens", "60", "--passages", "4", "--ratios", "0.1,0.3,0.9")

    def test_from_a_text_to_an_answer(self, book, tmp_path, capsys) -> None:
        out, plot = tmp_path / "table.json", tmp_path / "table.png"
        command = ["budgets", "--model", "tiny-random", "--text", book, "--out", str(out)]
        main([*command, *self.SMALL, "--method", "expected", "--plot", str(plot)])
        line = capsys.readouterr().out
        assert "3 layers of 2 KV heads by expected, at 0.3 kept: from" in line
        assert "every other passage gives the same to r = " in line
        content = json.loads(out.read_text())
        assert content["ratios"] == [0.1, 0.3, 0.9] and content["method"] == "expected"
        assert content["command"].startswith("python -m jaxkv.calibrate budgets --model tiny-ra")
        shares = np.asarray(content["shares"])
        assert shares.shape == (3, 3, 2) and shares.min() >= 0
        np.testing.assert_allclose(shares.mean(axis=(1, 2)), 1)
        assert np.ptp(shares[0]) > np.ptp(shares[2]) > 0  # the more is kept, the more even
        assert plot.read_bytes().startswith(b"\x89PNG")
        taken = jaxkv.SnapKV(40, decode_room=8, allocation="table", table=str(out))
        said = jaxkv.generate(toy.load(), "the prince " * 30, policy=taken, max_new_tokens=2)
        assert len(said.token_ids[0]) == 2

    def test_layers_with_a_window_are_passed_over(self, model, book, tmp_path) -> None:
        config = dataclasses.replace(model.config, windows=(6, 0))
        local, out = dataclasses.replace(model, config=config), str(tmp_path / "table.json")
        common = Common("local", "float32", None, out, None, 0, "")
        options = budgets.Options("kvzip", None, Path(book).read_text(), 40, 1, (0.2, 0.5))
        line = budgets.run(local, common, options, no_progress)
        assert line.startswith("1 layers of 2 KV heads") and "every other" not in line
        assert head_shares(out, 0.2, geometry(config, 1, 64))[1].mean() == pytest.approx(1)
        none = dataclasses.replace(model, config=dataclasses.replace(config, windows=(6, 6)))
        with pytest.raises(InputError, match="every layer of the model has a window of its own"):
            budgets.run(none, common, options, no_progress)

    @pytest.mark.parametrize(
        "arguments, told",
        [
            (["--method", "h2o"], "--method is 'h2o'; it must be one of kvzip, expected, kvzap"),
            (["--gate", "x"], "--gate is for --method kvzap, and the method is 'kvzip'"),
            (["--passages", "0"], "--passages is 0; it must be at least 1"),
            (["--tokens", "12"], "--tokens is 12; it must be above 12"),
            (["--ratios", "0.5,0.2"], "--ratios is '0.5,0.2'; it must be rising numbers"),
            (["--ratios", "0.5,1.5"], "above 0 and at most 1"),
            (["--ratios", "nan"], "--ratios is 'nan'"),
            (["--ratios", ""], "--ratios is ''"),
            (["--text", "no/such"], "--text no/such"),
            ([], "--text is missing"),
        ],
    )
    def test_wrong_input_is_one_line(self, arguments, told, tmp_path) -> None:
        with pytest.raises(InputError, match=told) as raised:
            parse_options(["budgets", "--out", str(tmp_path / "x.json"), *arguments])
        assert "\n" not in str(raised.value)


def test_scores_are_of_the_prompts_own_tokens(model) -> None:
    """What stands in the slots after a prompt is nobody's."""
    prompt = toys.tokens(1, 60)[0].tolist()
    few, many = (budgets.METHODS["expected"](model, prompt, slots, None) for slots in (64, 128))
    np.testing.assert_allclose(few, many, rtol=1e-5)
    assert np.isfinite(few[:, :, 4:]).all() and jnp.ndim(few) == 3
