# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Gates and scores from files: official ones as they are, ours, and ones that must be refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv import DuoAttention, Geometry, HeadKV, InputError
from jaxkv.cache.bytes import kept_tokens
from jaxkv.models.plan import plan
from jaxkv.policies.head_scores import (
    GATES,
    SCORES,
    full_heads,
    head_scores,
    save_pattern,
    sparsify,
)

DATA = Path(__file__).parent / "data"
LLAMA_3 = Geometry(32, 32, 8, 128, 1, 64)
# Full heads of each layer at sparsity 0.5, from the gates of the paper's Llama-3.1-8B-Instruct.
LLAMA_3_1_COUNTS = [
    2, 3, 4, 1, 4, 2, 2, 6, 4, 6, 5, 5, 2, 8, 4, 5, 4, 6, 3, 4, 5, 2, 4, 5, 3, 3, 3, 4, 5, 5, 8, 1,
]  # fmt: skip
TOY = toys.geometry()


def official_gates(folder: Path, gates) -> str:
    """DuoAttention's folder."""
    folder.mkdir(exist_ok=True)
    np.savetxt(folder / "full_attention_heads.tsv", np.asarray(gates), delimiter="\t")
    (folder / "config.json").write_text('{"sink_size": 128, "recent_size": 256}')
    return str(folder)


def released() -> np.ndarray:
    """Gates of the paper's Llama-3.1-8B-Instruct, [32, 8]."""
    return np.loadtxt(DATA / "llama_3_1_8b" / "full_attention_heads.tsv", delimiter="\t")


def test_head_counts_of_the_released_gates(tmp_path) -> None:
    heads = full_heads(official_gates(tmp_path / "llama", released()), 0.5, LLAMA_3)
    assert [len(layer) for layer in heads] == LLAMA_3_1_COUNTS


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_exactly_the_asked_share_streams(sparsity) -> None:
    """Also at 0.75, where a hundred gates tie at 1 for 64 places; always the same ones."""
    mask = sparsify(released(), sparsity)
    assert (~mask).sum() == round(256 * sparsity)
    gates = np.clip(released(), 0, 1)
    if 0 < sparsity < 1:
        assert gates[mask].min() >= gates[~mask].max()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.2, -0.1]), min_size=6, max_size=6), st.floats(0, 1)
)
def test_of_equal_gates_the_deeper_head_streams_first(values, sparsity) -> None:
    gates = np.asarray(values).reshape(3, 2)
    mask, flat = sparsify(gates, sparsity).reshape(-1), np.clip(gates, 0, 1).reshape(-1)
    for first in range(6):
        for later in range(first + 1, 6):
            assert not (flat[first] == flat[later] and mask[later] and not mask[first])


def test_half_the_heads_need_half_the_memory() -> None:
    """At 1,048,576 tokens, from shapes alone: nothing is allocated, and nothing is a mask."""
    geometry = Geometry(32, 32, 8, 128, 1, 2**20, "bfloat16")
    policy = DuoAttention(str(DATA / "llama_3_1_8b"), 0.5, sinks=64, recent=256)
    full = 32 * 8 * 2**20 * geometry.bytes_per_token()
    streaming = 128 * 320 * geometry.bytes_per_token()
    assert abs(plan(policy, geometry).physical_bytes / (0.5 * full + streaming) - 1) < 0.01


def test_scores_are_means_by_name_and_sum_to_one(tmp_path) -> None:
    rng = np.random.default_rng(0)
    examples = rng.random((2, 4, 5))
    named = {f"{i}-{j}": list(examples[i, j]) for i in (1, 0) for j in (3, 1, 0, 2)}
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(named))
    mean = examples.mean(axis=-1)
    np.testing.assert_allclose(head_scores(str(path), TOY), mean / mean.sum())


def test_what_is_saved_is_read(tmp_path) -> None:
    gates = np.array([[0.25, 1.0], [0.5, 0.75]])
    save_pattern(tmp_path / "gates.json", GATES, gates, "model-a", {"seed": 1})
    geometry = dataclasses.replace(TOY, model="model-a")
    assert full_heads(str(tmp_path / "gates.json"), 0.5, geometry) == ((1,), (1,))
    scores = np.arange(8.0).reshape(2, 4)
    save_pattern(tmp_path / "scores.json", SCORES, scores, "model-a", {})
    np.testing.assert_allclose(
        head_scores(str(tmp_path / "scores.json"), geometry), scores / 28, atol=1e-9
    )


def test_a_stored_mask_is_used_at_its_sparsity(tmp_path) -> None:
    path, mask = tmp_path / "gates.json", [[True, False], [False, True]]
    about = {"sparsity": 0.5, "full_heads": mask}
    save_pattern(path, GATES, np.array([[0.0, 1.0], [1.0, 0.0]]), "", about)
    assert full_heads(str(path), 0.5, TOY) == ((0,), (1,))
    assert full_heads(str(path), 0.25, TOY) == ((1,), (0, 1)) or full_heads(
        str(path), 0.25, TOY
    ) == ((0, 1), (0,))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


