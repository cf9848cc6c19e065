# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""KVzip: a model repeats its prompt, beside a dense NumPy model that does the same."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from dense_model import DenseModel
from test_global import held_by
from test_global import read as read_toy

import jaxkv
from jaxkv.checkpoints import toy
from jaxkv.core.errors import InputError
from jaxkv.eval.questions.contexts import Contexts
from jaxkv.eval.tasks import nll
from jaxkv.generate.replay import repeat
from jaxkv.generate.session import Session, Settings
from jaxkv.layers.replayed import Replay
from jaxkv.policies.keydiff import KeyDiff
from jaxkv.policies.kvzip import KVzip
from jaxkv.text import repeat as words

LENGTHS = (40, 23)
PART = 12
POLICY = KVzip(16, window=3, sinks=2, decode_room=20, part=PART, allocation="uniform")
run = jax.jit(jaxkv.forward)


@pytest.fixture(scope="module")
def model() -> jaxkv.Model:
    """A toy's tokenizer, and parameters that fit its vocabulary."""
    small = toy.load()
    config = dataclasses.replace(toys.CONFIG, vocab_size=small.config.vocab_size)
    return dataclasses.replace(small, config=config, params=toys.params(config))


def prompts_of(model: jaxkv.Model) -> list[list[int]]:
    """One as a chat begins, and one that begins anywhere."""
    tokens = toys.tokens(2, max(LENGTHS), vocab=model.config.vocab_size)
    first, second = (row[:length].tolist() for row, length in zip(tokens, LENGTHS, strict=True))
    before, _, _ = model.tokenizer.render([{"role": "user", "content": "?"}]).partition("?")
    opening = model.tokenizer.encode(before, special=True)
    assert words.before_text(model.tokenizer, [*opening, *first]) == len(opening) >= 4
    assert words.before_text(model.tokenizer, second) == 0
    return [[*opening, *first][: LENGTHS[0]], second]


def read(model: jaxkv.Model, prompts) -> jaxkv.Cache:
    """A cache that has read the prompts in one call."""
    policy = jaxkv.Full()
    cache = jaxkv.init_cache(model.config, policy, len(prompts), 64)
    tokens = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    lengths = jnp.asarray([len(prompt) for prompt in prompts], jnp.int32)
    return run(model.params, model.config, policy, jnp.asarray(tokens), cache, lengths)[1]


def dense(model: jaxkv.Model, ids) -> list[tuple[np.ndarray, ...]]:
    """Of each layer: q [T, K, G, H], scaled, and k [T, K, H], rotated; v; the normed states."""
    oracle, found = DenseModel(model.params, model.config), []
    x, causal = oracle.params["embed"][np.asarray(ids)], np.tri(len(ids), dtype=bool)
    for layer in oracle.params["layers"]:
        q, k, v = oracle.qkv(x, layer)
        y = oracle.norm(x, layer["attn_norm"])
        found.append((oracle.rotate(q) / np.sqrt(oracle.dim), oracle.rotate(k), v, y))
        x = oracle.rest(x, oracle.attend(x, layer, causal), layer)
    return found


def softmax(scores: np.ndarray, seen: np.ndarray, sink: np.ndarray | None) -> np.ndarray:
    weights = np.exp(np.where(seen, scores, -np.inf))
    more = 0 if sink is None else np.exp(sink).reshape(*scores.shape[:2], 1, 1)
    return weights / (weights.sum(axis=-1, keepdims=True) + more)


