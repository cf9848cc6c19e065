# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Generation: rows that do not know of each other, texts that are exact, programs made once."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import CASES

from jaxkv import (
    Full,
    InputError,
    Model,
    RecycledAttention,
    SlidingRecompute,
    StreamingLLM,
    Window,
    generate,
)
from jaxkv.checkpoints import toy
from jaxkv.generate.api import answer
from jaxkv.generate.loop import compilations, forget_programs
from jaxkv.generate.prompts import prompt_ids
from jaxkv.generate.running import running
from jaxkv.generate.sampling import make_sampler
from jaxkv.generate.session import Session, Settings
from jaxkv.policies.streaming_plus import StreamingLLMPlus
from jaxkv.text.stops import Row
from pallas_kernels import compiler

PROMPTS = ["a", "The quick brown fox jumps over the lazy dog", "some words"]
RING = StreamingLLM(2, 7)


@pytest.fixture(scope="module")
def model() -> Model:
    """One small layer under the tokenizer of `tiny-random`."""
    config = dataclasses.replace(toys.CONFIG, vocab_size=512, num_layers=1)
    return Model(config, toys.params(config), toy.tokenizer(), "toy", "toy")


def drawn(model: Model, prompts, policy=RING, seed: int = 5, **more):
    """A raw sampled generation of 12 tokens."""
    more = {"max_new_tokens": 12, "temperature": 2.0, **more}
    return generate(model, prompts, policy=policy, seed=seed, chat=False, **more)


def ending_with(model: Model, *ids: int) -> Model:
    """The model with other end-of-sequence tokens."""
    return dataclasses.replace(
        model, tokenizer=dataclasses.replace(model.tokenizer, eos_ids=tuple(ids))
    )


@pytest.mark.parametrize("name", ["full", "window", "streaming", "recompute"])
def test_a_ragged_batch_is_each_row_alone(name, model) -> None:
    policy = CASES[name].policy
    together = drawn(model, PROMPTS, policy)
    assert len({*together.texts}) == 3
    for row, prompt in enumerate(PROMPTS):
        alone = drawn(model, prompt, policy, seed=5 + row)
        assert alone.token_ids[0] == together.token_ids[row]
        assert alone.prompt_tokens[0] == together.prompt_tokens[row]


def test_greedy_rows_are_independent_too(model) -> None:
    together = drawn(model, PROMPTS, temperature=0.0)
    for row, prompt in enumerate(PROMPTS):
        assert drawn(model, prompt, temperature=0.0).token_ids[0] == together.token_ids[row]


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_the_size_of_a_chunk_changes_nothing(model, chunk) -> None:
    assert drawn(model, PROMPTS, prefill_chunk=chunk).token_ids == drawn(model, PROMPTS).token_ids


def test_one_program_each_whatever_the_lengths(model) -> None:
    policy = StreamingLLM(2, 8)  # of this test alone
    before = compilations()
    drawn(model, "short", policy, max_new_tokens=1)
    made = {name: count - before[name] for name, count in compilations().items()}
    assert made == {"prefill": 1, "decode": 1}
    compiled = []

    def listen(event: str, seconds: float, **more) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for prompt, count in (("short", 1), ("rather longer than that " * 3, 20)):
            out = drawn(model, prompt, policy, max_new_tokens=count)
            assert out.stats["compilations"] == {"prefill": 0, "decode": 0}
            assert len(out.token_ids[0]) == count
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_a_short_text_after_a_long_one_has_a_narrow_program(model) -> None:
    long, short = list(range(3, 100)), list(range(7, 20))

    def ids_of(chunk: int | None) -> tuple[list[int], dict[str, int], float]:
        settings = Settings(policy=StreamingLLM(2, 10), max_new_tokens=9, prefill_chunk=chunk)
        session = Session.begin(model, settings, 1, len(long))
        for _ in range(2):
            for prompt in (long, short):
                session.feed([prompt])
        made = answer(session, [2 * (len(long) + len(short))])
        return made.token_ids[0], made.stats["compilations"], session.timing.compile_s

    expected, asked_for, _ = ids_of(128)
    assert asked_for == {"prefill": 1, "decode": 1}  # a chunk that was asked for is kept to
    found, by_length, compile_s = ids_of(None)
    assert by_length == {"prefill": 1, "decode": 0}
    assert compile_s > 0
    assert found == expected


