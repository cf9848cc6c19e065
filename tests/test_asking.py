# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Models of one's own parameters and without a tokenizer, asked by token ids and conversations."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from jaxkv import InputError, Model, StreamingLLM, generate, load, parameter_shapes
from jaxkv.checkpoints import orbax, toy
from jaxkv.checkpoints.export import export_hf
from jaxkv.convert.__main__ import convert
from jaxkv.decode.__main__ import main
from jaxkv.models.weights import Multiples

RING = StreamingLLM(2, 7)
FEW = {"policy": RING, "max_new_tokens": 4}
CONFIG = dataclasses.replace(toys.CONFIG, vocab_size=512, num_layers=2)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.from_params(CONFIG, toys.params(CONFIG), toy.tokenizer())


@pytest.fixture
def mute(tmp_path: Path) -> Path:
    """A Hugging Face folder without a tokenizer."""
    folder = checkpoints.write_hf(tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    return folder


# Parameters.


def test_parameters_become_a_model(model) -> None:
    params = toys.params(CONFIG)
    given = {**params, "layers": [dict(layer) for layer in params["layers"]]}
    numpy = jax.tree.map(np.array, given)
    made = Model.from_params(CONFIG, numpy, model.tokenizer)
    assert jax.tree.structure(made.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, made.params, params)
    assert made.fingerprint == model.fingerprint
    assert generate(made, "hello", **FEW).token_ids == generate(model, "hello", **FEW).token_ids
    kept = np.asarray(made.params["embed"]).copy()
    numpy["embed"][:] = 0  # whoever gave it may go on with it
    np.testing.assert_array_equal(made.params["embed"], kept)
    given["layers"][1]["wo"] = given["layers"][1]["wo"].at[3, 4].add(1)
    assert Model.from_params(CONFIG, given).fingerprint != model.fingerprint


def test_shapes_are_told_and_make_a_model() -> None:
    shapes = parameter_shapes(CONFIG)

    def ones(level) -> dict:
        return {name: jnp.ones(shape, jnp.bfloat16) for name, shape in level.items()}

    layers = [ones(layer) for layer in shapes.pop("layers")]
    made = Model.from_params(CONFIG, {**ones(shapes), "layers": layers})
    assert str(made.params["embed"].dtype) == "bfloat16"


def _set(path: str, value):
    """Changes one parameter of a tree; None takes it away."""

    def change(params: dict) -> None:
        where, _, name = path.rpartition(".")
        place = params["layers"][int(where.split(".")[1])] if where else params
        if value is None:
            del place[name]
        else:
            place[name] = value(place[name]) if callable(value) else value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_set("embed", None), r"'embed' is missing; this configuration needs \(512, 32\)"),
        (_set("layers.1.wo", None), r"'layers.1.wo' is missing; .* needs \(32, 32\)"),
        (_set("layers.0.wqkv", lambda x: x.T), r"'layers.0.wqkv' has shape .64, 32.; .* .32, 64."),
        (_set("final_norm", lambda x: x[None]), r"'final_norm' has shape .1, 32.; .* .32,."),
        (_set("lm_head", np.ones((512, 32), "f4")), r"'lm_head' with shape .512, 32. is not one"),
        (_set("layers.1.extra", np.ones(3, "f4")), r"'layers.1.extra' with shape .3,. is not one"),
        (lambda p: p["layers"].append(p["layers"][0]), r"'layers.2.attn_norm' with .* 2 layers"),
        (lambda p: p["layers"].pop(), r"'layers.1.attn_norm' is missing"),
        (_set("embed", lambda x: x.astype(jnp.float16)), "'embed' is float16; .* float32 or bfloa"),
        (_set("layers.1.wo", lambda x: x.astype(jnp.bfloat16)), "'layers.1.wo' is bfloat16; .* fl"),
        (_set("layers.0.wo", [[1.0]]), "'layers.0.wo' is a list; it must be an array of shape"),
        (lambda p: p.pop("layers"), "layers is a sequence of mappings"),
    ],
)  # fmt: skip
def test_the_first_wrong_parameter_is_named(change, told: str) -> None:
    params = toys.params(CONFIG)
    params = {**params, "layers": [dict(layer) for layer in params["layers"]]}
    change(params)
    with pytest.raises(InputError, match=told) as caught:
        Model.from_params(CONFIG, params)
    assert "\n" not in str(caught.value)