def oracle(model: jaxkv.Model, prompt: list[int], how: Replay) -> np.ndarray:
    """The scores [L, K, T] of one prompt, by the formula."""
    config = model.config
    shape = config.num_layers, config.num_kv_heads, len(prompt)
    best = np.zeros(shape)
    prefix = words.before_text(model.tokenizer, prompt)
    best[:, :, :prefix] = np.inf
    for part in words.parts(model.tokenizer, prompt, prefix, how.part):
        whole = dense(model, [*prompt, *part.ids])
        for index, (q, k, v, y) in enumerate(whole):
            mine = range(part.begin, part.begin + part.count)
            first = [p for p in range(min(max(prefix, 4), len(prompt))) if p not in mine]
            again = range(len(prompt), len(prompt) + len(part.ids))
            columns = [*mine, *first, *again]
            asked = np.array(again)
            seen = np.array(columns)[None] <= asked[:, None]
            scores = np.einsum("tkgh,skh->kgts", q[asked], k[columns])
            layer = model.params["layers"][index]
            weights = softmax(scores, seen, layer.get("sink_logits"))[..., : part.count]
            if how.outputs:
                wo = np.asarray(layer["wo"], np.float64)
                wo = wo.reshape(config.num_kv_heads, config.group_size, config.head_dim, -1)
                moved = np.linalg.norm(np.einsum("skh,kghd->kgsd", v[list(mine)], wo), axis=-1)
                states = np.linalg.norm(y[asked], axis=-1)
                weights = weights * moved[:, :, None] / states[:, None]
            found = weights.max(axis=(1, 2))
            at = slice(part.begin, part.begin + part.count)
            best[index, :, at] = np.maximum(best[index, :, at], found)
    return best


@pytest.mark.parametrize(
    ("how", "sink"),
    [(Replay(PART), False), (Replay(PART, outputs=True), True), (Replay(4096), False)],
)
def test_scores_are_the_formula(how, sink, model) -> None:
    """Of ragged rows, of which one has no more parts when the other still has."""
    if sink:
        config = dataclasses.replace(model.config, sink_logits=True)
        model = dataclasses.replace(model, config=config, params=toys.params(config))
    prompts = prompts_of(model)
    cache = read(model, prompts)
    before = [np.array(x) for x in jax.tree.leaves(cache)]
    scores, program = repeat(model, cache, prompts, how)
    assert program is not None
    for row, prompt in enumerate(prompts):
        expected = oracle(model, prompt, how)
        assert np.isinf(expected).any() == (row == 0)
        for mine, theirs in zip(scores, expected, strict=True):
            found = np.asarray(mine)[row, :, : len(prompt)]
            np.testing.assert_allclose(found, theirs, rtol=2e-3, atol=1e-5)
    # The keys of the repetition are thrown away: nothing was written.
    for old, leaf in zip(before, jax.tree.leaves(cache), strict=True):
        np.testing.assert_array_equal(old, leaf)


