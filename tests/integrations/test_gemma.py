# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""google-deepmind/gemma's models and its sampler, with its own cache and with ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import packages
import pytest

import jaxkv
from jaxkv.cache.bytes import kept_tokens, nbytes
from jaxkv.core.errors import InputError

if importlib.util.find_spec("gemma") is None:
    pytest.skip("gemma is not installed", allow_module_level=True)
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]

with packages.tensorflow_by_name():
    from gemma.gm.nn import _config, _modules, _transformer
    from gemma.gm.text import _sampler

from jaxkv.integrations.gemma import with_policy  # noqa: E402

VOCABULARY, BATCH, SLOTS = 128, 2, 64
LOCAL, GLOBAL = _modules.AttentionType.LOCAL_SLIDING, _modules.AttentionType.GLOBAL
SIZES = {
    "num_embed": VOCABULARY, "embed_dim": 64, "hidden_dim": 96, "num_heads": 8, "head_dim": 16,
    "num_kv_heads": 2, "use_post_attn_norm": True, "use_post_ffw_norm": True,
    "attention_types": (LOCAL, GLOBAL, LOCAL, GLOBAL), "sliding_window_size": 8,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "gemma2": {
        "final_logit_softcap": 30.0, "attn_logits_soft_cap": 5.0, "use_qk_norm": False,
        "query_pre_attn_norm":
            _config.QueryPreAttentionNormalisation.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS,
    },
    "gemma3": {
        "final_logit_softcap": None, "use_qk_norm": True, "local_base_frequency": 10_000,
        "global_base_frequency": 1_000_000, "global_scale_factor": 8.0,
        "transpose_gating_einsum": True,
    },
    "as many heads": {"final_logit_softcap": None, "num_kv_heads": 8},
}  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(1).integers(3, 100, (BATCH, 40)), jnp.int32)
TEXTS = [
    " ".join(map(str, np.asarray(TOKENS[0, :23]))),
    " ".join(map(str, np.asarray(TOKENS[1, :9]))),
]


