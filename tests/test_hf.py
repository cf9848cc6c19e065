# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: what is read, and what is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import checkpoints
import family_models
import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jaxkv.checkpoints import hf
from jaxkv.checkpoints.families import by_hf_type
from jaxkv.core.errors import InputError
from jaxkv.core.fields import Fields
from jaxkv.core.rope import LinearScaling, Llama3Scaling, LongScaling, Rope, YarnScaling
from jaxkv.models.config import parameter_shapes

FULL = {
    **checkpoints.CONFIG,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": False,
    "head_dim": 8,
}


def config(**changes):
    values = {**checkpoints.CONFIG, **changes}
    fields = Fields({k: v for k, v in values.items() if v != "absent"}, "config.json")
    return by_hf_type(values["model_type"]).hf_config(fields)


@pytest.mark.parametrize("shards", [1, 3])
def test_every_parameter_has_its_place(tmp_path: Path, shards: int) -> None:
    tensors = checkpoints.weights(FULL)
    model = hf.load(checkpoints.write_hf(tmp_path, FULL, tensors, shards))
    shapes = jax.tree.map(lambda x: x.shape, model.params)
    assert shapes == parameter_shapes(model.config)
    layer, ours = "model.layers.1.", model.params["layers"][1]
    x = np.random.default_rng(1).standard_normal(64).astype(np.float32)
    heads = (x @ np.asarray(ours["wqkv"]) + ours["bqkv"]).reshape(2, 4, 8)
    key, value = heads[:, 2].reshape(-1), heads[:, 3].reshape(-1)
    heads = heads[:, :2].reshape(4, 8)  # two query heads to a KV head
    q = tensors[layer + "self_attn.q_proj.weight"] @ x + tensors[layer + "self_attn.q_proj.bias"]
    np.testing.assert_allclose(heads.reshape(-1), q, atol=1e-4)
    for ours_, theirs in ((key, "k"), (value, "v")):
        weight, bias = (tensors[f"{layer}self_attn.{theirs}_proj.{n}"] for n in ("weight", "bias"))
        np.testing.assert_allclose(ours_, weight @ x + bias, atol=1e-4)
    both = np.split(x @ np.asarray(ours["w_gate_up"]) + ours["b_gate_up"], 2)
    for ours_, theirs in zip(both, ("gate", "up"), strict=True):
        weight, bias = (tensors[f"{layer}mlp.{theirs}_proj.{n}"] for n in ("weight", "bias"))
        np.testing.assert_allclose(ours_, weight @ x + bias, atol=1e-4)
    out = heads.reshape(-1) @ np.asarray(ours["wo"]) + ours["bo"]
    o = tensors[layer + "self_attn.o_proj.weight"] @ q + tensors[layer + "self_attn.o_proj.bias"]
    np.testing.assert_allclose(out, o, rtol=1e-4, atol=1e-3)
    down = tensors[layer + "mlp.down_proj.weight"]
    np.testing.assert_array_equal(ours["w_down"], down.T)
    np.testing.assert_array_equal(model.params["lm_head"], tensors["lm_head.weight"])


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_types_are_cast(tmp_path: Path, stored: type, dtype: str) -> None:
    tensors = {k: v.astype(stored) for k, v in checkpoints.weights(checkpoints.CONFIG).items()}
    model = hf.load(checkpoints.write_hf(tmp_path, tensors=tensors), dtype)
    assert {str(x.dtype) for x in jax.tree.leaves(model.params)} == {dtype}
    expected = tensors["model.embed_tokens.weight"].astype(dtype)
    np.testing.assert_array_equal(np.asarray(model.params["embed"]), expected)


def test_rope_is_read_in_both_spellings() -> None:
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    old = config(rope_scaling=llama3, rope_theta=5e5)
    new = config(rope_parameters={**llama3, "rope_theta": 5e5}, rope_theta="absent")
    assert old == new
    assert old.rope.scaling == Llama3Scaling(8.0, 1.0, 4.0, 128)
    assert config(rope_scaling={"type": "linear", "factor": 2}).rope.scaling == LinearScaling(2.0)
    yarn = config(rope_parameters={"rope_type": "yarn", "factor": 4.0, "beta_fast": 16})
    assert yarn.rope.scaling == YarnScaling(4.0, 256, beta_fast=16.0)
    assert config(rope_parameters={"rope_type": "default", "rope_theta": 7.0}).rope.theta == 7.0
    assert config(partial_rotary_factor=0.5).rope.rotary_dim == 8


def test_rope_scaling_takes_the_place_of_rope_parameters() -> None:
    """As in transformers 5, where a file has both."""
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    both = {"rope_parameters": plain, "rope_scaling": yarn, "rope_theta": "absent"}
    assert config(**both) == config(rope_scaling=yarn)
    assert config(**(both | {"rope_scaling": {}})) == config()
    assert config(**(both | {"rope_theta": 10000.0})).rope.scaling == YarnScaling(4.0, 64)
    for outside in ("absent", 20000.0):
        wide = both | {"rope_parameters": plain | {"rope_theta": 5e5}, "rope_theta": outside}
        with pytest.raises(InputError, match="rope_parameters has rope_theta 500000.*rope_scaling"):
            config(**wide)
    wide["rope_scaling"] = yarn | {"rope_theta": 5e5}
    assert config(**wide).rope.theta == 5e5


