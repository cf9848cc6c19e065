# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Models and streams over a mesh, as users have them: loaded, generated from, kept and refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_mesh
import toys
from jax.sharding import AxisType, Mesh
from test_mesh import place

import jaxkv
from jaxkv.checkpoints import orbax
from jaxkv.checkpoints.model import on_one_device
from jaxkv.cli.decode.once import keep, resume
from jaxkv.cli.decode.options import parse_options
from jaxkv.core.errors import InputError
from jaxkv.core.rope import Rope
from jaxkv.core.shards import DATA, MODEL
from jaxkv.decode.__main__ import main as decode
from jaxkv.generate import room
from jaxkv.generate.session import Session, Settings
from jaxkv.layers.base import Policy
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import forward, init_cache
from jaxkv.models.mesh import Meshed, device_bytes, meshed
from jaxkv.models.weights import is_linear, rounded
from jaxkv.policies.surrogates import save_surrogates

PROMPTS = ["Why is the sky blue?", "Tell me a long story about a prince.", "One"]


@pytest.fixture(scope="module")
def one() -> jaxkv.Model:
    return jaxkv.load("tiny-random")


@pytest.fixture(scope="module")
def four() -> jaxkv.Model:
    return jaxkv.load("tiny-random", mesh=jaxkv.mesh(data=2, model=2))


@pytest.mark.parametrize(
    "policy, layout",
    [
        (jaxkv.Full(), "heads"),
        (jaxkv.TOVA(16), "rows"),
        (jaxkv.make_policy("kvzip", {"budget": 32, "allocation": "uniform"}), "heads"),
        (jaxkv.SlidingRecompute(16), "heads"),
    ],
    ids=["full", "tova", "kvzip", "recompute"],
)
def test_a_batch_that_does_not_divide(
    policy: Policy, layout: str, one: jaxkv.Model, four: jaxkv.Model
) -> None:
    how: dict[str, Any] = {"policy": policy, "max_new_tokens": 20, "temperature": 1.0}
    alone, over = (jaxkv.generate(model, PROMPTS, **how) for model in (one, four))
    assert over.token_ids == alone.token_ids and over.texts == alone.texts
    found = over.stats["cache"]
    assert found["kept_tokens"] == alone.stats["cache"]["kept_tokens"]
    assert found["layout"] == layout and found["mesh"] == {"data": 2, "model": 2}
    assert found["device_bytes"] < 0.6 * found["physical_bytes"]


@pytest.mark.parametrize("layout", ["heads", "rows", "slots"])
def test_what_is_beside_the_parameters(
    layout: str, tmp_path: Path, one: jaxkv.Model, four: jaxkv.Model
) -> None:
    """KVzap's networks lie on all devices; each scores the heads and the rows that it has."""
    draws, c = np.random.default_rng(3), one.config
    networks = tuple(
        {"w": draws.normal(size=(c.hidden_size, c.num_kv_heads)), "b": np.arange(c.num_kv_heads)}
        for _ in range(c.num_layers)
    )
    save_surrogates(tmp_path / "gate.safetensors", networks, "", "by hand")
    fields = {
        "budget": 24,
        "window": 4,
        "gate": str(tmp_path / "gate.safetensors"),
        "allocation": "uniform",
    }
    how: dict[str, Any] = {"policy": jaxkv.make_policy("kvzap", fields), "temperature": 9.0}
    prompts = [text * 3 for text in PROMPTS]
    alone = jaxkv.generate(one, prompts, max_new_tokens=12, **how)
    over = jaxkv.generate(four, prompts, max_new_tokens=12, cache_layout=layout, **how)
    assert over.token_ids == alone.token_ids
    assert over.stats["cache"]["kept_tokens"] == alone.stats["cache"]["kept_tokens"]


