# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a training is made of: arms, a text in samples, a loss through a policy, and one step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from dense_model import DenseModel
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers

import jaxkv
from jaxkv.checkpoints import toy
from jaxkv.core.progress import no_progress
from jaxkv.models.mesh import mesh
from jaxkv.policies.registry import make_policy
from jaxkv.text.tokenizer import Tokenizer, make
from jaxkv.train import text as texts
from jaxkv.train.arms import Shape, first_weights, with_sinks
from jaxkv.train.programs import Programs
from jaxkv.train.recipe import Recipe, make_optimizer
from jaxkv.train.step import State, losses, start, update
from jaxkv.train.text import Samples, split, tokenised

RECIPE = Recipe(context=16, batch=4, steps=10)


@pytest.fixture(autouse=True)
def kept_at_home(tmp_path_factory, monkeypatch) -> None:
    """Tokenised texts are in a folder of the tests' own."""
    monkeypatch.setenv("JAXKV_HOME", str(tmp_path_factory.mktemp("home")))


class TestArms:
    def test_weights_are_those_that_were_meant(self):
        config = Shape(layers=3, width=64).config(500, 128, "vanilla")
        assert config.family == "gpt_neox" and config.parallel and config.rope.rotary_dim == 4
        assert (config.vocab_size, config.max_positions, config.num_layers) == (512, 128, 3)
        params = first_weights(config, 0)
        layer = params["layers"][1]
        assert float(layer["attn_norm"].min()) == 1 and float(jnp.abs(layer["bqkv"]).max()) == 0
        spread = {
            "wqkv": (2 / 320) ** 0.5,
            "wo": 2 / 24,
            "w_down": 2 / 24,
            "w_up": (2 / 320) ** 0.5,
        }
        for name, deviation in spread.items():
            assert float(layer[name].std()) == pytest.approx(deviation, rel=0.05)
        assert float(params["embed"].std()) == pytest.approx((2 / 320) ** 0.5, rel=0.05)
        other = first_weights(config, 1)
        assert (params["embed"] != other["embed"]).any()

    def test_a_llama_may_have_fewer_kv_heads(self):
        config = Shape("llama", 2, 64, 4, kv_heads=2, mlp_width=96).config(300, 64, "vanilla")
        assert (config.num_kv_heads, config.intermediate_size, config.gated) == (2, 96, True)

    def test_sinks_are_ids_of_their_own(self):
        tokenizer = toy.tokenizer()
        assert with_sinks(dataclasses.replace(tokenizer, bos_ids=(1,)), 0).bos_ids == ()
        for count in (1, 2):
            made = with_sinks(tokenizer, count)
            assert made.bos_ids == tuple(range(512, 512 + count))
            text = "a <|sink|> b"
            assert made.decode(made.encode(text)) == text and 512 not in made.encode(text)
            assert made.decode([*made.bos_ids, *made.encode("a")]) == "a"
        assert tokenizer.vocab_size == 512

    def test_arms_are_of_one_size(self):
        shape = Shape(layers=1, width=32, heads=2)
        assert shape.config(300, 32, "vanilla") == shape.config(300, 32, "sink-token")
        assert shape.config(50277, 32, "vanilla").vocab_size == 50304  # Pythia's