def test_rounded_parameters_are_looked_through_too() -> None:
    small = load("tiny-random", weights="int8")
    plain = load("tiny-random")
    made = Model.from_params(small.config, small.params, small.tokenizer)
    assert generate(made, "hello", **FEW).token_ids == generate(small, "hello", **FEW).token_ids
    params = {**small.params, "layers": [dict(layer) for layer in small.params["layers"]]}
    held = params["layers"][0]["wo"]
    for wrong, told in (
        (plain.params["layers"][0]["wo"], "'layers.0.wo' is float32 and 'layers.0.wqkv' is int8"),
        (Multiples(held.values, held.scale[:, :3]), r"shape .* and scales \(1, 3\)"),
        (Multiples(held.values.T[:5], held.scale), "has shape .* this configuration needs"),
        (Multiples(held.values, held.scale.astype(jnp.float16)), "scales .* must be float32"),
        (Multiples(held.values.astype(jnp.int4), held.scale), "is int4; all linear maps"),
    ):
        params["layers"][0]["wo"] = wrong
        with pytest.raises(InputError, match=told):
            Model.from_params(small.config, params)


# Token ids.


def test_ids_are_what_the_text_would_be(model) -> None:
    texts = ["The quick brown fox", "jumps"]
    ids = [model.tokenizer.encode(text) for text in texts]
    expected = generate(model, texts, chat=False, **FEW)
    for given in (
        ids,
        tuple(map(tuple, ids)),
        [np.asarray(row) for row in ids],
        [ids[0], texts[1]],
    ):
        found = generate(model, given, **({**FEW, "chat": None}))
        if isinstance(given[1], str):  # which is in the chat template
            assert found.token_ids[0] == expected.token_ids[0]
            continue
        assert found.token_ids == expected.token_ids and found.texts == expected.texts
        assert found.prompt_tokens == [len(row) for row in ids]
    for one in (ids[0], np.asarray(ids[0]), jnp.asarray(ids[0]), np.asarray(ids[:1])):
        assert generate(model, one, **FEW).token_ids == expected.token_ids[:1]


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ([[1, 512]], "prompt 0's id is 512.*; this model has ids from 0 to 511"),
        ([[1], [2, -1]], "prompt 1's id is -1; this model has ids"),
        ([[True, False]], "prompt 0's id is True; it must be a whole number"),
        ([True], "prompt 0's id is True"),
        ([1, 2.0], "prompt 0's id is 2.0; it must be a whole number"),
        (np.asarray([1.0]), "prompt 0's id is 1.0"),
        (np.asarray([True]), "prompt 0's id is True"),
        ([["a", "b"]], "prompt 0's id is 'a'"),
        ([[1], []], "prompt 1's ids are none"),
        ([[[1]]], r"prompt 0's id is \[1\]"),
        ([], "there is no prompt"),
        ([1, None], "prompt 0's id is None"),
    ],
)
def test_ids_that_are_none_are_refused(model, prompts, told: str) -> None:
    from jaxkv.generate.prompts import batch_ids

    unchecked = getattr(batch_ids, "__wrapped__", batch_ids)  # whatever its annotations allow
    with pytest.raises(InputError, match=told) as caught:
        unchecked(model, prompts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", [{"chat": True}, {"system": "x"}, {"answer_prefix": "x"}])
def test_ids_are_taken_as_they_are(model, how) -> None:
    with pytest.raises(InputError, match="token ids are taken as they are"):
        generate(model, [[1, 2]], **how)


# Conversations.

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
LONGER = [*TALK, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Why?"}]


def test_several_conversations_are_a_batch(model) -> None:
    both = generate(model, messages=[TALK, LONGER], **FEW)
    alone = [generate(model, messages=talk, **FEW).token_ids[0] for talk in (TALK, LONGER)]
    assert both.token_ids == alone and both.prompt_tokens[0] < both.prompt_tokens[1]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"role": "usr", "content": "x"}], "role 'usr'; it must be one of system, .*, user"),
        ([{"role": "user", "text": "x"}], "must have a role and a content, both texts"),
        ([{"role": "user", "content": ["x"]}], "must have a role and a content, both texts"),
        ([[*TALK], [{"role": "User", "content": "x"}]], "role 'User'"),
        ([[]], "there is no message"),
    ],
)
def test_what_is_no_message_is_refused(model, messages, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        generate(model, messages=messages)
    assert "\n" not in str(caught.value)


# Without a tokenizer, and with another's.


def test_a_folder_without_a_tokenizer_takes_ids_and_gives_ids(mute: Path) -> None:
    model, spoken = load(mute), load(mute, tokenizer="tiny-random")
    assert model.tokenizer.missing and not spoken.tokenizer.missing
    assert model.tokenizer.eos_ids == spoken.tokenizer.eos_ids  # of generation_config.json
    assert repr(model).startswith("<Model ")
    ids = [[1, 2, 3], [4, 5]]
    mutely, aloud = generate(model, ids, **FEW), generate(spoken, ids, **FEW)
    assert mutely.token_ids == aloud.token_ids and mutely.texts == ["", ""]
    assert any(aloud.texts)
    with pytest.raises(InputError, match="ids from 0 to"):
        generate(model, [[10**6]])
    for how in (
        {"prompts": "hello"}, {"messages": TALK}, {"prompts": [[1]], "stop": ["x"]},
        {"prompts": "hello", "chat": True},
    ):  # fmt: skip
        with pytest.raises(InputError, match="neither tokenizer.json nor tokenizer.model; give to"):
            generate(model, **how)
    for call in (
        lambda t: t.encode("a"), lambda t: t.decode([1]), lambda t: t.vocab_size,
        lambda t: t.stream(), lambda t: t.render(TALK),
    ):  # fmt: skip
        with pytest.raises(InputError, match="give token ids"):
            call(model.tokenizer)
    copy.copy(model.tokenizer)


def test_a_command_says_so_in_one_line(mute: Path, capsys) -> None:
    words = ["--model", str(mute), "--max-new-tokens", "2", "--policy.window", "20"]
    for more in (["--prompt", "hi"], ["--interactive"]):
        with pytest.raises(SystemExit) as end:
            main([*words, *more])
        err = capsys.readouterr().err
        assert end.value.code == 2 and err.count("\n") == 1
        assert "neither tokenizer.json nor tokenizer.model" in err and "--tokenizer" in err
    main([*words, "--tokenizer", "tiny-random", "--prompt", "hi", "--json"])
    assert json.loads(capsys.readouterr().out)["new_tokens"] == 2
    with pytest.raises(SystemExit):
        main([*words, "--tokenizer", "no-such", "--prompt", "hi"])
    assert "--tokenizer 'no-such' cannot be used" in capsys.readouterr().err


def test_it_is_saved_and_exported_without(mute: Path, tmp_path: Path) -> None:
    model = load(mute)
    orbax.save(tmp_path / "ours", model)
    export_hf(tmp_path / "theirs", model)
    for name in ("ours", "theirs"):
        again = load(tmp_path / name)
        assert again.tokenizer.missing and again.tokenizer.eos_ids == model.tokenizer.eos_ids
    convert(str(mute), str(tmp_path / "spoken"), tokenizer="tiny-random")
    assert load(tmp_path / "spoken").tokenizer.encode("hi") == toy.tokenizer().encode("hi")


def test_a_tokenizer_of_every_kind_of_model(mute: Path, tmp_path: Path) -> None:
    folder = checkpoints.write_hf(tmp_path / "hf")
    orbax.save(tmp_path / "ours", load(folder))
    expected = toy.tokenizer().encode("hello there")
    file = checkpoints.write_gguf(tmp_path / "m.gguf")
    for given in (folder, tmp_path / "ours", file, "tiny-random", load(folder).tokenizer):
        assert load(mute, tokenizer=given).tokenizer.encode("hello there") == expected
    assert load("tiny-random", tokenizer=folder).tokenizer.encode("hello there") == expected
    assert load("tiny-random", tokenizer=file).fingerprint == load("tiny-random").fingerprint
    for wrong, told in (
        (mute, "tokenizer .*mute' cannot be used: .* neither tokenizer.json"),
        ("no/such/place", "tokenizer 'no/such/place' cannot be used"),
        ("nonsense", "tokenizer 'nonsense' cannot be used: unknown model"),
    ):
        with pytest.raises(InputError, match=told):
            load(mute, tokenizer=wrong)


def test_a_tokenizer_that_ends_with_ids_the_model_lacks_is_refused(model) -> None:
    odd = dataclasses.replace(model.tokenizer, eos_ids=(600,))
    with pytest.raises(InputError, match="eos id is 600"):
        load("tiny-random", tokenizer=odd)
    with pytest.raises(InputError, match="eos id is 600"):
        Model.from_params(CONFIG, toys.params(CONFIG), odd)