def test_a_row_alone_where_only_rows_can_lie(one: jaxkv.Model) -> None:
    """KVzip reads a prompt twice and shares a layer's budget: neither slots nor heads."""
    wide = jaxkv.load("tiny-random", mesh=jaxkv.mesh(model=4))
    policy = jaxkv.make_policy("kvzip", {"budget": 32})
    how: dict[str, Any] = {"policy": policy, "max_new_tokens": 12, "temperature": 9.0}
    alone, over = (jaxkv.generate(model, PROMPTS[1], **how) for model in (one, wide))
    assert over.token_ids == alone.token_ids and len(over.texts) == 1
    assert over.stats["cache"]["layout"] == "rows"


BASE = dataclasses.replace(test_mesh.CONFIG, num_layers=1)
FAMILIES: dict[str, ModelConfig] = {
    "nothing-divides": dataclasses.replace(
        BASE, vocab_size=61, intermediate_size=50, num_heads=6, num_kv_heads=3
    ),
    "biases": dataclasses.replace(
        BASE, qkv_bias=True, out_bias=True, mlp_bias=True, tie_embeddings=False, sink_logits=True
    ),
    "alibi": dataclasses.replace(
        BASE, rope=None, alibi=tuple(2.0**-i for i in range(8)), gated=False, layer_norm=True
    ),
    "norms": dataclasses.replace(
        BASE, qk_norm=True, post_norms=True, unit_offset=True, soft_cap=20.0, final_soft_cap=9.0
    ),
    "parallel": dataclasses.replace(
        BASE, parallel=True, shared_norm=True, layer_norm=True, norm_bias=True, gated=False,
        rope=Rope(4), clip_qkv=2.0,
    ),
    "windows": dataclasses.replace(
        BASE, num_layers=2, windows=(6, 0), local_rope=Rope(8, theta=100.0), embed_scale=3.0
    ),
}  # fmt: skip


def logits_of(config: ModelConfig, params: Any, policy: Policy) -> tuple[np.ndarray, Any]:
    """Of a ragged prompt and of tokens after it, by `forward` in a program of one's own."""
    tokens = toys.tokens(2, 19, vocab=config.vocab_size)
    run = jax.jit(forward, static_argnums=(1, 2))
    cache = init_cache(config, policy, 2, 64)
    out, cache = run(params, config, policy, tokens[:, :16], cache, jnp.asarray([16, 9]))
    outs = [np.where(np.arange(16)[None, :, None] < np.array([16, 9])[:, None, None], out, 0)]
    for index in range(16, 19):
        out, cache = run(params, config, policy, tokens[:, index : index + 1], cache, None)
        outs.append(np.asarray(out))
    return np.concatenate(outs, axis=1), cache


