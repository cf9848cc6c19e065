# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Gates without training: by attention, by what closing costs, by mean vectors and by a replay."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import toys
from dense_model import DenseModel
from test_calibrate_headkv import copying_model
from test_replay import oracle

from jaxkv import Rope
from jaxkv.calibrate import attended, closing, onepass, profiles, replays
from jaxkv.calibrate.__main__ import main
from jaxkv.calibrate.haystacks import builtin, hay_ids
from jaxkv.calibrate.needles import default_haystack
from jaxkv.calibrate.onepass import of_kv_heads, one_pass
from jaxkv.calibrate.wordings import HELD_OUT, WORDINGS
from jaxkv.checkpoints import toy
from jaxkv.checkpoints.model import Model
from jaxkv.core.progress import no_progress
from jaxkv.eval.questions import wordings as judged
from jaxkv.layers.replayed import Replay
from jaxkv.models.decoder import geometry
from jaxkv.policies.head_scores import full_heads, sparsify

WORDS = tuple(WORDINGS.values())
HAYS = tuple(builtin().values())
TEXT = toys.tokens(1, 45, seed=7)[0].tolist()


@pytest.fixture(scope="module")
def model() -> Model:
    return toy.load()


def toy_model(**changes) -> Model:
    """`toys.CONFIG` with random weights and some tokenizer."""
    config = dataclasses.replace(toys.CONFIG, **changes)
    return dataclasses.replace(toy.load(), config=config, params=toys.params(config))


class TestWordings:
    def test_what_is_found_here_is_judged_elsewhere(self):
        """No wording and no sentence of a haystack is on both sides."""
        mine = [*WORDINGS.values(), *HELD_OUT.values()]
        theirs = judged.WORDINGS.values()
        for wording in mine:
            for other in theirs:
                assert wording.told.split(" {")[0] not in other.key
                assert other.key.split(" {")[0] not in wording.told
                assert wording.opening != other.opening and wording.question != other.question
        here = {x for hay in (*HAYS, default_haystack()) for x in hay if len(x.split()) > 5}
        assert not here & {x for wording in theirs for x in wording.hay()}

    @pytest.mark.parametrize("wording", [*WORDS, *HELD_OUT.values()])
    def test_a_sentence_and_its_question_name_the_owner(self, wording):
        told = wording.sentence("Amira", "KEY")
        assert told.strip() == wording.told.format(who="Amira", key="KEY") and " KEY" in told
        assert len(wording.owners) >= 20 and "Amira" in told
        assert "Amira" in " ".join(wording.asked("Amira"))
        assert told.endswith("\n\n") == told.startswith("\n\n") == wording.apart

    def test_haystacks_go_on_for_ever(self, model):
        for hay in HAYS:
            assert len(hay) >= 5 and all("\n" not in x and x for x in hay)
            assert len(hay_ids(model.tokenizer, hay, 10**9, 3000)) == 3000
        assert sum(map(len, builtin()["manuals"])) > 8000
        ids = hay_ids(model.tokenizer, ("One.", "Two."), 1, 12)
        assert model.tokenizer.decode(ids).startswith(" Two. One. T")


def to_the_told(weights: np.ndarray, prompt: attended.Prompt) -> np.ndarray:
    """Query by query: weights [K, G, T, T] -> [2, K G]."""
    told = weights[..., slice(*prompt.told)].sum(-1).reshape(-1, len(prompt.ids))
    spans = (prompt.asked, prompt.said)
    return np.stack([[np.mean([x[i] for i in range(*span)]) for x in told] for span in spans])