def test_a_system_message_and_a_conversation(model) -> None:
    """Both are what the template makes of them."""
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    expected = model.tokenizer.encode(model.tokenizer.render(told), special=True)
    assert prompt_ids(model, "Hi?", system="Be brief.") == expected
    more = {"policy": RING, "max_new_tokens": 4}
    both = (
        generate(model, "Hi?", system="Be brief.", **more),
        generate(model, messages=told, **more),
    )
    assert both[0].token_ids == both[1].token_ids
    assert [x.prompt_tokens for x in both] == [[len(expected)]] * 2
    for wrong, said in (
        ({"messages": []}, "no message"),
        ({"messages": [{"role": "user"}]}, "must have a role and a content"),
        ({"messages": told, "prompts": "Hi"}, "whole conversation"),
        ({"prompts": "Hi", "system": "x", "chat": False}, "only a chat"),
    ):
        with pytest.raises(InputError, match=said):
            generate(model, **wrong)


@pytest.mark.parametrize("wrong", [512, 100_000, -1])
def test_an_id_that_the_model_lacks_is_refused(model, wrong: int) -> None:
    """jax would take another token's row and say nothing."""
    session = Session.begin(model, Settings(policy=RING, max_new_tokens=3), 1, 5)
    with pytest.raises(InputError, match=f"a prompt's id is {wrong}; .* ids from 0 to 511"):
        session.feed([[5, wrong, 7]])
    assert not session.longest


@pytest.mark.parametrize("name", CASES)
def test_a_stream_beyond_what_the_model_was_trained_on_is_told(model, name) -> None:
    """Once, and not where distances stay short."""
    policy = CASES[name].policy
    short = isinstance(policy, Window | StreamingLLM | SlidingRecompute)
    assert running(policy, toys.geometry()).far != short


def test_it_is_told_once(model) -> None:
    small = dataclasses.replace(model, config=dataclasses.replace(model.config, max_positions=20))
    session = Session.begin(small, Settings(max_new_tokens=9, max_length=64), 1, 16)
    session.feed([[5] * 16])
    with pytest.warns(UserWarning, match="25 tokens is longer than the 20 .* full keeps all"):
        answer(session, [16])
    session.feed([[5] * 3])
    drawn(small, "a text that is longer than twenty tokens", RING)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policies", "programs", "full_steps"),
    [
        ([RecycledAttention(9, stride) for stride in (2, 3)], 1, [6, 4]),
        ([RecycledAttention(9, 2, threshold) for threshold in (-1.0, 2.0)], 1, [0, 6]),
        ([StreamingLLMPlus(2, 7, stride) for stride in (2, 3)], 1, [6, 4]),
        ([RecycledAttention(9, 2), RecycledAttention(9, 2, 2.0)], 2, [6, 6]),
        ([RecycledAttention(9, 2), RecycledAttention(10, 2)], 2, [6, 6]),
    ],
)
def test_schedules_share_their_programs(model, policies, programs, full_steps) -> None:
    forget_programs()
    before = compilations()["decode"]
    first, second = (drawn(model, PROMPTS[1], policy, max_new_tokens=13) for policy in policies)
    assert compilations()["decode"] - before == programs
    steps = [made.stats["cache"]["steps"][0]["full"] for made in (first, second)]
    assert [set(layers) for layers in steps] == [{n} for n in full_steps]


def test_a_program_that_failed_to_compile_can_be_asked_for_again(model, monkeypatch) -> None:
    forget_programs()
    expected = drawn(model, PROMPTS[1]).token_ids
    forget_programs()
    with monkeypatch.context() as broken:
        broken.setattr(compiler, "options", lambda: {"no_such_option": True})
        with pytest.raises(Exception, match="no_such_option"):
            drawn(model, PROMPTS[1])
    assert drawn(model, PROMPTS[1]).token_ids == expected


def test_an_end_of_sequence_inside_a_dispatch(model) -> None:
    whole = drawn(model, PROMPTS)
    end = whole.token_ids[1][4]  # the first dispatch is of one token, the next of eight
    assert 1 <= whole.token_ids[1].index(end) < 8
    out = drawn(ending_with(model, end), PROMPTS)
    for row, ids in enumerate(whole.token_ids):
        expected = ids[: ids.index(end) + 1] if end in ids else ids
        assert out.token_ids[row] == expected
        assert out.finish_reasons[row] == ("stop" if end in ids else "length")
        assert int(out.state.cache.layers[0].seen[row]) == out.prompt_tokens[row] + len(expected)


