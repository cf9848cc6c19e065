# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""tunix' models and its sampler, with its own cache and with ours."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import packages
import pytest
from flax import nnx

import jaxkv
from jaxkv.cache.bytes import kept_tokens, nbytes
from jaxkv.core.errors import InputError

if importlib.util.find_spec("tunix") is None:
    pytest.skip("tunix is not installed", allow_module_level=True)
packages.hollow("tunix")
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]

from jaxkv.integrations.tunix import with_policy  # noqa: E402

VOCABULARY, BATCH, SLOTS = 64, 2, 64
WIDTHS = {
    "embed_dim": 64, "hidden_dim": 96, "num_heads": 8, "head_dim": 16, "num_kv_heads": 2,
}  # fmt: skip
LLAMA = {**WIDTHS, "num_layers": 3, "vocab_size": VOCABULARY, "norm_eps": 1e-5}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("Llama3", {**LLAMA, "rope_theta": 500_000}),
    "qwen2": ("Qwen2", {**LLAMA, "rope_theta": 500_000, "use_tied_embedding": False}),
    "qwen3": ("Qwen3", {**LLAMA, "rope_theta": 500_000, "use_tied_embedding": False}),
    "gemma3": (
        "Gemma3",
        {
            **WIDTHS, "num_layers": 6, "num_embed": VOCABULARY, "sliding_window_size": 8,
            "local_base_frequency": 10_000, "global_base_frequency": 1_000_000,
            "global_scale_factor": 8.0,
        },
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_they_promote() -> Iterator[None]:
    """Their code relies on promotions that ours does without."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def model_of(family: str) -> Any:
    """A random model in float32, whose logits are of the size of 1."""
    module = importlib.import_module(f"tunix.models.{family}.model")
    name, sizes = FAMILIES[family]
    dtypes = {
        key: jnp.float32
        for key in ("dtype", "param_dtype")
        if key in module.ModelConfig.__dataclass_fields__
    }
    model = getattr(module, name)(module.ModelConfig(**sizes, **dtypes), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)

    def drawn(path: Any, x: Any) -> jax.Array:
        one = x.ndim == 1 and "gemma" not in family and "bias" not in str(path)
        spread = rng.normal(size=x.shape) * (0.12 if x.ndim > 1 else 0.05)
        return jnp.asarray(spread + one, jnp.float32)

    state = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree_util.tree_map_with_path(drawn, state))
    return model


def theirs_of(model: Any) -> dict[str, Any]:
    """The cache that the sampler makes."""
    shape = (BATCH, SLOTS, WIDTHS["num_kv_heads"], WIDTHS["head_dim"])
    return {
        f"layer_{i}": {
            "k": jnp.zeros(shape), "v": jnp.zeros(shape),
            "end_index": jnp.zeros((BATCH,), jnp.int32),
        }
        for i in range(model.config.num_layers)
    }  # fmt: skip


def logits_of(model: Any, cache: Any, tokens: jax.Array, prompt: int) -> tuple[np.ndarray, Any]:
    """Of a prompt in one call, and of what follows token by token."""
    call = nnx.jit(lambda model, *given: model(*given)[:2])
    outs = []
    for begin, end in ((0, prompt), *((t, t + 1) for t in range(prompt, tokens.shape[1]))):
        at = jnp.broadcast_to(jnp.arange(begin, end, dtype=jnp.int32), (BATCH, end - begin))
        mask = jnp.arange(SLOTS)[None, None] <= at[..., None]
        out, cache = call(model, tokens[:, begin:end], at, cache, mask)
        outs.append(out)
    return np.concatenate(outs, axis=1), cache


TOKENS = jnp.asarray(np.random.default_rng(1).integers(3, VOCABULARY, (BATCH, 40)), jnp.int32)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_gives_their_logits(family: str) -> None:
    model = model_of(family)
    expected, _ = logits_of(model, theirs_of(model), TOKENS, 24)
    ours = with_policy(model, jaxkv.Full())
    got, _ = logits_of(ours, ours.init_cache(BATCH, SLOTS, jnp.float32), TOKENS, 24)
    assert 0.3 < expected.std() < 3
    np.testing.assert_allclose(got, expected, atol=1e-5)
    # The model itself, and the new one with a cache of theirs or with none, are what they were.
    again, _ = logits_of(ours, theirs_of(model), TOKENS, 24)
    np.testing.assert_array_equal(again, expected)
    assert type(model) is not type(ours) and type(model).__name__ == type(ours).__name__


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (jaxkv.StreamingLLM(2, 7), 2 + 7 + 1),
        (jaxkv.SnapKV(10, window=4, decode_room=16), 10 + 16),
        (jaxkv.RecycledAttention(6, 4), 40 + 6),
    ],
    ids=["streaming", "snapkv", "recycled"],
)
def test_policies_keep_what_they_should(family: str, policy: Any, kept: int) -> None:
    model = model_of(family)
    expected, _ = logits_of(model, theirs_of(model), TOKENS, 24)
    ours = with_policy(model, policy)
    got, cache = logits_of(ours, ours.init_cache(BATCH, SLOTS, jnp.float32), TOKENS, 24)
    layers = [cache[f"layer_{i}"]["kept"] for i in range(model.config.num_layers)]
    counts = [set(heads) for heads in kept_tokens(tuple(x.kept for x in layers))]
    local = [{8}] * 5 if family == "gemma3" else []  # their window: past tokens, and the query
    assert counts == [*local, *[{kept}] * (len(layers) - len(local))]
    if not isinstance(policy, jaxkv.RecycledAttention):
        assert nbytes(cache) < nbytes(theirs_of(model)) * 0.6
    assert np.isfinite(got).all() and np.abs(got - expected)[:, 24:].max() > 1e-3
    if not isinstance(policy, jaxkv.StreamingLLM):
        np.testing.assert_allclose(got[:, :24], expected[:, :24], atol=1e-5)


class Numbers:
    """A tokenizer of numbers."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def pad_id(self) -> int:
        return 0

    def bos_id(self) -> int:
        return 1

    def eos_id(self) -> int:
        return 2


def sampled(model: Any, texts: list[str], **how: Any) -> Any:
    """By their sampler, which is not touched."""
    from tunix.generate import sampler

    cache = {"cache_size": SLOTS, "num_layers": model.config.num_layers}
    sizes = {key: WIDTHS[key] for key in ("num_kv_heads", "head_dim")}
    config = sampler.CacheConfig(**cache, **sizes)
    made = sampler.Sampler(model, Numbers(), config)
    return made(texts, max_generation_steps=20, forbidden_tokens=(0, 1, 2), **how)


TEXTS = [
    " ".join(map(str, np.asarray(TOKENS[0, :23]))),
    " ".join(map(str, np.asarray(TOKENS[1, :9]))),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_their_sampler_makes_the_same_tokens(family: str) -> None:
    """Prompts of two lengths, which it pads on the left."""
    model = model_of(family)
    logits = {"return_logits": hasattr(model, "num_embed")}  # by which it makes room for them
    expected = sampled(model, TEXTS, **logits)
    got = sampled(with_policy(model, jaxkv.Full()), TEXTS, **logits)
    assert [list(x) for x in got.tokens] == [list(x) for x in expected.tokens]
    assert len({*got.tokens[0].tolist()}) > 3
    for mine, their in zip(got.logits, expected.logits, strict=True):
        np.testing.assert_allclose(mine, their, atol=1e-5)


@pytest.mark.parametrize(
    "policy", [jaxkv.StreamingLLM(2, 7), jaxkv.SnapKV(8, window=2), jaxkv.RecycledAttention(6, 4)]
)
def test_their_sampler_runs_policies(policy: Any) -> None:
    """A row is what it is alone, though alone it has other padding."""
    model = with_policy(model_of("llama3"), policy)
    both = sampled(model, TEXTS).tokens
    for index, text in enumerate(TEXTS):
        assert list(sampled(model, [text]).tokens[0]) == list(both[index])


def test_their_beams_are_searched() -> None:
    model = model_of("llama3")
    expected = sampled(model, TEXTS, beam_size=3).tokens
    assert [
        list(x) for x in sampled(with_policy(model, jaxkv.Full()), TEXTS, beam_size=3).tokens
    ] == [list(x) for x in expected]


def test_other_models_and_policies_are_refused() -> None:
    with pytest.raises(InputError, match="the model is a flax.* must be Llama3, Qwen2"):
        with_policy(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), jaxkv.Full())
    with pytest.raises(InputError, match=r"as in Full\(\)"):
        with_policy(model_of("llama3"), jaxkv.Full)
    with pytest.raises(InputError, match="keeps tokens and no keys"):
        with_policy(model_of("llama3"), jaxkv.SlidingRecompute())