class TestAttention:
    def make(self, model, count: int = 24, **changes):
        how = {"lengths": (150, 300), "words": 2, "number_share": 0.5, "seed": 3} | changes
        return attended.make_prompts(model.tokenizer, WORDS, HAYS, count, **how)

    def test_spans_are_those_of_sentence_question_and_key(self, model):
        made = self.make(model)
        decode = model.tokenizer.decode
        numbers, depths = set(), []
        for index, prompt in enumerate(made):
            wording = WORDS[index % len(WORDS)]
            key = decode(prompt.ids[prompt.said[0] + 1 :])
            assert key[0] == " " and prompt.said[1] == len(prompt.ids) - 1
            numbers.add(key[1:].isdigit())
            told = decode(prompt.ids[slice(*prompt.told)])
            who = next(x for x in wording.owners if wording.sentence(x, key[1:]) == told)
            question, opening = wording.asked(who)
            text = decode(prompt.ids[prompt.asked[0] : prompt.said[0] + 1], skip_special=False)
            assert text == f"\n\n{question}<|im_end|>\n<|im_start|>assistant\n{opening}"
            assert prompt.asked[1] == prompt.said[0]
            assert decode(prompt.ids, skip_special=False).startswith("<|im_start|>user\n")
            depths.append(prompt.told[0] / len(prompt.ids))
        assert numbers == {False, True} and min(depths) < 0.3 and max(depths) > 0.4
        assert len({prompt.ids for prompt in made}) == len(made)

    def test_every_wording_is_in_every_haystack(self, model):
        made = self.make(model, len(WORDS) * len(HAYS), lengths=(400, 500))
        text = [model.tokenizer.decode(prompt.ids) for prompt in made]
        found = {
            (index % len(WORDS), next(n for n, hay in enumerate(HAYS) if any(x in y for x in hay)))
            for index, y in enumerate(text)
        }
        assert len(found) == len(WORDS) * len(HAYS)

    def test_a_short_haystack_holds_the_key_alone(self, model):
        (prompt,) = self.make(model, 1, lengths=(1, 1))
        assert prompt.told[0] < prompt.told[1] == prompt.asked[0]

    def test_is_that_of_the_matrices(self):
        model = toy_model()
        dense = DenseModel(model.params, model.config)
        prompts = [
            attended.Prompt(tuple(TEXT), (5, 12), (20, 31), (31, 44)),
            attended.Prompt(tuple(TEXT[:30]), (9, 10), (15, 17), (17, 29)),
        ]
        wanted = np.zeros((2, 2, 4))
        for prompt in prompts:
            spans = np.asarray([prompt.told, prompt.asked, prompt.said])
            found = onepass.one_pass(model, prompt.ids, attended.to_the_told, spans)
            causal = np.tri(len(prompt.ids), dtype=bool)
            one = [
                to_the_told(dense.weights(q, k, causal), prompt)
                for q, k in dense.layers(list(prompt.ids))
            ]
            np.testing.assert_allclose(found, one, rtol=1e-4)
            wanted += np.asarray(one)
        means = wanted.reshape(2, 2, 2, 2).mean(-1)  # over the query heads of a KV head
        ranks = [
            [[max(sum(y <= of[i, j] for y in of.flat) / 4 for of in (means[:, 0], means[:, 1]))
              for j in range(2)] for i in range(2)]
        ]  # fmt: skip
        gates = attended.attended(model, prompts, no_progress)
        np.testing.assert_allclose(gates, ranks[0])

    def test_a_head_that_copies_is_found(self, monkeypatch):
        monkeypatch.setattr(attended, "draw_key", lambda *drawn: "zzzzzz")
        model = copying_model()
        made = attended.make_prompts(model.tokenizer, WORDS[:1], HAYS[1:2], 2, (60, 60), 2, 0.5, 0)
        gates = attended.attended(model, made, no_progress)
        assert gates.tolist() == [[0.5, 1.0]]

    def test_the_mean_is_over_the_query_heads_of_a_kv_head(self):
        scores = np.arange(12.0).reshape(2, 6)
        assert of_kv_heads(scores, 2).tolist() == [[1.0, 4.0], [7.0, 10.0]]


