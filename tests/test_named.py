# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The shapes that are known by name."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jaxkv import Full, InputError, StreamingLLM, forward, init_cache, load, named_config, nbytes
from jaxkv.checkpoints import named
from jaxkv.checkpoints.table import flat_shapes, tree

FOLDER = Path(__file__).parents[1] / "configs" / "models"
every = pytest.mark.parametrize("name", named.names())


def test_there_are_many_and_of_every_family() -> None:
    configs = [named_config(name) for name in named.names()]
    assert len(configs) >= 30
    assert {config.family for config in configs} == {
        "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt_neox",
        "falcon", "mpt",
    }  # fmt: skip


@every
def test_parameters_are_as_many_as_were_published(name: str) -> None:
    said = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert set(said) == {"hub", "parameters", "config"}
    assert sum(math.prod(s) for s in flat_shapes(named_config(name)).values()) == said["parameters"]


@every
def test_planning_needs_no_weights(name: str) -> None:
    """A cache and a step of every model, as shapes."""
    config = named_config(name)
    policy = Full() if all(config.windows) and config.windows else StreamingLLM(4, 1020)
    cache = jax.eval_shape(lambda: init_cache(config, policy, 1, 4096, "bfloat16"))
    width = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
    assert nbytes(cache) > 500 * width
    arrays = {
        path: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for path, shape in flat_shapes(config).items()
    }
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    logits, after = jax.eval_shape(
        lambda params, token, cache: forward(params, config, policy, token, cache),
        tree(config, arrays), token, cache,
    )  # fmt: skip
    assert logits.shape == (1, 1, config.vocab_size)
    assert jax.tree.structure(after) == jax.tree.structure(cache)


def test_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = yaml.safe_load((FOLDER / "gemma-3-270m.yaml").read_text())
    small["config"] |= {
        "vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "head_dim": 16,
        "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    monkeypatch.setattr(named, "_FOLDERS", (tmp_path,))
    model = load("small-random", dtype="bfloat16")
    assert model.name == "small-random"
    cache = init_cache(model.config, Full(), 1, 16, "bfloat16")
    logits, _ = forward(model.params, model.config, Full(), jnp.ones((1, 8), jnp.int32), cache)
    assert 0.1 < np.std(np.asarray(logits)) < 10


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"no shape called 'gpt-5'; there are falcon-40b"):
        named_config("gpt-5")
    with pytest.raises(InputError, match=r"unknown model 'gpt-5-random'"):
        load("gpt-5-random")