class TestText:
    def test_tokens_are_those_of_the_files_one_after_the_other(self, tmp_path, monkeypatch):
        monkeypatch.setattr(texts, "_PIECE", 40)
        tokenizer = toy.tokenizer()
        (tmp_path / "in").mkdir()
        contents = {"a.txt": "It was the best of times,\n" * 7, "in/b.txt": "x" * 90 + "\ny é"}
        for name, content in contents.items():
            (tmp_path / name).write_text(content, encoding="utf-8")
        (tmp_path / "in" / "c.md").write_text("not this")
        text = tokenised(texts.files_of([str(tmp_path)]), tokenizer, no_progress)
        ids = text.tokens.tolist()
        end = tokenizer.eos_ids[0]
        assert text.tokens.dtype == np.uint16 and ids.count(end) == 2 and ids[-1] == end
        cut = ids.index(end)
        assert [tokenizer.decode(x) for x in (ids[:cut], ids[cut + 1 : -1])] == [*contents.values()]
        # The second time it is read, and nothing is tokenised.
        monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("tokenised again"))
        again = tokenised(texts.files_of([str(tmp_path)]), tokenizer, no_progress)
        np.testing.assert_array_equal(again.tokens, text.tokens)
        assert again.key == text.key

    def test_another_text_or_tokenizer_has_another_file(self, tmp_path):
        small = tmp_path / "a.txt"
        keys = set()
        for content in ("one two", "one three"):
            small.write_text(content)
            for by in (toy.tokenizer(), 257, 258):
                keys.add(tokenised([small], by, no_progress).key)
        keys.add(tokenised([small, small], 257, no_progress).key)
        assert len(keys) == 7

    def test_one_that_was_cut_short_is_not_taken_for_whole(self, tmp_path, monkeypatch):
        file = tmp_path / "a.txt"
        file.write_text("a text of its own " * 50)
        with monkeypatch.context() as patch:
            patch.setattr(Tokenizer, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                tokenised([file], 259, no_progress)
        text = tokenised([file], 259, no_progress)
        assert text.tokenizer.decode(text.tokens.tolist()) == file.read_text()

    def test_a_tokenizer_that_is_trained_reads_every_byte(self, tmp_path):
        text = "the rain in Spain stays mainly in the plain " * 20
        (tmp_path / "a.txt").write_text(text)
        tokenizer = tokenised([tmp_path / "a.txt"], 280, no_progress).tokenizer
        assert tokenizer.vocab_size == 280
        for some in (text, "Ünïcode \x00\n\n\t x"):
            assert tokenizer.decode(tokenizer.encode(some)) == some
        assert len(tokenizer.encode(text)) < 0.6 * len(text)
        assert tokenizer.eos_ids == (0,) and tokenizer.bos_ids == ()

    def test_ids_may_have_gaps(self, tmp_path):
        """A row is one more than the highest id, however few tokens there are."""
        engine = Engine(models.WordLevel({"a": 0, "b": 70000}, unk_token="a"))
        engine.pre_tokenizer = pre_tokenizers.Whitespace()
        (tmp_path / "a.txt").write_text("a b b")
        text = tokenised([tmp_path / "a.txt"], make(engine), no_progress)
        assert text.tokens.tolist() == [0, 70000, 70000] and text.tokens.dtype == np.uint32
        assert texts.ids_of(text.tokenizer) == 70001 and text.tokenizer.vocab_size == 2


class TestSamples:
    @pytest.mark.parametrize("first", [(), (90,), (90, 91)])
    def test_every_token_is_predicted_once_in_an_epoch(self, first):
        samples = Samples(np.arange(85, dtype=np.uint16), first, 8)
        size = samples.count
        for step in range(3):
            tokens, targets = samples.batch(seed=5, step=step, size=size)
            assert tokens.shape == targets.shape == (size, 8) and tokens.dtype == np.int32
            assert tokens[:, : len(first)].tolist() == [list(first)] * size
            np.testing.assert_array_equal(tokens[:, 1:], targets[:, :-1])
            seen = np.sort(targets[:, samples.skip :].ravel())
            np.testing.assert_array_equal(seen, np.arange(seen[0], seen[0] + seen.size))
            assert seen.max() < 85 and seen.size > 85 - 2 * 8

    def test_a_batch_is_a_function_of_seed_and_step(self):
        samples = Samples(np.arange(1000, dtype=np.uint16), (), 8)
        one, other, seeded = (samples.batch(seed, 7, 50)[0] for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, other)
        assert (one != seeded).any() and (one != samples.batch(1, 8, 50)[0]).any()
        # A step may end one order and begin the next, which begins elsewhere.
        rows = np.concatenate([samples.batch(1, step, 50)[0][:, 0] for step in range(5)])
        assert samples.count == 124 and len(set(rows[:124].tolist())) == 124
        assert sorted(rows[:124] // 8) == sorted(rows[124:248] // 8)

    def test_the_end_is_held_out(self):
        text = texts.Text(np.arange(1000, dtype=np.uint16), toy.tokenizer(), "")
        mine, held = split(text, (), 16, 0.1)
        assert mine.tokens[-1] == 899 and held.tokens[0] == 900
        starts = held.spread(64)
        assert starts[0] == 0 and starts[-1] == (held.count - 1) * 16
        assert held.spread(3).tolist() == [0, 32, 80] and held.count == 6


def pair(seed: int = 3, batch: int = 5, count: int = 16) -> tuple[jax.Array, jax.Array]:
    """Of so many rows that no matrix is taken alone, which takes long to compile."""
    ids = jnp.asarray(toys.tokens(batch, count + 1, seed))
    return ids[:, :-1], ids[:, 1:]


def slope(policy: Any, recipe: Recipe) -> tuple[float, Any]:
    """The mean loss of some samples, and its derivative."""
    run = jax.jit(
        jax.value_and_grad(
            lambda params, row: jnp.mean(losses(params, toys.CONFIG, policy, recipe, *row))
        )
    )
    value, found = run(toys.params(), pair())
    return float(value), found


def assert_near(one: Any, other: Any, share: float = 1e-4) -> None:
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, atol=share * float(np.abs(y).max()) + 1e-7)


class TestLoss:
    def test_it_is_that_of_a_dense_model(self):
        tokens, targets = pair(batch=1)
        params = toys.params()
        found = losses(params, toys.CONFIG, jaxkv.Full(), RECIPE, tokens, targets)
        dense = DenseModel(params, toys.CONFIG)
        x = dense.params["embed"][np.asarray(tokens[0])]
        for layer in dense.params["layers"]:
            x = dense.rest(x, dense.attend(x, layer, np.tri(16, dtype=bool)), layer)
        logits = dense.norm(x, dense.params["final_norm"]) @ dense.params["embed"].T
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected = -np.log(shares[np.arange(16), np.asarray(targets[0])])
        np.testing.assert_allclose(found[0], expected, atol=2e-5)

    @pytest.mark.parametrize(
        "policy, change",
        [
            (jaxkv.Full(), {"chunk": 4}),
            (jaxkv.Full(), {"remat": True}),
            (jaxkv.StreamingLLM(1, 3), {"chunk": 1}),
            (jaxkv.StreamingLLM(1, 3), {"chunk": 8, "remat": True}),
        ],
    )
    def test_chunks_and_remat_change_nothing(self, policy, change):
        whole, expected = slope(policy, RECIPE)
        loss, found = slope(policy, dataclasses.replace(RECIPE, **change))
        assert loss == pytest.approx(whole, rel=1e-5)
        assert_near(found, expected)

    def test_what_was_evicted_has_no_part_in_it(self):
        """The first token is a sink or is gone; only a sink's embedding has a late slope."""

        config = dataclasses.replace(toys.CONFIG, tie_embeddings=False, num_layers=1)
        recipe, mine = dataclasses.replace(RECIPE, chunk=4), toys.params(config)
        tokens = jnp.asarray([[60, *range(1, 16)]] * 5, jnp.int32)  # 60 is first and nowhere else
        targets = jnp.roll(tokens, -1, axis=1)

        def late(policy: Any) -> float:
            def last(embed: jax.Array) -> jax.Array:
                params = {**mine, "embed": embed, "lm_head": mine["embed"]}
                return losses(params, config, policy, recipe, tokens, targets)[0, -1]

            return float(jnp.abs(jax.jit(jax.grad(last))(mine["embed"])[60]).max())

        assert late(jaxkv.Window(4)) == 0
        assert late(jaxkv.StreamingLLM(1, 3)) > 1e-4
        assert late(jaxkv.Full()) > 1e-4

    @pytest.mark.parametrize("name", ["streaming", "snapkv"])
    def test_a_policy_is_felt(self, name):
        """What is kept of a chunk decides what the next is predicted from."""
        fields = {"sinks": 1, "window": 3} if name == "streaming" else {"budget": 4, "window": 2}
        recipe = dataclasses.replace(RECIPE, chunk=8)
        loss, found = slope(make_policy(name, fields), recipe)
        whole, expected = slope(jaxkv.Full(), recipe)
        assert np.isfinite(loss) and abs(loss - whole) > 1e-4
        lengths = [float(jnp.linalg.norm(layer["wqkv"])) for layer in found["layers"]]
        assert min(lengths) > 1e-4 and np.isfinite(lengths).all()
        with pytest.raises(AssertionError):
            assert_near(found, expected)

    def test_bfloat16_has_float32_weights(self):
        loss, found = slope(jaxkv.Full(), dataclasses.replace(RECIPE, dtype="bfloat16"))
        assert loss == pytest.approx(slope(jaxkv.Full(), RECIPE)[0], rel=0.02)
        assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}


