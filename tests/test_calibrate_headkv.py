# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""HeadKV's head scores against explicit attention matrices, and where the needles are."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import jaxkv
from jaxkv import InputError, Rope
from jaxkv.calibrate import headkv, needles
from jaxkv.calibrate.probe import Probe, aim, notes
from jaxkv.calibrate.task import Common
from jaxkv.checkpoints import toy
from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import make_parser, parse
from jaxkv.generate.loop import compilations
from jaxkv.layers.base import Cache, Geometry
from jaxkv.models.config import ModelConfig, parameter_shapes
from jaxkv.models.decoder import forward, init_cache
from jaxkv.policies.full import Full
from jaxkv.policies.head_scores import head_scores

ROPE = Rope(8)
NEEDLE, ANSWER = (3, 11), (7, 10)  # of the prompts below
PROMPTS, STEPS = (17, 13), 5
FORWARD = jax.jit(forward, static_argnums=(1, 2))
PREFILL = jax.jit(functools.partial(jaxkv.prefill, rope=ROPE), static_argnums=0)
STEP = jax.jit(functools.partial(jaxkv.step, rope=ROPE), static_argnums=0)


@pytest.fixture(scope="module")
def model() -> Model:
    return toy.load()


def options(*arguments: str) -> headkv.Options:
    """The calibration's own, from a command line."""
    parser = make_parser("jaxkv.calibrate headkv", "")
    headkv.CALIBRATION.add_arguments(parser.add_argument)
    return headkv.CALIBRATION.check(parse(parser, list(arguments))[0])


def grid(model: Model, *arguments: str, seed: int = 0, chat: bool = True):
    own = options(*arguments)
    return needles.examples(
        model.tokenizer, own.needles, own.haystack, own.lengths, own.depths, seed, chat
    )