def test_a_stop_string_ends_one_row_and_its_cache(model) -> None:
    """The others go on, and nothing more is taken into the row that ended."""
    whole = drawn(model, PROMPTS)
    stop = whole.texts[0][2:4]
    assert len(stop) == 2 and stop not in whole.texts[1] + whole.texts[2]
    seen = {0: "", 1: "", 2: ""}

    def show(row: int, text: str) -> None:
        seen[row] += text

    out = drawn(model, PROMPTS, stop=[stop, "never there"], on_text=show)
    assert out.texts[0] == whole.texts[0].split(stop)[0]
    assert out.texts[1:] == whole.texts[1:]
    assert out.finish_reasons == ["stop", "length", "length"]
    assert list(seen.values()) == out.texts
    taken = [int(n) for n in out.state.cache.layers[0].seen]
    assert taken == [p + len(i) for p, i in zip(out.prompt_tokens, out.token_ids, strict=True)]
    assert len(out.token_ids[0]) < 12 == len(out.token_ids[1])


def test_a_full_cache_ends_each_row_where_it_is_full(model) -> None:
    """Not all of them where the longest is."""
    prompts = ["abcdefgh", "hi"]
    together = drawn(model, prompts, Full(), max_length=14, max_new_tokens=20)
    assert [len(ids) for ids in together.token_ids] == [14 - p for p in together.prompt_tokens]
    assert together.finish_reasons == ["length", "length"]
    for row, prompt in enumerate(prompts):
        alone = drawn(model, prompt, Full(), seed=5 + row, max_length=14, max_new_tokens=20)
        assert alone.token_ids[0] == together.token_ids[row]


def test_a_session_goes_on_with_further_prompts(model) -> None:
    """Feeding wakes rows; what does not fit is refused before anything is lost."""
    settings = Settings(Full(), make_sampler(2.0), max_new_tokens=3, max_length=24)
    session = Session.begin(model, settings, 2, 5)
    session.feed([[5, 6, 7], [8]])
    first = answer(session, [3, 1])
    assert session.room == 24 - 6
    with pytest.raises(InputError, match="has 20 tokens .* room for 20 and the answer"):
        session.feed([[5], [6] * 20])
    session.end_row(0)
    assert not session.closed.any()
    session.feed([[9, 9], [9] * 19])
    second = answer(session, [2, 19])
    assert [len(ids) for ids in first.token_ids + second.token_ids] == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"max_new_tokens": 0}, "max-new-tokens is 0"),
        ({"prefill_chunk": -1}, "prefill-chunk is -1"),
        ({"kv_dtype": "int3"}, "kv-dtype is 'int3'"),
        ({"stop": [""]}, "stop string is empty"),
        ({"policy": Full(), "max_length": 4}, "holds at most 3"),
    ],
)
def test_impossible_settings_are_refused(model, setting, told) -> None:
    with pytest.raises(InputError, match=told):
        drawn(model, "some prompt", **{"policy": RING, **setting})


def test_no_prompt_and_empty_prompts_are_refused(model) -> None:
    for prompts in ([], "", ["fine", " \n"]):
        with pytest.raises(InputError, match="prompt"):
            drawn(model, prompts)


TOKENIZER = toy.tokenizer()
WORDS = st.text("ab ✓", max_size=12)


@settings(deadline=None, max_examples=60)
@given(WORDS, st.lists(st.text("ab ✓", min_size=1, max_size=3), max_size=2), st.integers(1, 5))
def test_a_row_shows_the_text_up_to_the_first_stop(text: str, stops: list[str], size: int) -> None:
    """Token by token or several at once, with characters and stops that cross their borders."""
    ids = TOKENIZER.encode(text)
    row, shown = Row(TOKENIZER, tuple(stops)), ""
    for begin in range(0, len(ids), size):
        if not row.ended:
            shown += row.feed(ids[begin : begin + size])
    shown += row.finish()
    ends = [text.index(stop) for stop in stops if stop in text]
    assert shown == row.text and row.stopped == bool(ends)
    if len(stops) < 2:
        assert shown == text[: min(ends, default=len(text))]
    else:  # of two that overlap, it depends on the tokens' borders which one is whole first
        assert text.startswith(shown) and (len(shown) in ends or not ends)


def test_a_character_of_several_tokens_is_shown_whole() -> None:
    row = Row(TOKENIZER, ())
    ids = TOKENIZER.encode("✓")
    assert len(ids) == 3
    assert [row.feed([i]) for i in ids] == ["", "", "✓"]


