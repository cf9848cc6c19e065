# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Against logits and tokens that transformers gave once: needs no torch."""

from __future__ import annotations

from pathlib import Path

import family_models
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from ours import greedy_tokens, logits_of

from jaxkv.checkpoints import hf
from jaxkv.generate.prompts import prompt_ids

# Of each way to tell positions; the others' tokens are compared where torch is.
GREEDY = ("phi3-long", "gemma3", "falcon-alibi")


@pytest.fixture(scope="module")
def golden():
    with np.load(reference.GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("scaling", reference.SCALINGS)
def test_tiny_logits(golden, tmp_path: Path, scaling: str) -> None:
    model = hf.load(reference.write_tiny(tmp_path, scaling))
    got = logits_of(model, jnp.asarray(reference.tiny_tokens(), jnp.int32))[:, ::9]
    np.testing.assert_allclose(got, golden[f"tiny-{scaling}"], atol=1e-4)


@pytest.mark.parametrize("family", reference.FAMILIES)
def test_family_logits(golden, tmp_path: Path, family: str) -> None:
    model = hf.load(reference.write_tiny(tmp_path, "plain", family=family))
    got = logits_of(model, jnp.asarray(reference.tiny_tokens(), jnp.int32))[:, ::9]
    np.testing.assert_allclose(got, golden[f"tiny-{family}"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", family_models.FAMILIES)
def test_families_written_by_us(golden, tmp_path: Path, name: str) -> None:
    model = hf.load(family_models.write_family(tmp_path, name))
    tokens = reference.tiny_tokens()
    got = logits_of(model, jnp.asarray(tokens, jnp.int32))[:, ::25]
    np.testing.assert_allclose(got, golden[f"family-{name}"], atol=1e-4)
    if name in GREEDY:
        (greedy,) = greedy_tokens(model, [tokens[0, :40].tolist()], 32)
        assert greedy == golden[f"family-{name}-greedy"].tolist()


@pytest.mark.slow
@pytest.mark.real_model
def test_smollm2_logits(golden, smollm2) -> None:
    """Of the beginnings: whole texts are compared where torch is."""
    length = 256
    positions = reference.POSITIONS[reference.POSITIONS < length]
    for i, ids in enumerate(reference.texts(smollm2.tokenizer.encode)[:3]):
        got = logits_of(smollm2, jnp.asarray([ids[:length]], jnp.int32))[0]
        got = got[np.ix_(positions, reference.COLUMNS)]
        expected = golden[f"smollm2-logits-{i}"][: len(positions)]
        np.testing.assert_allclose(got, expected, atol=2e-3)


@pytest.mark.slow
@pytest.mark.real_model
def test_smollm2_greedy_tokens(golden, smollm2) -> None:
    rows = [prompt_ids(smollm2, prompt) for prompt in reference.PROMPTS]
    for i, got in enumerate(greedy_tokens(smollm2, rows, 64)):
        assert got == golden[f"smollm2-greedy-{i}"].tolist(), reference.PROMPTS[i]