GOOD = json.dumps({"format": "jaxkv.duo", "gates": [[0.1, 0.2], [0.3, 0.4]]})
BAD_GATES = {
    "missing": (lambda p: str(p / "no.json"), "is missing"),
    "an empty folder": (lambda p: str(p), "cannot be read"),
    "truncated": (lambda p: write(p / "a", GOOD[:-9]), "is not JSON"),
    "not an object": (lambda p: write(p / "a", "[1]"), "must hold a JSON object"),
    "deep": (lambda p: write(p / "a", "[" * 100_000), "is not JSON"),
    "binary": (
        lambda p: (p / "a").write_bytes(b"\xff\xfe\x00") and str(p / "a"),
        "is not UTF-8 text",
    ),
    "NaN": (lambda p: write(p / "a", GOOD.replace("0.3", "NaN")), "not a finite number"),
    "a text": (lambda p: write(p / "a", GOOD.replace("0.3", '"x"')), "not a finite number"),
    "a layer missing": (
        lambda p: write(p / "a", GOOD.replace(", [0.3, 0.4]", "")),
        "for 1 layers of .* the model has 2 layers of 2",
    ),
    "ragged": (lambda p: write(p / "a", GOOD.replace(", 0.4", "")), "the model has 2 layers of 2"),
    "no gates": (lambda p: write(p / "a", '{"format": "jaxkv.duo"}'), "holds no gates"),
    "scores": (lambda p: write(p / "a", '{"0-0": [1.0]}'), "not a file of gates"),
    "another model": (
        lambda p: write(p / "a", GOOD.replace('"gates"', '"model": "other", "gates"')),
        "made for a model of 'other'",
    ),
    "a mask of text": (
        lambda p: write(p / "a", GOOD[:-1] + ', "sparsity": 0.5, "full_heads": [["a"]]}'),
        "must hold true or false",
    ),
    "a damaged table": (
        lambda p: write(p / "full_attention_heads.tsv", "0.1\t0.\n0.3\tx") and str(p),
        "is damaged",
    ),
    "a table of another model": (
        lambda p: official_gates(p / "f", np.ones((32, 8))),
        "is for 32 layers of",
    ),
}


@pytest.mark.parametrize("name", BAD_GATES)
def test_bad_gates_are_one_line(name, tmp_path) -> None:
    make, says = BAD_GATES[name]
    geometry = dataclasses.replace(TOY, model="this one")
    with pytest.raises(InputError, match=says) as error:
        DuoAttention(make(tmp_path)).at(0, geometry)
    assert "\n" not in str(error.value)


BAD_SCORES = {
    "truncated": ('{"0-0": [1.0', "is not JSON"),
    "of another model": (json.dumps({f"0-{i}": [1.0] for i in range(32)}), "scores of 32 heads"),
    "a head missing": (
        json.dumps({f"{i}-{j}": [1.0] for i in (0, 2) for j in range(4)}),
        "no numbers for 1-0",
    ),
    "no examples": (
        json.dumps({f"{i}-{j}": [] for i in range(2) for j in range(4)}),
        "no numbers for 0-0",
    ),
    "NaN": (
        json.dumps({f"{i}-{j}": [float("nan")] for i in range(2) for j in range(4)}),
        "no numbers for 0-0",
    ),
    "all zero": (
        json.dumps({f"{i}-{j}": [0.0] for i in range(2) for j in range(4)}),
        "none above it",
    ),
    "below zero": (
        json.dumps({"format": "jaxkv.headkv", "scores": [[1, 1, 1, -1], [1, 1, 1, 1]]}),
        "scores below 0",
    ),
}


@pytest.mark.parametrize("name", BAD_SCORES)
def test_bad_scores_are_one_line(name, tmp_path) -> None:
    content, says = BAD_SCORES[name]
    with pytest.raises(InputError, match=says):
        HeadKV(scores=write(tmp_path / "scores.json", content)).at(0, TOY)


def test_a_model_with_nothing_shipped_says_what_to_do() -> None:
    geometry = dataclasses.replace(TOY, model="nobody's")
    with pytest.raises(InputError, match="calibrate duo"):
        DuoAttention().at(0, geometry)
    with pytest.raises(InputError, match="calibrate headkv"):
        HeadKV().at(0, geometry)


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_sparsity_is_a_share(sparsity) -> None:
    with pytest.raises(InputError, match="it must be from 0 to 1"):
        DuoAttention(sparsity=sparsity)


def test_kept_tokens_are_told_in_the_models_order() -> None:
    policy = DuoAttention(str(DATA / "toy_gates.json"), 0.5, 1, 3)
    layers = plan(policy, TOY).init().layers
    assert kept_tokens(layers) == [[0, 0], [0, 0]]


def test_what_is_shipped_fits_the_default_model() -> None:
    name = "layers30-heads9-kv3-dim64-width576-mlp1536-vocab49152"
    geometry = Geometry(30, 9, 3, 64, 1, 1024, model=name)
    heads = full_heads(None, 0.5, geometry)
    assert sum(map(len, heads)) == 45
    # Both methods look for what retrieves: their heads are not strangers.
    scores = head_scores(None, geometry).reshape(30, 3, 3).sum(axis=-1)
    full = np.array([[head in layer for head in range(3)] for layer in heads])
    assert scores[full].mean() > 1.5 * scores[~full].mean()


@pytest.mark.real_model
def test_the_default_model_is_what_they_are_for(smollm2) -> None:
    assert smollm2.config.identity == "layers30-heads9-kv3-dim64-width576-mlp1536-vocab49152"