def attention(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Of one row, all tokens to all before them: rotated q [T, N, H], k [T, K, H] -> [N, T, T]."""
    group = q.shape[1] // k.shape[1]
    scores = np.einsum("tnh,snh->nts", q, np.repeat(k, group, axis=1)) / np.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def by_hand(weights: np.ndarray, begin: int, ids: list[int], score: str) -> np.ndarray:
    """Section 3.1, head by head and step by step: weights [N, T, T], scores [N].

    Args:
      weights: of prompt and answer; rows from `begin`, the last token of the prompt, are steps.
      begin: where decoding begins.
      ids: of prompt and answer: the token after each step's is what it said.
      score: which.
    """
    size = {"r2": ANSWER, "r2-script": NEEDLE, "r": NEEDLE}[score]
    n = size[1] - size[0]
    total = np.zeros(len(weights))
    for head, matrix in enumerate(weights):
        for step in range(begin, len(ids) - 1):
            order = sorted(range(step + 1), key=lambda at: (-matrix[step, at], at))  # noqa: B023
            if score == "r":
                best = order[0]
                copied = ids[best] == ids[step + 1]
                total[head] += (NEEDLE[0] <= best < NEEDLE[1] and copied) / n
            else:
                for at in order[:n]:
                    total[head] += matrix[step, at] / n if ANSWER[0] <= at < ANSWER[1] else 0
    return total


@pytest.fixture(scope="module", params=list(headkv.SCORE_NAMES))
def probed(request):
    """A ragged batch through `Probe` and `Full`: score, cache, both outputs, and the tokens."""
    score = request.param
    longest = max(PROMPTS)
    total = longest + STEPS
    q, k, v = (jnp.asarray(x) for x in toys.qkv(2, total, seed=3))
    example = example_of(list(range(longest)))
    count = headkv.counted(example, score)
    policy = Probe(steps=STEPS, most=12)  # others may count more
    geometry = Geometry(1, 4, 2, 8, 2, 32)
    layers, outs = [x.at(0, geometry) for x in (policy, Full())], []
    caches = [layer.init() for layer in layers]
    cache = aim(Cache((caches[0],), geometry), np.array([[*ANSWER, count]] * 2))
    caches[0] = cache.layers[0]
    for index, layer in enumerate(layers):
        lengths = jnp.asarray(PROMPTS, jnp.int32) - 1
        prompt = [x[:, : longest - 1] for x in (q, k, v)]
        caches[index], out = PREFILL(layer, caches[index], *prompt, lengths=lengths)
        parts = [out]
        for t in range(STEPS):
            # Each row takes its own next token; the second row sits the fourth step out.
            at = jnp.asarray(PROMPTS) - 1 + t - jnp.asarray([0, int(t > 3)])
            new = [jnp.take_along_axis(x, at[:, None, None, None], axis=1) for x in (q, k, v)]
            active = jnp.asarray([1, int(t != 3)], jnp.int32)
            caches[index], out = STEP(layer, caches[index], *new, lengths=active)
            parts.append(out)
        outs.append(parts)
    at = jnp.broadcast_to(jnp.arange(total, dtype=jnp.int32), (2, total))
    return score, caches, outs, np.asarray(ROPE(q, at)), np.asarray(ROPE(k, at))


def example_of(ids: list[int]) -> needles.Example:
    needle = needles.needles(["reasoning"], 0)[0]
    return needles.Example(needle, 0, tuple(ids), NEEDLE, ANSWER, ANSWER[1] - ANSWER[0])


class TestProbe:
    def test_attends_as_full(self, probed):
        _, (cache, full), (ours, theirs), _, _ = probed
        for row, length in enumerate(PROMPTS):
            np.testing.assert_array_equal(ours[0][row, : length - 1], theirs[0][row, : length - 1])
        for index, (one, other) in enumerate(zip(ours[1:], theirs[1:], strict=True)):
            rows = slice(None) if index != 3 else slice(0, 1)
            np.testing.assert_array_equal(one[rows], other[rows])
        jax.tree.map(np.testing.assert_array_equal, cache.slab, full)
        assert cache.steps.tolist() == [STEPS, STEPS - 1]

    def test_scores_are_those_of_the_matrices(self, probed):
        score, (cache, _), _, q, k = probed
        whole = Cache((cache,), Geometry(1, 4, 2, 8, 2, 32))
        rng = np.random.default_rng(0)
        found = 0.0
        for row, length in [*enumerate(PROMPTS)] * 3:
            steps = STEPS - row  # the second row sat one out
            ids = rng.integers(0, 2, length + steps).tolist()  # few tokens: copies happen
            answer = headkv.Answer("", tuple(ids[length:]), *notes(whole, row, steps))
            got = headkv.head_scores(example_of(ids[:length]), answer, score)
            seen = length + steps - 1
            expected = by_hand(attention(q[row, :seen], k[row, :seen]), length - 1, ids, score)
            assert got.shape == (1, 4) and got.dtype == np.float64
            np.testing.assert_allclose(got[0], expected, rtol=1e-5, atol=1e-7)
            found += expected.sum()
        assert found > 0

    def test_the_variants_differ(self):
        example = example_of(list(range(20)))
        assert headkv.counted(example, "r2") == ANSWER[1] - ANSWER[0]
        assert headkv.counted(example, "r2-script") == NEEDLE[1] - NEEDLE[0]

    def test_notes_stop_where_there_is_no_room(self):
        layer = Probe(steps=2, most=99).at(0, toys.geometry(max_length=16))
        caches = [layer.init()]
        q, k, v = toys.qkv(1, 4)
        for t in range(4):
            cache, _ = STEP(layer, caches[-1], *(x[:, t : t + 1] for x in (q, k, v)))
            caches.append(cache)
        assert caches[4].steps.tolist() == [4]
        np.testing.assert_array_equal(caches[4].top, caches[2].top)
        assert layer.facts().kept(99) == (16, 16)


class TestNeedles:
    @pytest.mark.parametrize("chat", [True, False])
    def test_spans_hold_their_sentences(self, model, chat):
        made = grid(model, "--lengths", "0,90,200", "--depths", "3", chat=chat)
        decode = model.tokenizer.decode
        for example in made:
            needle = example.needle
            begin, end = example.answer_span
            assert decode(example.ids[begin:end]).strip() == needle.answer.sentence
            begin, end = example.needle_span
            told = [claim.sentence for claim in needle.claims]
            whole = " ".join([needle.facts, *told]).strip()
            assert decode(example.ids[begin:end]).strip() == whole
            text = decode(example.ids, skip_special=False)
            between = "<|im_end|>\n<|im_start|>assistant\n" if chat else "\nAnswer: "
            claim = needle.answer
            assert text.endswith(f"\n\nQuestion: {claim.question}{between}{claim.opening}")
            assert text.startswith("<|im_start|>user\n") == chat
            assert example.most_new == len(model.tokenizer.encode(f" {claim.rest}"))

    def test_lengths_and_depths(self, model):
        made = grid(model, "--lengths", "900,0,450,450", "--depths", "5")
        count = len(needles.needles(needles.KINDS, 0))
        assert [example.length for example in made[:count]] == [0] * count
        assert len({example.ids for example in made}) == len(made) == count * (1 + 5 + 5)
        bare = {example.needle: len(example.ids) for example in made[:count]}
        for example in made[count:]:
            assert example.length - 60 < len(example.ids) - bare[example.needle] <= example.length
        last = [example for example in made if example.length == 900][:5]
        starts = [example.needle_span[0] for example in last]
        assert starts == sorted(starts)
        np.testing.assert_allclose(np.diff(starts), 220, atol=60)

    def test_close_depths_are_one(self, model):
        made = grid(model, "--lengths", "70", "--depths", "9")
        assert len({example.ids for example in made}) == len(made)
        each = Counter(example.needle for example in made)
        assert all(1 < count < 9 for count in each.values())

        twice = grid(model, "--lengths", "0,70,1")
        assert len({example.ids for example in twice}) == len(twice)
        with pytest.raises(InputError, match="--lengths has at most 3"):
            grid(model, "--lengths", "0,3")

    def test_same_seed_same_prompts(self, model):
        one = grid(model, "--lengths", "0,100", seed=3)
        assert grid(model, "--lengths", "0,100", seed=3) == one
        assert grid(model, "--lengths", "0,100", seed=4) != one
        assert set(grid(model, "--lengths", "100", seed=3)) < set(one)

    def test_both_sentences_are_asked_for(self):
        for kind in needles.KINDS:
            made = needles.needles([kind], 0)
            assert len(made) >= 6
            assert [needle.right for needle in made] == [0, 1] * (len(made) // 2)
            for needle in made:
                assert needle.kind == kind
                assert needle.answer is needle.claims[needle.right]

    def test_only_the_right_answer_passes(self):
        for needle in needles.needles(needles.KINDS, 0):
            example = dataclasses.replace(example_of([]), needle=needle)
            wrong = needle.claims[1 - needle.right]
            for score in headkv.SCORE_NAMES:
                assert headkv.passes(example, f" {needle.answer.rest}", score)
                assert not headkv.passes(example, f" {wrong.rest}", score)
                assert not headkv.passes(example, "I do not know.", score)

    def test_haystack_file(self, model, tmp_path):
        path = tmp_path / "hay.txt"
        path.write_text("One  fine\nday. Was it? It was! And so on")
        assert options("--haystack", str(path)).haystack == (
            "One fine day.", "Was it?", "It was!", "And so on",
        )  # fmt: skip
        both = options("--haystack", str(path), "--haystack", str(path)).haystack
        assert len(both) == 8
        assert [len(x.split()) for x in needles.split_sentences("no end " * 50)] == [40, 40, 20]
        made = grid(model, "--haystack", str(path), "--lengths", "100", "--depths", "1")
        text = model.tokenizer.decode(made[0].ids)
        assert text.count("One fine day.") >= 2  # again from the start

    def test_words(self):
        assert needles.token_f1("The red box.", "a Red box") == 1.0
        assert needles.token_f1("red red box", "red box blue car") == pytest.approx(4 / 7)
        assert needles.token_f1("", "red box") == needles.token_f1("blue", "red") == 0.0
        assert needles.unigram_recall("it is the red one, yes", "the red box") == pytest.approx(
            2 / 3
        )
        assert needles.unigram_recall("red", "red red") == 0.5
        assert needles.unigram_recall("", "red") == 0.0


def copying_model() -> Model:
    """A layer whose head 2 looks for the token z, and says z: the other heads look evenly.

    Width is vocabulary: the embedding is the identity. No key depends on its position.
    """
    base = toy.load()
    size, z = base.config.vocab_size, base.tokenizer.encode("z")[0]
    config = ModelConfig(
        vocab_size=size, hidden_size=size, intermediate_size=8, num_layers=1, num_heads=4,
        num_kv_heads=2, head_dim=8, rope=Rope(2), max_positions=4096, tie_embeddings=True,
    )  # fmt: skip

    def zeros(shape):
        return np.zeros(shape, np.float32)

    shapes = parameter_shapes(config)
    (layer,) = shapes["layers"]
    made = {name: zeros(shape) for name, shape in layer.items()}
    made["attn_norm"] += 1
    # KV head 1: its query head 0 is head 2; dimensions 0 and 1 would be rotated.
    wqkv = made["wqkv"].reshape(size, 2, 4, 8)
    wqkv[:, 1, 0, 5] = 1.0
    wqkv[z, 1, 2, 5] = 1.0
    wqkv[z, 1, 3, 6] = 1.0
    made["wo"][2 * 8 + 6, z] = 9.0
    params = {
        "embed": jnp.eye(size, dtype=jnp.float32),
        "layers": ({name: jnp.asarray(x) for name, x in made.items()},),
        "final_norm": jnp.ones((size,), jnp.float32),
    }
    return dataclasses.replace(base, config=config, params=params)


class TestCalibration:
    def test_a_head_that_copies_ranks_first(self):
        model = copying_model()
        encode = model.tokenizer.encode
        pieces = [encode(text) for text in ("Some words.", " not this", " ", "zzzzzz", " and?")]
        ends = np.cumsum([len(piece) for piece in pieces]).tolist()
        claims = [needles.Claim("", text, "", "") for text in ("not this", "zzzzzz")]
        needle = needles.Needle("reasoning", "", (claims[0], claims[1]), 1)
        ids = tuple(i for piece in pieces for i in piece)
        example = needles.Example(needle, 0, ids, (ends[0], ends[3]), (ends[2], ends[3]), 6)
        for score in headkv.SCORE_NAMES:
            prober = headkv.Prober.of(model, [example], score)
            answer = prober.ask(example)
            assert answer.text == "zzzzzz"  # as many tokens as the answer has, and no more
            scores, counts = headkv.measure(model, [example], score, lambda *told: None)
            assert counts == {"reasoning": (1, 1)}
            assert np.unravel_index(scores.argmax(), scores.shape) == (0, 2)
            assert scores[0, 2] > 2 * np.partition(scores.ravel(), -2)[-2]

    def test_the_prompts_last_token_is_a_step_and_the_first_line_is_the_answer(self, model):
        """What is said equals plain greedy decoding; one step for each token that is said."""
        made = grid(model, "--lengths", "0", "--needles", "reasoning")  # as below: compiled once
        prober = headkv.Prober.of(model, made, "r2")
        for example in made[:2]:
            answer = prober.ask(example)
            assert 1 <= len(answer.ids) <= example.most_new
            assert answer.mass.shape == answer.top.shape == (3, len(answer.ids), 4)
            assert answer.top.max() < len(example.ids) + len(answer.ids)
            ids = list(example.ids)
            for said in answer.ids:
                cache = init_cache(model.config, Full(), 1, 384)
                padded = jnp.asarray([ids + [0] * (384 - len(ids))], jnp.int32)
                lengths = jnp.asarray([len(ids)], jnp.int32)
                logits, _ = FORWARD(model.params, model.config, Full(), padded, cache, lengths)
                assert int(logits[0, len(ids) - 1].argmax()) == said
                ids.append(said)

    def test_one_program_for_all(self, model):
        made = grid(model, "--lengths", "0,60", "--depths", "2", "--needles", "passkey")
        before = compilations()
        headkv.measure(model, made[::5], "r2-script", lambda *told: None)
        after = compilations()
        assert {name: after[name] - before[name] for name in after} == {"prefill": 1, "decode": 1}

    def test_file_and_line(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr(headkv, "passes", lambda example, text, score: True)
        out, plot = tmp_path / "scores.json", tmp_path / "heads.png"
        common = Common("tiny-random", "float32", None, str(out), str(plot), 0, "python -m it")
        own = options("--lengths", "0", "--needles", "reasoning", "--min-examples", "9")
        told: list[tuple] = []
        line = headkv.run(model, common, own, lambda *what: told.append(what))
        assert told[-1] == ("headkv r2", 10, 10)
        assert "10 of 10 examples answered (reasoning 10 of 10); top heads " in line
        content = json.loads(out.read_text())
        assert content["score"] == "r2" and content["by"] == {"reasoning": [10, 10]}
        assert content["command"] == "python -m it" and content["jax"] == jax.__version__
        geometry = Geometry(3, 4, 2, 16, 1, 1, model=model.config.identity)
        scores = head_scores(str(out), geometry)
        assert scores.shape == (3, 4) and scores.sum() == pytest.approx(1.0)
        assert plot.read_bytes().startswith(b"\x89PNG")

    def test_too_few_answers_leave_no_file(self, model, tmp_path):
        out = tmp_path / "scores.json"
        common = Common("tiny-random", "float32", None, str(out), None, 0, "")
        own = options("--lengths", "0", "--needles", "reasoning", "--min-examples", "3")
        with pytest.raises(InputError, match=r"--min-examples is 3; .* 0 of 10"):
            headkv.run(model, common, own, lambda *told: None)
        assert not out.exists()

    def test_too_long_for_the_model(self, model, tmp_path):
        common = Common("tiny-random", "float32", None, str(tmp_path / "x"), None, 0, "")
        with pytest.raises(InputError, match="--lengths has 5000.* 4096"):
            headkv.run(model, common, options("--lengths", "5000"), lambda *told: None)

    @pytest.mark.parametrize(
        "arguments, said",
        [
            (["--score", "r3"], "r2-script"),
            (["--needles", "reasoning,nails"], "passkey"),
            (["--needles", ""], "passkey"),
            (["--lengths", "5,x"], "5,x"),
            (["--lengths", "-1"], "at least 0"),
            (["--depths", "0"], "at least 1"),
            (["--depths", "many"], "many"),
            (["--min-examples", "0"], "at least 1"),
            (["--haystack", "no/such/file"], "no/such/file"),
            (["--haystack", "/dev/null"], "--haystack /dev/null is a pipe or a device"),
        ],
    )
    def test_wrong_input_is_one_line(self, arguments, said):
        with pytest.raises(InputError) as raised:
            options(*arguments)
        message = str(raised.value)
        assert said in message and arguments[0] in message and "\n" not in message