def test_gemmas_rope_scaling_is_that_of_the_layers_that_see_all() -> None:
    gemma = family_models.TINY | family_models.FAMILIES["gemma3"]
    both = {"full_attention": {"rope_type": "default", "rope_theta": 1e5}, "sliding_attention": {}}
    found = config(**gemma, rope_parameters=both)
    assert found.rope == Rope(24, 1e5, LinearScaling(8.0)) and found.local_rope == Rope(24)
    with pytest.raises(InputError, match="rope_parameters .* full_attention and sliding"):
        config(**gemma, rope_parameters={"rope_theta": 1e6})


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su", "mystery", 3, {"a": 1}])
def test_rope_that_is_not_fixed_is_refused(kind: object) -> None:
    with pytest.raises(InputError, match=r"rope_type|rope_parameters"):
        config(rope_parameters={"rope_type": kind, "factor": 2.0})


@pytest.mark.parametrize("value", [-1, 0, "64", float("nan"), True, 10**12, None, [64], 1.5])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_absurd_fields_are_named(key: str, value: object) -> None:
    with pytest.raises(InputError, match=key):
        config(**{key: value})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_attention_heads": 3}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_kv_heads"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window"),
        (
            {"model_type": "ministral", "sliding_window": 9, "layer_types": ["linear"]},
            "layer_types",
        ),
        ({"model_type": "qwen2", "use_sliding_window": "yes"}, "use_sliding_window"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type is 'dynamic'"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "short_factor"),
        ({"model_type": "gpt_neox", "hidden_act": "relu"}, "hidden_act"),
        ({"model_type": "falcon", "activation": "relu"}, "activation"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "bidirectional"),
        ({"model_type": "mpt", "d_model": 64, "n_heads": 3, "num_attention_heads": 3}, "d_model"),
        ({"model_type": "mixtral"}, "'mixtral'; supported are"),
        ({"max_position_embeddings": "absent"}, "max_position_embeddings"),
    ],
)
def test_fields_that_do_not_fit_are_named(changes: dict, name: str) -> None:
    with pytest.raises(InputError, match=name):
        config(**changes)


def _refused(folder: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        hf.load(folder)
    assert "\n" not in str(caught.value)


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    good = checkpoints.weights(checkpoints.CONFIG)
    name = "model.layers.1.mlp.up_proj.weight"
    missing = {k: v for k, v in good.items() if k != name}
    _refused(checkpoints.write_hf(tmp_path / "a", tensors=missing), f"{name}.*missing")
    unknown = {**good, "model.layers.2.mlp.up_proj.weight": good[name]}
    _refused(checkpoints.write_hf(tmp_path / "b", tensors=unknown), "unknown.*layers.2.mlp")
    shape = {**good, name: good[name][:-1]}
    _refused(
        checkpoints.write_hf(tmp_path / "c", tensors=shape), rf"{name}.*\(95, 64\).*\(96, 64\)"
    )
    kind = {**good, name: good[name].astype(np.int8)}
    _refused(checkpoints.write_hf(tmp_path / "d", tensors=kind), f"{name}.*I8")


def test_names_of_models_saved_otherwise(tmp_path: Path) -> None:
    """Without a head, or with what is shared under the head's name alone."""
    tensors = checkpoints.weights(checkpoints.CONFIG)
    expected = hf.load(checkpoints.write_hf(tmp_path / "as published", tensors=tensors)).params
    bare = {name.removeprefix("model."): x for name, x in tensors.items()}
    shared = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    del shared["model.embed_tokens.weight"]
    for name, saved in (("bare", bare), ("shared", shared)):
        got = hf.load(checkpoints.write_hf(tmp_path / name, tensors=saved)).params
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    untied = {**checkpoints.CONFIG, "tie_word_embeddings": False}
    with pytest.raises(InputError, match="'model.embed_tokens.weight' is missing"):
        hf.load(checkpoints.write_hf(tmp_path / "untied", untied, shared))


def test_one_file_comes_before_an_index(tmp_path: Path) -> None:
    """As in transformers, where both are there."""
    other = checkpoints.weights(checkpoints.CONFIG, seed=1)
    folder = checkpoints.write_hf(tmp_path, tensors=other, shards=2)
    tensors = checkpoints.weights(checkpoints.CONFIG)
    checkpoints.write_hf(folder, tensors=tensors)
    loaded = hf.load(folder).params["embed"]
    np.testing.assert_array_equal(loaded, tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize("ids", [[-5], [600]])
def test_a_bos_outside_the_model_is_refused(tmp_path: Path, ids: list[int]) -> None:
    folder = checkpoints.write_hf(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"jaxkv_bos_ids": ids}))
    with pytest.raises(InputError, match=rf"bos id is {ids[0]}; this model has ids from 0 to 511"):
        hf.load(folder)