@pytest.fixture(scope="module")
def compiled_steps() -> dict:
    """The decode programs as users get them: tests compile with less optimisation."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    script = Path(__file__).with_name("compiled_step.py")
    environment["PYTHONPATH"] = str(script.parent.parent)
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def arrays(text: str, dims: list[int]) -> set[int]:
    """Sizes of all arrays that have a dimension of a cache's slots."""
    shapes = [list(map(int, shape.split(","))) for shape in re.findall(r"\w+\[([\d,]+)\]", text)]
    return {math.prod(shape) for shape in shapes if set(shape) & set(dims)}


@pytest.mark.slow
def test_a_compiled_step_neither_copies_nor_repeats_the_cache(compiled_steps) -> None:
    assert len(compiled_steps["steps"]) == 15
    for step in compiled_steps["steps"]:
        text, what = step["text"], (step["policy"], step["batch"])
        aliases = dict(re.findall(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)", text))
        for leaf in range(step["leaves"]):
            assert aliases[str(leaf)] == str(step["first"] + leaf), what
        moved = re.findall(r"= \w+\[([\d,]+)\]\S* (?:copy|copy-start|transpose)\(", text)
        sizes = {math.prod(map(int, shape.split(","))) for shape in moved}
        assert sizes, "the pattern no longer fits the text"
        assert max(sizes) < min(step["keys"]), what
        assert not sizes & set(step["weights"]), what
        gathered = re.findall(r"= \w+\[([\d,]+)\]\S* gather\(", text)
        assert all(
            math.prod(map(int, shape.split(","))) < min(step["keys"]) for shape in gathered
        ), what
        # Repeated over the query heads, keys would be twice as many.
        assert max(arrays(text, step["dims"])) == max(step["keys"]), what


def reached(text: str, name: str) -> str:
    """A computation of a compiled program and all that it calls."""
    bodies = dict(re.findall(r"^(?:ENTRY )?%([\w.\-]+) \((.*?)^\}", text, re.MULTILINE | re.DOTALL))
    names, found = [name], set()
    while names:
        name = names.pop()
        if name not in found:
            found.add(name)
            names += [called for called in re.findall(r"%([\w.\-]+)", bodies[name])
                      if called in bodies]  # fmt: skip
    return "\n".join(bodies[name] for name in found)


@pytest.mark.slow
def test_a_partial_step_reads_no_full_cache(compiled_steps) -> None:
    """Its branch has no array with as many slots as the full cache, and a refresh copies within
    its own loop: had XLA moved the copying out, the loop would get copies and no full cache."""
    seen = set()
    for step in compiled_steps["steps"]:
        loops = re.findall(r"= (\(.*?\)) while\(", step["text"])
        if len(step["dims"]) == 2 and "branch_computations" in step["text"]:
            part, everything = (rf"\[\d+,\d+,{slots},\d+\]" for slots in step["dims"])
            loops = [loop for loop in loops if re.search(part, loop)]
            assert len(loops) == step["policy"].startswith("recycled") * 2 + 1
            assert all(re.search(everything, loop) for loop in loops)
        branches = re.findall(r"branch_computations=\{%([\w.\-]+), %([\w.\-]+)\}", step["text"])
        for partial, full in branches:
            part, everything = (rf"\[[\d,]*\b{slots}\b" for slots in step["dims"])
            assert re.search(everything, reached(step["text"], full))
            partial = reached(step["text"], partial)
            assert re.search(part, partial)
            assert not re.search(everything, partial), step["policy"]
            seen.add(step["policy"])
    assert seen == {"recycled", "recycled-dynamic", "streaming-plus"}


@pytest.mark.slow
def test_a_prompt_is_held_in_full_by_one_layer_at_a_time(compiled_steps) -> None:
    """Four times the layers take no more memory beside parameters and caches."""
    few, many = compiled_steps["temporaries"]
    assert many < 1.2 * few


def test_timing_and_stats_are_told(model) -> None:
    stats = drawn(model, PROMPTS).stats
    timing, cache = stats["timing"], stats["cache"]
    assert timing["decode_s"] > 0 and timing["tokens_per_s"] > timing["tokens_per_s_with_compile"]
    assert np.shape(cache["kept_tokens"]) == (3, 1, 2)
    assert cache["kept_tokens"][1] == [[10, 10]]