def test_rows_are_alone(model) -> None:
    prompts = prompts_of(model)
    both, _ = repeat(model, read(model, prompts), prompts, Replay(PART))
    for row, prompt in enumerate(prompts):
        alone, _ = repeat(model, read(model, [prompt]), [prompt], Replay(PART))
        for mine, theirs in zip(both, alone, strict=True):
            found = np.asarray(mine)[row, :, : len(prompt)]
            np.testing.assert_allclose(found, theirs[0][:, : len(prompt)], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("allocation", ["uniform", "ada", "global"])
def test_it_keeps_what_was_looked_at(allocation, model) -> None:
    """Generation reads the prompt, lets it be repeated, and chooses; budgets are exact."""
    prompts = prompts_of(model)
    policy = dataclasses.replace(POLICY, allocation=allocation)
    cache = read(model, prompts)
    small = jaxkv.compress(model, cache, policy, prompts)
    scores, _ = repeat(model, cache, prompts, policy.replay)
    held = held_by(small, row=0)
    chosen = [[{p for p in head if p < LENGTHS[0] - 3} for head in layer] for layer in held]
    counts = [len(head) for layer in chosen for head in layer]
    if allocation == "uniform":
        assert counts == [13] * 4
    assert sum(counts) == 4 * 13 or allocation == "ada"
    for layer, heads in enumerate(chosen):
        for head, tokens in enumerate(heads):
            mine = np.asarray(scores[layer])[0, head, : LENGTHS[0] - 3]
            rest = [mine[p] for p in range(len(mine)) if p not in tokens and p >= 2]
            best = [mine[p] for p in tokens if p >= 2]
            assert not rest or not best or max(rest) <= min(best)


def test_a_question_is_kept_as_decoded_tokens_are(model) -> None:
    """What comes after the choice is in the ring, and what was chosen stays."""
    prompts = prompts_of(model)
    for allocation in ("uniform", "ada", "global"):
        policy = dataclasses.replace(POLICY, allocation=allocation)
        small = jaxkv.compress(model, read(model, prompts), policy, prompts)
        before = [held_by(small, row) for row in (0, 1)]
        tokens = jnp.asarray(toys.tokens(2, 9, seed=4))
        lengths = jnp.asarray([9, 0], jnp.int32)
        logits, after = run(model.params, model.config, policy, tokens, small, lengths)
        assert np.isfinite(logits[0]).all()
        for row, count in enumerate((9, 0)):
            new = set(range(LENGTHS[row], LENGTHS[row] + count))
            for old, now in zip(before[row], held_by(after, row), strict=True):
                assert [head | new for head in old] == now
        # One token at a time gives the same.
        step = small
        for index in range(9):
            token = tokens[:, index : index + 1]
            one, step = run(
                model.params, model.config, policy, token, step, jnp.asarray([1, 0], jnp.int32)
            )
        np.testing.assert_allclose(one[0, 0], logits[0, 8], atol=2e-4)


def test_a_prompt_that_was_not_repeated_is_not_lost_in_silence(model) -> None:
    prompts = prompts_of(model)
    for allocation in ("uniform", "ada", "global"):
        policy = dataclasses.replace(POLICY, allocation=allocation)
        cache = jaxkv.init_cache(model.config, policy, 2, 64)
        tokens = jnp.asarray(toys.tokens(2, 9))
        logits, _ = run(model.params, model.config, policy, tokens, cache)
        assert np.isnan(logits).all()
    with pytest.raises(InputError, match="it was read only once; use jaxkv.generate"):
        jaxkv.compress(model, read(model, prompts), POLICY)
    with pytest.raises(InputError, match=r"have \[39, 23\] tokens, and the cache"):
        jaxkv.compress(model, read(model, prompts), POLICY, [prompts[0][1:], prompts[1]])
    with pytest.raises(InputError, match="part is 0"):
        KVzip(part=0)


def test_the_system_message_is_kept_whatever_it_gets() -> None:
    """All that stands before the user's text, with a template's own message or another."""
    model = toy.load()
    for system in (None, "You answer in one word."):
        messages = [{"role": "user", "content": "What is this?"}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        if model.tokenizer.chat_template is None:
            pytest.skip("the toy has no template")
        ids = model.tokenizer.encode(model.tokenizer.render(messages), special=True)
        at = words.before_text(model.tokenizer, ids)
        assert model.tokenizer.decode(ids[at:], skip_special=False).startswith("What is this?")
        if system:
            assert system in model.tokenizer.decode(ids[:at], skip_special=False)


def test_parts_are_asked_for_in_words(model) -> None:
    tokenizer = model.tokenizer
    prompt = tokenizer.encode("one two three four five six seven eight nine ten")
    first, second, *_ = words.parts(tokenizer, prompt, 2, 10)
    ask = tokenizer.encode("\n\nRepeat the previous context exactly.")
    assert list(first.ids[: len(ask)]) == ask and list(first.ids[-10:]) == prompt[2:12]
    ask = tokenizer.encode("\n\nRepeat the part of the previous context exactly, starting with ")
    ask += prompt[4:12]
    assert list(second.ids[: len(ask)]) == ask
    assert (second.begin, second.count) == (12, min(10, len(prompt) - 12))


def test_generate_reads_twice(model) -> None:
    """`generate` gives what compressing by hand and decoding gives, for both rows."""
    prompts = ["the quick brown fox jumps over the lazy dog", "a b c d e f g h"]
    policy = dataclasses.replace(POLICY, allocation="global")
    found = jaxkv.generate(model, prompts, policy=policy, max_new_tokens=6, chat=False)
    session = Session.begin(model, Settings(policy=policy), 1, 30)
    session.feed([model.tokenizer.encode(prompts[0])])
    with pytest.warns(UserWarning, match="has 24 tokens, and kvzip keeps the last 23 of such"):
        session.feed([list(range(24))])
    full = jaxkv.generate(model, prompts, max_new_tokens=6, chat=False)
    assert found.stats["cache"]["physical_bytes"] < full.stats["cache"]["physical_bytes"] * 2
    roomy = dataclasses.replace(policy, budget=256)
    same = jaxkv.generate(model, prompts, policy=roomy, max_new_tokens=6, chat=False)
    assert same.token_ids == full.token_ids
    alone = [
        jaxkv.generate(model, prompt, policy=policy, max_new_tokens=6, chat=False)
        for prompt in prompts
    ]
    assert [row.token_ids[0] for row in alone] == found.token_ids
    assert functools.reduce(max, map(len, found.token_ids)) <= 6


def test_perplexity_after_compression(model) -> None:
    """Of what follows a prompt; with a budget for all it is that of the full cache."""
    stream = toys.tokens(1, 60, vocab=model.config.vocab_size)[0]
    full = nll.score_decoded(model, jaxkv.Full(), stream, 40, 64)
    roomy = dataclasses.replace(POLICY, budget=64, decode_room=40, allocation="global")
    same = nll.score_decoded(model, roomy, stream, 40, 64)
    np.testing.assert_array_equal(same.positions, full.positions)
    np.testing.assert_allclose(same.nll, full.nll, atol=2e-4)
    small = nll.score_decoded(model, POLICY, stream, 40, 64)
    assert np.isfinite(small.nll).all() and np.abs(small.nll - full.nll).max() > 1e-3


def test_one_reading_serves_policies_that_repeat(model) -> None:
    """What `eval` shares is what each would have kept by itself."""
    prompts = prompts_of(model)
    policies = POLICY, dataclasses.replace(POLICY, budget=24, allocation="global", plus=True)
    contexts = Contexts.of(model, policies)
    assert contexts.serves == policies
    reading = contexts.read("key", Settings(max_length=128), prompts)
    for policy in policies:
        state, _, _ = contexts.choose(reading, policy, seed=0)
        session = Session.begin(model, Settings(policy=policy, max_length=128), 2, 40)
        session.feed(prompts)
        for row in (0, 1):
            assert held_by(state.cache, row) == held_by(session.state.cache, row)


@pytest.mark.parametrize("allocation", ["uniform", "ada"])
def test_a_short_question_changes_no_choice_that_knew_none(allocation) -> None:
    """Of a score that is agnostic; once the room is full, a prompt is chosen from with the rest."""
    policy = KeyDiff(16, window=3, sinks=2, decode_room=6, allocation=allocation)
    _, cache = read_toy(policy)
    before = [held_by(cache, row) for row in (0, 1)]
    tokens = jnp.asarray(toys.tokens(2, 9, seed=4))
    args = toys.params(), toys.CONFIG, policy
    _, after = run(*args, tokens, cache, jnp.asarray([6, 9], jnp.int32))
    new = set(range(48, 54))
    assert [[head | new for head in layer] for layer in before[0]] == held_by(after, 0)
    recent, counts = {35, 36, 37}, []
    for old, layer in zip(before[1], held_by(after, 1), strict=True):
        for was, now in zip(old, layer, strict=True):
            assert recent <= now <= was | set(range(29, 38))
            counts.append(len(now))
    assert max(counts) <= 16 or allocation == "ada"
    _, last = run(*args, tokens[:, :1], after, jnp.asarray([1, 0], jnp.int32))
    assert held_by(last, 1) == held_by(after, 1)
