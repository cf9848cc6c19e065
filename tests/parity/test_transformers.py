# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Against transformers on torch, live, on the same weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import family_models
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from ours import greedy_tokens, hidden_states, logits_of

from jaxkv.checkpoints import hf
from jaxkv.checkpoints.export import export_hf
from jaxkv.checkpoints.sources import load
from jaxkv.generate.prompts import prompt_ids

pytest.importorskip("torch", reason="torch is not installed")
hugging_face = pytest.importorskip("hugging_face")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scaling", reference.SCALINGS)
def test_tiny(tmp_path: Path, scaling: str, bias: bool) -> None:
    path = reference.write_tiny(tmp_path, scaling, bias)
    ours, theirs = hf.load(path), hugging_face.folder(path)
    tokens = reference.tiny_tokens()
    got = logits_of(ours, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(got, hugging_face.logits(theirs, tokens), atol=1e-4)
    rows = [row[:40].tolist() for row in tokens]
    for row, generated in zip(rows, greedy_tokens(ours, rows, 32), strict=True):
        assert generated == hugging_face.greedy(theirs, row, 32)


@pytest.mark.parametrize("family", reference.FAMILIES)
def test_families(tmp_path: Path, family: str) -> None:
    path = reference.write_tiny(tmp_path, "plain", family=family)
    ours, theirs = hf.load(path), hugging_face.folder(path)
    tokens = reference.tiny_tokens()
    got = logits_of(ours, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(got, hugging_face.logits(theirs, tokens), atol=1e-4)
    rows = [row[:40].tolist() for row in tokens]
    for row, generated in zip(rows, greedy_tokens(ours, rows, 32), strict=True):
        assert generated == hugging_face.greedy(theirs, row, 32)


@pytest.mark.parametrize("name", family_models.FAMILIES)
def test_families_written_by_us(tmp_path: Path, name: str) -> None:
    path = family_models.write_family(tmp_path / "a", name)
    ours, theirs = hf.load(path), hugging_face.folder(path)
    tokens = reference.tiny_tokens()
    expected = hugging_face.logits(theirs, tokens)
    got = logits_of(ours, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    states = zip(
        hidden_states(ours, jnp.asarray(tokens[:, :64], jnp.int32)),
        hugging_face.hidden_states(theirs, tokens[:, :64]),
        strict=True,
    )
    for index, (mine, their) in enumerate(states):
        np.testing.assert_allclose(mine, their, atol=1e-4, err_msg=f"after layer {index}")
    rows = [row[:40].tolist() for row in tokens]
    for row, generated in zip(rows, greedy_tokens(ours, rows, 32), strict=True):
        assert generated == hugging_face.greedy(theirs, row, 32)
    # The configuration that we write says the same.
    export_hf(tmp_path / "b", ours)
    again = hugging_face.folder(tmp_path / "b")
    np.testing.assert_allclose(hugging_face.logits(again, tokens), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.real_model
def test_gemma3(gemma3_gguf: Path) -> None:
    """On the same file; the text is longer than the window of local layers, 512 tokens."""
    ours, theirs = load(gemma3_gguf), hugging_face.from_gguf(gemma3_gguf)
    bos = list(ours.tokenizer.bos_ids)
    ids = bos + ours.tokenizer.encode(reference.long_text())[:599]
    got = logits_of(ours, jnp.asarray([ids], jnp.int32))[0]
    np.testing.assert_allclose(got, hugging_face.logits(theirs, [ids])[0], atol=5e-3)
    rows = [bos + ours.tokenizer.encode(text) for text in reference.OPENINGS]
    for ids, generated in zip(rows, greedy_tokens(ours, rows, 32), strict=True):
        assert generated == hugging_face.greedy(theirs, ids, 32)


@pytest.fixture(scope="module")
def their_smollm2(smollm2_gguf: Path) -> Any:
    """SmolLM2 in transformers, which takes minutes to read a GGUF."""
    return hugging_face.smollm2(smollm2_gguf)


@pytest.mark.slow
@pytest.mark.real_model
def test_smollm2(smollm2, their_smollm2) -> None:
    rows = reference.texts(smollm2.tokenizer.encode)
    assert len(rows) == 5
    longest = max(map(len, rows))
    for ids in rows:
        padded = ids + [0] * (longest - len(ids))  # one program for all
        got = logits_of(smollm2, jnp.asarray([padded], jnp.int32))[0][: len(ids)]
        np.testing.assert_allclose(got, hugging_face.logits(their_smollm2, [ids])[0], atol=2e-3)
    prompts = [prompt_ids(smollm2, prompt) for prompt in reference.PROMPTS]
    for ids, generated in zip(prompts, greedy_tokens(smollm2, prompts, 64), strict=True):
        assert generated == hugging_face.greedy(their_smollm2, ids, 64)


@pytest.mark.slow
@pytest.mark.real_model
def test_smollm2_in_bfloat16(smollm2_gguf: Path, their_smollm2) -> None:
    """Within the rounding of bfloat16: as near to float32 as transformers' bfloat16 is."""
    ours = load(smollm2_gguf, dtype="bfloat16")
    ids = reference.texts(ours.tokenizer.encode)[0][:200]
    exact = hugging_face.logits(their_smollm2, [ids])
    rounded = hugging_face.logits(copy.deepcopy(their_smollm2).bfloat16(), [ids])
    got = logits_of(ours, jnp.asarray([ids], jnp.int32))
    noise = np.sqrt(np.mean((rounded - exact) ** 2))
    assert np.sqrt(np.mean((got - exact) ** 2)) < 1.5 * noise