class TestStep:
    def step(self, recipe: Recipe, over: Any = None) -> tuple[State, Any]:
        programs = Programs(toys.CONFIG, jaxkv.Full(), recipe, 0, over)
        samples = Samples(toys.tokens(1, 400)[0], (), recipe.context)
        rows = programs.rows(samples.batch(0, 0, recipe.batch))
        state = start(toys.params(), recipe)
        statics = dict(programs._statics)
        return jax.jit(lambda rows, state: update(rows, state, **statics))(rows, state)

    def test_parts_of_a_batch_add_up_to_it(self):
        whole, report = self.step(RECIPE)
        parts, same = self.step(dataclasses.replace(RECIPE, micro_batch=1))
        assert float(same.loss) == pytest.approx(float(report.loss), rel=1e-6)
        assert float(same.gradient) == pytest.approx(float(report.gradient), rel=1e-5)
        assert_near(parts.params, whole.params, 1e-3)  # Adam's first step is the slope's sign

    def test_several_devices_give_what_one_gives(self):
        whole, report = self.step(RECIPE)
        shared, same = self.step(RECIPE, mesh(data=2))
        assert float(same.loss) == pytest.approx(float(report.loss), rel=1e-6)
        assert float(same.gradient) == pytest.approx(float(report.gradient), rel=1e-5)
        assert_near(shared.params, whole.params, 1e-3)
        embed = shared.params["embed"]
        assert len(embed.sharding.device_set) == 2 and embed.sharding.is_fully_replicated

    def test_the_optimiser_is_adamw_with_a_warm_up_and_a_cosine(self):
        """Beside the formulas, in NumPy; norms do not decay, and long slopes are clipped."""
        recipe = Recipe(steps=20, lr=0.1, lr_end=0.2, warmup=0.25, weight_decay=0.5, clip=2.0)
        rng = np.random.default_rng(0)
        params = {"w": jnp.ones((2, 3), jnp.float32), "norm": jnp.ones((3,), jnp.float32)}
        optimizer = make_optimizer(recipe)
        state, m, v = optimizer.init(params), {"w": 0.0, "norm": 0.0}, {"w": 0.0, "norm": 0.0}
        mine = {name: np.asarray(x, np.float64) for name, x in params.items()}
        for step in range(20):
            slope = {name: rng.normal(size=x.shape) * 3 for name, x in mine.items()}
            with jax.numpy_dtype_promotion("standard"):
                given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), slope)
                change, state = optimizer.update(given, state, params)
            params = jax.tree.map(jnp.add, params, change)
            length = np.sqrt(sum((x**2).sum() for x in slope.values()))
            slope = {name: x * min(1, 2.0 / length) for name, x in slope.items()}
            done = (step - 5) / 15
            rate = 0.1 * (0.2 + 0.8 * (1 + np.cos(np.pi * done)) / 2)
            if step < 5:
                rate = 0.1 * (1 / 6 + step / 5 * 5 / 6)
            for name, g in slope.items():
                m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.95 * v[name] + 0.05 * g * g
                way = m[name] / (1 - 0.9 ** (step + 1))
                way = way / (np.sqrt(v[name] / (1 - 0.95 ** (step + 1))) + 1e-8)
                mine[name] = mine[name] - rate * (way + (0.5 * mine[name] if name == "w" else 0))
        for name, x in mine.items():
            np.testing.assert_allclose(params[name], x, rtol=2e-4, atol=2e-5)

    def test_a_held_out_loss_is_the_mean_over_its_samples(self):
        """Of more samples than are computed at once, and not a multiple of them."""
        programs = Programs(toys.CONFIG, jaxkv.Full(), RECIPE, 1, None)
        held = Samples(toys.tokens(1, 105)[0], (60, 59), 16)
        rows = held.at(held.spread(64))
        assert len(rows[0]) == 7
        found = losses(toys.params(), toys.CONFIG, jaxkv.Full(), RECIPE, *map(jnp.asarray, rows))
        assert programs.loss(toys.params(), held) == pytest.approx(
            float(jnp.mean(found[:, 1:])), rel=1e-5
        )