@pytest.fixture(autouse=True)
def as_they_promote() -> Iterator[None]:
    """Their code relies on promotions that ours does without."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def model_of(kind: str) -> tuple[Any, Any]:
    """A random model in float32, and its parameters."""
    config = _config.TransformerConfig(**{**SIZES, **KINDS[kind]})
    model = _transformer.Transformer(config=config, dtype=jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    rng = np.random.default_rng(0)

    def drawn(path: Any, x: Any) -> jax.Array:
        # Small embeddings, or every token is followed by itself.
        spread = 0.04 if "embedder" in str(path) else 0.15 if x.ndim > 1 else 0.05
        return jnp.asarray(rng.normal(size=x.shape) * spread, jnp.float32)

    params = jax.tree_util.tree_map_with_path(drawn, shapes)
    return model, params


class Numbers:
    """A tokenizer of numbers, with what the sampler asks of one."""

    VERSION = None
    FORBIDDEN_TOKENS = ()

    class special_tokens:  # noqa: N801
        """Ids that end an answer: none that is ever made."""

        EOS = 127
        END_OF_TURN = 126

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        return [1] * add_bos + [int(word) for word in text.split()]

    def decode(self, ids: Any) -> str:
        return " ".join(str(int(i)) for i in ids)


def sampler_of(model: Any, params: Any, **how: Any) -> Any:
    """Theirs, which is not touched."""
    return _sampler.Sampler(
        model=model, params=params, tokenizer=Numbers(), cache_length=SLOTS, max_out_length=20,
        forbidden_tokens=(0, 126, 127), **{"pad_length": 32, **how},
    )  # fmt: skip


def fed(model: Any, params: Any, prompt: int) -> tuple[np.ndarray, Any]:
    """Logits of a prompt in one call and of what follows, as the sampler feeds it: see below."""
    call = jax.jit(model.apply)
    cache = model.init_cache(batch_size=BATCH, dtype=jnp.float32, cache_length=SLOTS)
    outs = []
    # The prompt's last token comes twice.
    for begin, end in ((0, prompt), *((t, t + 1) for t in range(prompt - 1, TOKENS.shape[1]))):
        at = jnp.broadcast_to(jnp.arange(begin, end, dtype=jnp.int32), (BATCH, end - begin))
        mask = jnp.arange(SLOTS)[None, None] <= at[..., None]
        if begin == prompt - 1:  # theirs writes it into the same slot
            cache = {k: {**v, "end_index": v["end_index"] - 1} for k, v in cache.items()}
        out = call(
            {"params": params}, TOKENS[:, begin:end], cache=cache, positions=at, attention_mask=mask
        )
        outs.append(out.logits)
        cache = out.cache
    return np.concatenate(outs, axis=1), cache


@pytest.mark.parametrize("kind", KINDS)
def test_full_gives_their_logits(kind: str) -> None:
    model, params = model_of(kind)
    expected, _ = fed(model, params, 24)
    got, _ = fed(with_policy(model, jaxkv.Full()), params, 24)
    assert 0.2 < expected.std() < 3
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)
    # Without a cache it is the model.
    ours = with_policy(model, jaxkv.Full()).apply({"params": params}, TOKENS).logits
    np.testing.assert_array_equal(ours, model.apply({"params": params}, TOKENS).logits)


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (jaxkv.StreamingLLM(2, 7), 2 + 7 + 1),
        (jaxkv.SnapKV(10, window=4, decode_room=17), 10 + 17),
        (jaxkv.RecycledAttention(6, 4), 40 + 6 + 1),
    ],
    ids=["streaming", "snapkv", "recycled"],
)
def test_policies_keep_what_they_should(policy: Any, kept: int) -> None:
    model, params = model_of("gemma3")
    expected, theirs = fed(model, params, 24)
    got, cache = fed(with_policy(model, policy), params, 24)
    layers = tuple(cache[f"layer_{i}"]["k"].layer.kept for i in range(4))
    counts = [set(heads) for heads in kept_tokens(layers)]
    assert counts == [{8}, {kept}] * 2  # a window of theirs is past tokens, and the query
    if not isinstance(policy, jaxkv.RecycledAttention):
        assert nbytes(cache) < nbytes(theirs) * 0.6
    assert np.isfinite(got).all() and np.abs(got - expected)[:, 25:].max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "pad_length"), [*((kind, 32) for kind in KINDS), ("gemma3", None)]
)
def test_their_sampler_makes_the_same_tokens(kind: str, pad_length: int | None) -> None:
    """Prompts of two lengths, which it pads on the right."""
    model, params = model_of(kind)
    samples = [
        sampler_of(m, params, pad_length=pad_length).sample(TEXTS, return_state=True)
        for m in (model, with_policy(model, jaxkv.Full()))
    ]
    expected, got = (np.asarray(x.state.predicted_tokens) for x in samples)
    np.testing.assert_array_equal(got, expected)
    assert all(len(set(row)) > 3 for row in got.tolist())
    assert samples[0].text == samples[1].text


@pytest.mark.parametrize(
    "policy", [jaxkv.StreamingLLM(2, 7), jaxkv.SnapKV(8, window=2), jaxkv.RecycledAttention(6, 4)]
)
def test_their_sampler_runs_policies(policy: Any) -> None:
    """A row is what it is alone; and a word by itself, whose prompt is one token."""
    model, params = model_of("gemma3")
    sampler = sampler_of(with_policy(model, policy), params)
    both = sampler.sample(TEXTS)
    assert [sampler.sample(text) for text in TEXTS] == both
    one = sampler_of(with_policy(model, jaxkv.Full()), params, pad_length=None)
    theirs = sampler_of(model, params, pad_length=None)
    assert one.sample("", max_new_tokens=5) == theirs.sample("", max_new_tokens=5)


def test_a_conversation_goes_on() -> None:
    """The state of a turn is where the next begins."""
    model, params = model_of("gemma3")
    sampler = sampler_of(with_policy(model, jaxkv.StreamingLLM(2, 60)), params, pad_length=None)
    first = sampler.sample(TEXTS[1], max_new_tokens=6, return_state=True)
    second = sampler.sample("5 6 7", max_new_tokens=6, last_state=first.state, return_state=True)
    whole = f"{TEXTS[1]} {Numbers().decode(first.tokens[:5])} 5 6 7"
    again = sampler.sample(whole, max_new_tokens=6)
    assert second.text == again


def test_a_token_that_was_left_out_is_no_number() -> None:
    """The prompt's last token comes again; who does not know that is told by a NaN."""
    model, params = model_of("gemma3")
    ours = with_policy(model, jaxkv.Full())
    cache = ours.init_cache(batch_size=BATCH, dtype=jnp.float32, cache_length=SLOTS)
    at = jnp.broadcast_to(jnp.arange(24, dtype=jnp.int32), (BATCH, 24))
    mask = jnp.arange(SLOTS)[None, None] <= at[..., None]
    given = {"params": params}
    out = ours.apply(given, TOKENS[:, :24], cache=cache, positions=at, attention_mask=mask)
    assert np.isfinite(out.logits).all()
    after = ours.apply(
        given, TOKENS[:, 24:25], cache=out.cache, positions=at[:, :1] + 24,
        attention_mask=mask[:, -1:],
    )  # fmt: skip
    assert np.isnan(after.logits).all()


def test_other_models_and_policies_are_refused() -> None:
    model, params = model_of("gemma3")
    with pytest.raises(InputError, match="must be a gm.nn.Transformer"):
        with_policy(params, jaxkv.Full())
    with pytest.raises(InputError, match=r"as in Full\(\)"):
        with_policy(model, jaxkv.Full)
    with pytest.raises(InputError, match="a layer alone has no pool"):
        with_policy(model, jaxkv.SnapKV(8, window=2, allocation="global"))