class Gates(DenseModel):
    """With attention that is partly of sinks and recent tokens."""

    def loss(self, prompt: attended.Prompt, gates: np.ndarray, sinks: int, recent: int) -> float:
        at = np.arange(len(prompt.ids))
        back = at[:, None] - at
        near = (back >= 0) & ((back <= recent) | (at[None] < sinks))
        x = self.params["embed"][np.asarray(prompt.ids)]
        for layer, gate in zip(self.params["layers"], gates, strict=True):
            full, part = (self.attend(x, layer, mask) for mask in (back >= 0, near))
            share = gate[None, :, None, None]
            x = self.rest(x, share * full + (1 - share) * part, layer)
        logits = self.norm(x, self.params["final_norm"]) @ self.params["embed"].T
        where = np.arange(*prompt.said)
        said = np.asarray(prompt.ids)[where + 1]
        logits = logits[where] - logits[where].max(-1, keepdims=True)
        return -float(np.mean(logits[at[: len(said)], said] - np.log(np.exp(logits).sum(-1))))


class TestClosing:
    def test_is_what_closing_costs_along_the_way(self):
        """By finite differences of a loss in NumPy."""
        model = toy_model()
        dense = Gates(model.params, model.config)
        prompts = [
            attended.Prompt(tuple(TEXT), (5, 12), (20, 31), (31, 44)),
            attended.Prompt(tuple(TEXT[:30]), (9, 10), (15, 17), (17, 29)),
        ]
        cost = np.zeros((2, 2))
        for prompt in prompts:
            for gate in closing.WAY:
                for index in np.ndindex(2, 2):
                    step = np.zeros((2, 2))
                    step[index] = 1e-5
                    up, down = (dense.loss(prompt, gate + s * step, 2, 5) for s in (1, -1))
                    cost[index] -= (up - down) / 2e-5
        found = closing.closed(model, prompts, 2, 5, no_progress)
        wanted = [[np.sum(cost <= cost[i, j]) / 4 for j in range(2)] for i in range(2)]
        np.testing.assert_allclose(found, wanted)
        assert len(np.unique(found)) == 4


def farness(dense: DenseModel, q: np.ndarray, k: np.ndarray, places: int) -> np.ndarray:
    """METHODS.md 4.7, word by word: q [K, G, H], k [K, H] -> [K]."""
    at = np.arange(places)
    keys = dense.rotate(np.broadcast_to(k, (places, *k.shape)), at)
    query = dense.rotate(np.broadcast_to(q, (places, *q.shape)), at)[-1]
    scores = np.einsum("kgh,skh->kgs", query, keys) / np.sqrt(k.shape[-1])
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.cumsum(p, axis=-1).mean(-1).mean(-1)


class TestProfile:
    @pytest.mark.parametrize("changes", [{}, {"qk_norm": True}])
    def test_is_that_of_the_formula(self, changes):
        model = toy_model(**changes)
        dense = DenseModel(model.params, model.config)
        texts = [TEXT, TEXT[:20]]
        found = profiles.profile(model, texts, no_progress)
        wanted = np.mean(
            [
                [farness(dense, q.mean(0), k.mean(0), 500) for q, k in dense.layers(text)]
                for text in texts
            ],
            axis=0,
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        assert np.ptp(found) > 1e-4

    def test_means_are_those_after_the_norms_of_q_and_k(self):
        """Which undo what the projection is multiplied with."""
        model = toy_model(qk_norm=True)
        layers = tuple({**x, "wqkv": 7 * x["wqkv"]} for x in model.params["layers"])
        # The first layer's own means: later layers also see other values.
        more = dataclasses.replace(model, params={**model.params, "layers": layers})
        found = [one_pass(x, TEXT, profiles.means)[0] for x in (model, more)]
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)

    def test_even_attention_is_half_of_the_way(self):
        q, k = (jnp.asarray(x[0, 0]) for x in toys.qkv(1, 1)[:2])
        found = profiles.farness(q, k, None, 500)
        np.testing.assert_allclose(found, 501 / 1000, rtol=1e-5)
        # As do frequencies so high that a window sees many turns of them.
        even = profiles.farness(q, k, Rope(8, theta=1.0), 500)
        np.testing.assert_allclose(even, 0.5, atol=0.02)

    def test_near_and_far(self):
        rope = Rope(8, theta=1e9)  # slow but for the first pair, which the vectors leave alone
        one = jnp.zeros((1, 8), jnp.float32).at[0, 1].set(1.0)
        near = profiles.farness(300 * one, one, rope, 500)
        assert float(near[0]) < 0.5 < float(profiles.farness(-300 * one, one, rope, 500)[0])