def test_harmless_extras_are_dropped(tmp_path: Path) -> None:
    tensors = checkpoints.weights(checkpoints.CONFIG)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    assert "lm_head" not in hf.load(checkpoints.write_hf(tmp_path / "a", tensors=tensors)).params
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    _refused(checkpoints.write_hf(tmp_path / "b", tensors=tensors), "lm_head.weight.*tie_word")


@pytest.mark.parametrize(
    "place", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "", 3, None]
)
def test_the_index_cannot_point_outside(tmp_path: Path, place: object) -> None:
    folder = checkpoints.write_hf(tmp_path / "m", shards=2)
    save_file(checkpoints.weights(checkpoints.CONFIG), tmp_path / "other.safetensors")
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["model.norm.weight"] = place
    index.write_text(json.dumps(table))
    _refused(folder, "model.norm.weight")


def test_missing_shards_and_indices(tmp_path: Path) -> None:
    folder = checkpoints.write_hf(tmp_path / "m", shards=2)
    (folder / "model-00001.safetensors").unlink()
    _refused(folder, "model-00001.safetensors is missing")
    (folder / "model.safetensors.index.json").write_text("{}")
    _refused(folder, "weight_map")
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)
    _refused(folder, "is not JSON")
    _refused(tmp_path / "nowhere", "config.json is missing")


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    folder = checkpoints.write_hf(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    _refused(folder, "pickle.*safe_serialization")
    assert not (tmp_path / "boom").exists()


def test_unknown_architectures_are_named(tmp_path: Path) -> None:
    folder = checkpoints.write_hf(tmp_path, {**checkpoints.CONFIG, "model_type": "mamba"})
    _refused(folder, "'mamba'; supported are falcon, gemma2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_hf(tmp_path_factory.mktemp("hf"))


@pytest.mark.parametrize("length", [0, 4, 8, 100, 3000, 100_000])
def test_truncated_files_are_refused(tmp_path: Path, folder: Path, length: int) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    data = (folder / "model.safetensors").read_bytes()[:length]
    (tmp_path / "model.safetensors").write_bytes(data)
    _refused(tmp_path, "cannot be read as safetensors")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_never_crash(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["model.safetensors", "config.json", "tokenizer.json"]))
    path, good = folder / name, (folder / name).read_bytes()
    damaged = bytearray(good)
    for place in data.draw(st.lists(st.integers(0, min(len(good), 3000) - 1), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        hf.load(folder)
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(good)


_PEAK = """
import resource, sys
import jax, numpy as np, tokenizers, safetensors
from jaxkv.checkpoints import hf
jax.device_put(np.ones(3)).block_until_ready()
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = hf.load(sys.argv[1], sys.argv[2])
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024
print(peak, sum(x.nbytes for x in jax.tree.leaves(model.params)))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_stays_near_one_copy(tmp_path: Path, dtype: str) -> None:
    wide = {**checkpoints.CONFIG, "hidden_size": 1024, "intermediate_size": 2048}
    wide["num_hidden_layers"] = 6
    checkpoints.write_hf(tmp_path, wide, shards=2)
    command = [sys.executable, "-c", _PEAK, str(tmp_path), dtype]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, model = map(int, run.stdout.split())
    largest = 4 * 2048 * 1024
    # The float32 tensor and its cast copy are both there for a moment; 16 MiB are the libraries'.
    assert peak <= 1.3 * model + 2 * largest + 2**24


# What transformers 5 takes where a setting is in two places (tried by its own classes).
SMALL = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4,
    "num_hidden_layers": 3, "max_position_embeddings": 400, "rms_norm_eps": 1e-5,
}  # fmt: skip
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}
MPT = {"vocab_size": 100, "max_seq_len": 64}


def _configured(kind: str, **values):
    return by_hf_type(kind).hf_config(Fields({"model_type": kind, **values}, "config.json"))


@pytest.mark.parametrize(("top", "within", "taken"), [(100, 50, 100), (None, 50, 4096)])
def test_phi3_takes_its_first_context_from_the_top(top, within, taken) -> None:
    scaling = {**LONG, "original_max_position_embeddings": within}
    config = _configured(
        "phi3", **SMALL, rope_scaling=scaling, original_max_position_embeddings=top
    )
    assert config.rope is not None and isinstance(config.rope.scaling, LongScaling)
    assert config.rope.scaling.original_max_positions == taken


def test_a_llama_takes_its_first_context_from_the_scaling() -> None:
    scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 50}
    config = _configured(
        "llama", **SMALL, rope_scaling=scaling, original_max_position_embeddings=100
    )
    assert config.rope is not None and isinstance(config.rope.scaling, YarnScaling)
    assert config.rope.scaling.original_max_positions == 50


def test_mpt_by_its_own_names_and_by_the_usual_ones() -> None:
    own = _configured("mpt", **MPT, d_model=64, n_heads=4, n_layers=2)
    usual = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    assert _configured("mpt", **MPT, **usual) == own
    assert _configured("mpt", **MPT, d_model=64, n_heads=4, n_layers=2, **usual) == own
    with pytest.raises(InputError, match="hidden_size is 64 .*it must be as d_model, which is 128"):
        _configured("mpt", **MPT, d_model=128, n_heads=4, n_layers=2, hidden_size=64)