@pytest.mark.parametrize("layout", ["heads", "slots"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, layout: str) -> None:
    config, params = FAMILIES[name], toys.params(FAMILIES[name])
    over = meshed(config, jaxkv.mesh(data=2, model=4))
    assert isinstance(over, Meshed)
    policy = jaxkv.Full()
    if layout == "heads" and name in ("alibi", "nothing-divides"):
        says = "depend on the number of a head" if name == "alibi" else "3 KV heads do not divide"
        with pytest.raises(InputError, match=f"{says}.*slots would work"):
            init_cache(over.with_layout(layout), policy, 2, 64)
        return
    expected, _ = logits_of(config, params, policy)
    found, cache = logits_of(over.with_layout(layout), place(over, params), policy)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert device_bytes(cache) < 0.2 * jaxkv.nbytes(cache)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_rounded_weights_and_caches(form: str) -> None:
    config = dataclasses.replace(BASE, hidden_size=64, intermediate_size=256)
    params = toys.params(config)
    layers = tuple(
        {name: rounded(f"layers.{i}.{name}", x, form) for name, x in layer.items()}
        for i, layer in enumerate(params["layers"])
    )
    params, over = {**params, "layers": layers}, meshed(config, jaxkv.mesh(data=1, model=2))
    assert is_linear("layers.0.wo") and isinstance(over, Meshed)
    tokens, run = toys.tokens(2, 8, vocab=64), jax.jit(forward, static_argnums=(1, 2))
    outs = []
    for one, held in ((config, params), (over, place(over, params))):
        for layout in ("heads", "slots") if isinstance(one, Meshed) else (None,):
            mine = one.with_layout(layout) if isinstance(one, Meshed) else one
            cache = init_cache(mine, jaxkv.Full(), 2, 64, form)
            out, cache = run(held, mine, jaxkv.Full(), tokens, cache, None)
            out, _ = run(held, mine, jaxkv.Full(), tokens[:, :1], cache, None)
            outs.append(np.asarray(out))
    for found in outs[1:]:
        np.testing.assert_allclose(found, outs[0], atol=1e-4, rtol=0)


def test_explicit_axes() -> None:
    """Of arrays whose types say how they lie."""
    devices = np.asarray(jax.devices()[:4]).reshape(2, 2)
    explicit = Mesh(devices, (DATA, MODEL), axis_types=(AxisType.Explicit,) * 2)
    params, over = toys.params(BASE), meshed(BASE, explicit)
    expected, _ = logits_of(BASE, params, jaxkv.Full())
    with jax.set_mesh(explicit):
        found, _ = logits_of(over, place(over, params), jaxkv.Full())
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_tokens_are_dealt_out() -> None:
    """A short context lies on all devices, and not on the first."""
    config = meshed(BASE, jaxkv.mesh(model=4))
    assert isinstance(config, Meshed)
    over, params = config.with_layout("slots"), place(config, toys.params(BASE))
    cache = init_cache(over, jaxkv.Full(), 1, 192)
    run = jax.jit(forward, static_argnums=(1, 2))
    _, cache = run(params, over, jaxkv.Full(), toys.tokens(1, 72, vocab=64), cache, None)
    pos = cache.layers[0].pos
    counts = [int((np.asarray(x.data) >= 0).sum()) for x in pos.addressable_shards]
    assert sum(counts) == 72 and max(counts) - min(counts) <= 16


def test_parameters_come_back(tmp_path: Path, one: jaxkv.Model, four: jaxkv.Model) -> None:
    back = on_one_device(four)
    assert back.config == one.config
    for x, y in zip(jax.tree.leaves(back.params), jax.tree.leaves(one.params), strict=True):
        np.testing.assert_array_equal(x, y)
    orbax.save(tmp_path / "kept", four)
    again = jaxkv.load(tmp_path / "kept", mesh=jaxkv.mesh(data=2, model=2))
    for x, y in zip(jax.tree.leaves(again.params), jax.tree.leaves(four.params), strict=True):
        assert x.sharding == y.sharding
        np.testing.assert_array_equal(x, y)
    whole, each = jaxkv.nbytes(four.params), device_bytes(four.params)
    assert each < 0.51 * whole


@pytest.mark.parametrize("first, then", [("four", "one"), ("one", "four")])
def test_a_kept_cache_goes_on_elsewhere(
    first: str, then: str, tmp_path: Path, one: jaxkv.Model, four: jaxkv.Model
) -> None:
    models = {"one": one, "four": four}
    ids = [one.tokenizer.encode(text) for text in PROMPTS]
    for layout in ("heads", "slots"):
        run = {}
        for name in (first, then):
            settings = Settings(
                policy=jaxkv.Full(), max_new_tokens=8, max_length=128,
                cache_layout=layout if name == "four" else None,
            )  # fmt: skip
            session = Session.begin(models[name], settings, len(ids), 40)
            session.feed([list(row) for row in ids])
            run[name] = [new for new in session.run(8)]
            if name == first:
                keep(str(tmp_path / layout), session)
            run[name] += [new for new in session.run(8)]
        words = [
            "--load-cache",
            str(tmp_path / layout),
            "--policy",
            "full",
            "--max-new-tokens",
            "8",
        ]
        if then == "four":
            words += ["--mesh", "data=2,model=2", "--cache-layout", layout]
        session = resume(parse_options(words), models[then], 0.0)
        new = np.concatenate(list(session.run(8)), axis=1)
        np.testing.assert_array_equal(new, np.concatenate(run[then], axis=1)[:, 8:])


def test_what_cannot_be_is_said(four: jaxkv.Model) -> None:
    wide = jaxkv.load("tiny-random", mesh=jaxkv.mesh(model=4))
    tries = [
        (lambda: jaxkv.mesh(data=3, model=4), "takes 12 devices, and there are 8"),
        (lambda: jaxkv.mesh(data=0), "data of the mesh is 0"),
        (
            lambda: jaxkv.load("tiny-random", mesh=Mesh(np.asarray(jax.devices()[:2]), ("x",))),
            "the mesh has the axes x",
        ),
        (
            lambda: jaxkv.generate(four, "One", policy=jaxkv.TOVA(16), cache_layout="heads"),
            "heads choose together; slots would work",
        ),
        (
            lambda: jaxkv.generate(wide, "One", cache_layout="heads"),
            "2 KV heads do not divide by model=4; slots would work",
        ),
        (lambda: jaxkv.generate(wide, "One", cache_layout="columns"), "it must be heads, rows or"),
        (
            lambda: jaxkv.generate(jaxkv.load("tiny-random"), "One", cache_layout="rows"),
            "the model is on one device; give a mesh too",
        ),
        (
            lambda: jaxkv.generate(wide, "One", max_length=100),
            "by slots, max-length 100 is not a multiple of 32",
        ),
        (
            lambda: jaxkv.init_cache(four.config, jaxkv.Full(), 3, 64),
            "the batch is 3; it must be a multiple of data=2",
        ),
    ]
    for attempt, says in tries:
        with pytest.raises(InputError, match=says) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_room_is_that_of_each_device(monkeypatch: pytest.MonkeyPatch, four: jaxkv.Model) -> None:
    """Of devices that have memories of their own."""
    model, length, rows = room.over_devices(four, jaxkv.Full(), "heads", 2, 4096, fixed=True)
    whole = 2 * 3 * 2 * 4096 * 16 * 2 * 4
    monkeypatch.setattr("jaxkv.core.machine.memory", lambda: whole // 3)
    how: tuple[Any, ...] = model, jaxkv.Full(), rows, length, "float32", 64, 64
    with pytest.raises(InputError, match=r"2 x 4096 tokens would take"):
        room.check_room(*how)
    monkeypatch.setattr(room.jax, "default_backend", lambda: "tpu")
    room.check_room(*how)
    monkeypatch.setattr("jaxkv.core.machine.memory", lambda: whole // 5)
    with pytest.raises(InputError, match="2 x 4096 tokens, on each device, would take"):
        room.check_room(*how)


@pytest.mark.parametrize(
    "words, says",
    [
        (["--mesh", "model=2", "--policy", "tova", "--cache-layout", "heads"], "choose together"),
        (["--mesh", "model=16"], "--mesh: a mesh of data=1, model=16 takes 16 devices"),
        (["--mesh", "model"], "--mesh is 'model'; it must be sizes of data and model"),
        (["--cache-layout", "rows"], "--cache-layout is for a --mesh of several devices"),
        (["--mesh", "model=2", "--cache-layout", "x"], "it must be heads, rows or slots"),
        (["--mesh", "model=2", "--hosts", "here"], "--hosts is 'here'; it must be auto, or"),
        (["--mesh", "model=2", "--hosts", "a:1,2,2"], "--hosts is 'a:1,2,2'"),
    ],
)
def test_flags_that_cannot_be(words: list[str], says: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        decode(["--model", "tiny-random", "--prompt", "One", *words])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and err.count("\n") == 1
    assert says in err and "error: --" in err