class TestReplay:
    @pytest.mark.parametrize("sinks, recent", [(0, 1), (6, 9), (2, 17), (9, 99)])
    def test_is_the_most_that_any_token_gets(self, sinks, recent):
        """Of dense matrices of another model, which repeats the prompt by itself."""
        model = toy_model(vocab_size=toy.load().config.vocab_size)
        texts, wanted = [TEXT, TEXT[:31]], []
        for text in texts:
            prompt = replays.asked_about(model.tokenizer, text)
            scores = oracle(model, prompt, Replay())
            at = np.arange(scores.shape[-1])
            far = np.isfinite(scores) & (at >= sinks) & (at + recent < len(prompt))
            wanted.append(np.where(far, scores, 0).max(axis=-1))
        found = replays.replay(model, texts, sinks, recent, no_progress)
        np.testing.assert_allclose(found, np.mean(wanted, axis=0), rtol=1e-4)
        assert (found > 0).all() == (recent < 99)

    def test_a_text_is_what_the_user_says(self, model):
        text = model.tokenizer.encode("Some old words.")
        ids = replays.asked_about(model.tokenizer, text)
        assert model.tokenizer.decode(ids, skip_special=False) == (
            "<|im_start|>user\nSome old words.<|im_end|>\n<|im_start|>assistant\n"
        )


class TestCommand:
    SMALL = ("duo", "--model", "tiny-random", "--examples", "2", "--max-length", "200")

    @pytest.mark.parametrize("method", ["attention,closing", "profile", "replay"])
    def test_writes_a_pattern(self, capsys, tmp_path, model, method):
        out = tmp_path / "g.json"
        main(
            [*self.SMALL, "--method", method, "--min-length", "150",
             "--plot", str(tmp_path / "g.png"), "--out", str(out)]
        )  # fmt: skip
        assert (
            f"3 layers of 2 KV heads by {' and '.join(method.split(','))}, mean"
            in capsys.readouterr().out
        )
        content = json.loads(out.read_text())
        gates = np.asarray(content["gates"])
        assert gates.shape == (3, 2) and gates.min() >= 0 and gates.max() <= 1
        assert len(np.unique(gates)) > 2 and content["method"] == method
        assert content["full_heads"] == sparsify(gates, 0.5).tolist()
        assert content["haystack"] == list(builtin()) and content["max_length"] == 200
        assert ("wordings" in content) == ("attention" in method)
        assert ("recent" in content) == (method != "profile") and "steps" not in content
        kept = full_heads(str(out), 0.5, geometry(model.config, 1, 64))
        assert sum(map(len, kept)) == 3
        assert sorted(x.name for x in tmp_path.iterdir()) == ["g.json", "g.png"]

    @pytest.mark.parametrize(
        "arguments, said",
        [
            (["--max-length", "5000", "--method", "profile"], "up to 5000 tokens; the model was"),
            (["--max-length", "4096", "--min-length", "4096"], "model was trained for 4096"),
            (["--method", "replay", "--recent", "90"], "farther than --recent, 90"),
        ],
    )
    def test_wrong_input_is_one_line(self, capsys, tmp_path, arguments, said):
        out = tmp_path / "g.json"
        with pytest.raises(SystemExit) as ended:
            main([*self.SMALL, "--min-length", "150", "--out", str(out), *arguments])
        err = capsys.readouterr().err
        assert ended.value.code == 2 and said in err.splitlines()[-1] and not out.exists()
