# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What must hold of every family of models: under every policy, and there and back on disk."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import checkpoints
import family_models
import gguf
import jax
import numpy as np
import pytest
import toys
from policy_cases import CASES, law
from safetensors.numpy import load_file, save_file

from jaxkv import (
    DuoAttention,
    Full,
    HeadKV,
    InputError,
    PyramidKV,
    Rope,
    SlidingRecompute,
    SnapKV,
    init_cache,
    load,
)
from jaxkv.checkpoints import hf, orbax
from jaxkv.checkpoints.export import export_hf
from jaxkv.checkpoints.table import flatten
from jaxkv.core.scoring import alibi_slopes
from jaxkv.generate.running import forward

# All that a family may ask of a policy: a part of a head rotated; ALiBi; soft caps, and layers with
# a window and a rotation of their own.
ONE = dataclasses.replace(toys.CONFIG, num_layers=1)  # where all layers are alike
KINDS = {
    "neox": dataclasses.replace(
        ONE, rope=Rope(4), layer_norm=True, norm_bias=True, parallel=True, gated=False,
        activation="gelu", mlp_bias=True, qkv_bias=True, out_bias=True,
    ),
    "mpt": dataclasses.replace(
        ONE, rope=None, alibi=alibi_slopes(4), clip_qkv=2.0, layer_norm=True, gated=False,
        activation="gelu",
    ),
    "gemma": dataclasses.replace(
        toys.CONFIG, windows=(6, 0), local_rope=Rope(8, 100.0), soft_cap=2.0, final_soft_cap=3.0,
        query_scale=1.5, embed_scale=5.0, unit_offset=True, post_norms=True, qk_norm=True,
        activation="gelu_tanh",
    ),
}  # fmt: skip
run = jax.jit(forward, static_argnums=(1, 2))
empty = jax.jit(toys.begun, static_argnums=(0, 1, 2, 3))
WIDTH = 10  # of all chunks


def feed(kind: str, policy, tokens: np.ndarray, chunk: int = WIDTH) -> np.ndarray:
    """Logits [B, T, V] of a prompt that comes in chunks, the last of them padded."""
    config, rows = KINDS[kind], tokens.shape[0]
    cache = empty(config, policy, rows, 64)
    logits = []
    for begin in range(0, tokens.shape[1], chunk):
        part = tokens[:, begin : begin + chunk]
        count = part.shape[1]
        padded = np.pad(part, ((0, 0), (0, chunk - count)), constant_values=5)
        lengths = np.full((rows,), count, np.int32)
        out, cache = run(parameters(kind), config, policy, padded, cache, lengths)
        logits.append(np.asarray(out)[:, :count])
    return np.concatenate(logits, axis=1)


def for_layers(policy, config):
    """With a file of heads for so many layers."""
    files = {"pattern": "toy_gates.json", "scores": "toy_scores.json"}
    mine = {name: file for name, file in files.items() if hasattr(policy, name)}
    if config.num_layers == 2 or not mine:
        return policy
    folder = Path(__file__).parent / "data" / "one_layer"
    return dataclasses.replace(policy, **{name: str(folder / file) for name, file in mine.items()})


@functools.cache
def parameters(kind: str):
    return toys.params(KINDS[kind])


@functools.cache
def of_full(kind: str) -> np.ndarray:
    return feed(kind, Full(), TOKENS)


TOKENS = toys.tokens(2, 20)


@pytest.mark.slow
@law("kinds", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_laws(kind: str, name: str) -> None:
    case = CASES[name]
    roomy, policy = (for_layers(x, KINDS[kind]) for x in (case.roomy, case.policy))
    np.testing.assert_allclose(feed(kind, roomy, TOKENS), of_full(kind), atol=3e-5)
    evicting = feed(kind, policy, TOKENS)
    assert np.isfinite(evicting).all()
    # A row of a batch is what it is alone.
    swapped = feed(kind, policy, TOKENS[::-1])
    np.testing.assert_allclose(swapped[::-1], evicting, atol=3e-5)
    if case.token_exact:
        one_by_one = feed(kind, policy, TOKENS, 1)
        np.testing.assert_allclose(evicting, one_by_one, atol=3e-5)


def test_a_window_of_the_models_own_is_a_ring() -> None:
    """Whatever the policy keeps elsewhere."""
    config = KINDS["gemma"]
    for policy in (Full(), SnapKV(8, window=2, kernel=3, decode_room=4)):
        local, other = jax.eval_shape(lambda p=policy: init_cache(config, p, 1, 64).layers)
        assert local.k.shape == (1, 2, 7, 8)
        assert jax.tree.leaves(other)[0].shape != local.k.shape


def test_a_long_prompt_goes_through_a_ring_in_chunks() -> None:
    """Where another layer wants it in one call; a ring would compare all tokens with all."""
    config = KINDS["gemma"]
    params, tokens = toys.params(config), toys.tokens(1, 1100)
    policy = SnapKV(2000, window=2, kernel=3, decode_room=4)
    cache = init_cache(config, policy, 1, 2048)
    got, _ = run(params, config, policy, tokens, cache, None)
    cache = init_cache(config, Full(), 1, 1100)
    expected, _ = run(params, config, Full(), tokens, cache, None)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_model_of_windows_alone_takes_no_policy() -> None:
    config = dataclasses.replace(toys.CONFIG, windows=(6, 6))
    init_cache(config, Full(), 1, 64)
    with pytest.raises(InputError, match="SnapKV, but every layer .* window of its own, of 7"):
        init_cache(config, SnapKV(8, window=2, kernel=3, decode_room=4), 1, 64)
    with pytest.raises(InputError, match="SlidingRecompute, but every layer"):
        init_cache(config, SlidingRecompute(9), 1, 64)


@pytest.mark.parametrize("name", family_models.FAMILIES)
def test_there_and_back_is_bit_equal(name: str, tmp_path: Path) -> None:
    source = family_models.write_family(tmp_path / "hf", name)
    orbax.save(tmp_path / "ours", load(source, progress=quiet))
    export_hf(tmp_path / "back", load(tmp_path / "ours", progress=quiet))
    before, after = (load_file(tmp_path / x / "model.safetensors") for x in ("hf", "back"))
    assert before.keys() == after.keys()
    for tensor, values in before.items():
        np.testing.assert_array_equal(after[tensor], values, err_msg=tensor)
    assert hf.load(tmp_path / "back").config == hf.load(source).config


def test_what_config_json_has_no_word_for_is_not_dropped(tmp_path: Path) -> None:
    model = hf.load(family_models.write_family(tmp_path / "hf", "mistral-window"))
    for change, name in (
        ({"windows": (23, 0, 23)}, "windows"),
        ({"qkv_bias": True}, "qkv_bias"),
        ({"rope": Rope(4, 500000.0)}, "rope"),
        ({"soft_cap": 3.0}, "soft_cap"),
    ):
        config = dataclasses.replace(model.config, **change)
        with pytest.raises(InputError, match=f"the model's {name} is .* a mistral in Hugging"):
            export_hf(tmp_path / "out", dataclasses.replace(model, config=config))
        assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    model = hf.load(family_models.write_family(tmp_path / "hf", "mpt"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(InputError, match="mine exists"):
        export_hf(tmp_path / "mine", model)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "kept"
    export_hf(tmp_path / "mine", model, overwrite=True)
    assert hf.load(tmp_path / "mine").config == model.config


def test_budgets_are_dealt_to_the_layers_that_a_policy_rules() -> None:
    """Not to those with a window of their own, which would not use them."""
    scores = str(Path(__file__).parent / "data" / "toy_scores.json")
    gates = str(Path(__file__).parent / "data" / "toy_gates.json")
    shapes = dataclasses.replace(toys.geometry(), windows=(6, 0))
    kept = HeadKV(20, scores=scores, window=4, kernel=3, decode_room=0).at(1, shapes).facts().keeps
    assert sum(kept) == pytest.approx(2 * 20, abs=2)
    kept = PyramidKV(20, window=4, kernel=3, beta=4, decode_room=0).at(1, shapes).facts().keeps
    assert sum(kept) == 2 * 20
    duo = DuoAttention(gates, 0.5, 2, 5).at(1, shapes)
    assert [len(heads) for heads in duo.groups] == [1, 1]


def test_rings_are_no_longer_than_a_full_cache() -> None:
    config = dataclasses.replace(toys.CONFIG, windows=(1000, 0))
    layers = jax.eval_shape(lambda: init_cache(config, Full(), 1, 64).layers)
    assert layers[0].k.shape[2] == 65 and layers[1].k.shape[2] == 64


def test_a_large_model_is_written_in_shards(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("jaxkv.checkpoints.export.SHARD_BYTES", 30_000)
    source = family_models.write_family(tmp_path / "hf", "gpt_neox")
    model = hf.load(source, dtype="bfloat16")
    assert len(list(source.glob("model-*.safetensors"))) > 2
    assert not (source / "model.safetensors").exists()
    export_hf(tmp_path / "back", model)
    again = hf.load(tmp_path / "back", dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert json.loads((tmp_path / "back/config.json").read_text())["torch_dtype"] == "bfloat16"


FAULTS = ("renamed", "missing", "extra", "shape", "type")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", family_models.FAMILIES)
def test_a_wrong_tensor_is_named(name: str, fault: str, tmp_path: Path) -> None:
    folder = family_models.write_family(tmp_path, name)
    tensors = load_file(folder / "model.safetensors")
    victim = sorted(tensors)[len(tensors) // 2]
    named = victim
    if fault in ("renamed", "extra"):
        named = "model.something.weight"
        tensors[named] = tensors[victim].copy()
    if fault in ("renamed", "missing"):
        del tensors[victim]
    if fault == "shape":
        tensors[victim] = tensors[victim][..., :-1].copy()
    if fault == "type":
        tensors[victim] = tensors[victim].astype(np.int32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError) as error:
        hf.load(folder)
    message = str(error.value)
    assert "\n" not in message and named in message, message


def test_patterns_pass_over_layers_with_a_window(tmp_path: Path) -> None:
    """A pattern has a row for every layer; those of local layers are not used."""
    gates = str(Path(__file__).parent / "data" / "toy_gates.json")
    layers = init_cache(KINDS["gemma"], DuoAttention(gates, 0.5, 2, 5), 1, 64).layers
    assert layers[0].k.shape == (1, 2, 7, 8) and hasattr(layers[1], "heads")


def quiet(*_: object) -> None:
    """No bars."""


def test_the_text_model_of_one_that_sees_pictures(tmp_path: Path) -> None:
    alone = family_models.write_family(tmp_path / "text", "gemma3")
    both = family_models.write_family(tmp_path / "both", "gemma3")
    tensors = {
        f"language_model.{name}": x for name, x in load_file(both / "model.safetensors").items()
    }
    tensors["vision_tower.vision_model.post_layernorm.bias"] = np.zeros(3, np.float32)
    save_file(tensors, both / "model.safetensors")
    fields = json.loads((both / "config.json").read_text())
    (both / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": fields, "vision_config": {}})
    )
    got, expected = hf.load(both), hf.load(alone)
    assert got.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, got.params, expected.params)


GGUF = {
    "gpt_neox": (gguf.MODEL_ARCH.GPTNEOX, "olmo"),
    "gpt_neox-serial": (gguf.MODEL_ARCH.GPTNEOX, "default"),
    "falcon-one": (gguf.MODEL_ARCH.FALCON, "falcon"),
    "falcon-groups": (gguf.MODEL_ARCH.FALCON, "falcon"),
    "mpt": (gguf.MODEL_ARCH.MPT, "mpt"),
    "gemma2": (gguf.MODEL_ARCH.GEMMA2, "default"),
    "phi3": (gguf.MODEL_ARCH.PHI3, "default"),
}


def header(name: str, config, arch: str) -> dict[str, object]:
    """What llama.cpp writes of a configuration."""
    pairs: dict[str, object] = {
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_layers,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        f"attention.layer_norm_{'' if config.layer_norm else 'rms_'}epsilon": config.norm_eps,
    }
    if name.startswith("gpt_neox"):
        pairs |= {
            "rope.dimension_count": config.rope.rotary_dim,
            "rope.freq_base": config.rope.theta,
            "use_parallel_residual": config.parallel,
        }
    if name.startswith("falcon"):
        pairs |= {"rope.freq_base": config.rope.theta}
    if name == "mpt":
        pairs |= {"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": config.clip_qkv}
    if name in ("gemma2", "phi3"):
        pairs |= {
            "attention.key_length": config.head_dim,
            "rope.freq_base": config.rope.theta,
            "rope.dimension_count": config.rope.rotary_dim,
        }
    if name == "gemma2":
        pairs |= {
            "attention.sliding_window": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        }
    return {f"{arch}.{key}": value for key, value in pairs.items()}


@pytest.mark.parametrize("name", GGUF)
def test_gguf(name: str, tmp_path: Path) -> None:
    """Named by llama.cpp's own package, with the changes that its converters make."""
    source = family_models.write_family(tmp_path / "hf", name, vocab_size=512)
    expected, (kind, split) = hf.load(source), GGUF[name]
    config = expected.config
    arch = gguf.MODEL_ARCH_NAMES[kind]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", arch)
    pairs = checkpoints.tokenizer_pairs() | {"tokenizer.ggml.pre": split}
    for key, value in (header(name, config, arch) | pairs).items():
        checkpoints.add(writer, key, value)
    names = gguf.get_tensor_name_map(kind, config.num_layers)
    heads, h = config.num_kv_heads, config.head_dim
    for tensor, x in load_file(source / "model.safetensors").items():
        if "query_key_value" in tensor:  # from head by head to all q, all k, all v
            each = x.reshape(heads, config.group_size + 2, h, -1)
            parts = [each[:, :-2], each[:, -2], each[:, -1]]
            x = np.concatenate([p.reshape(-1, each.shape[-1]) for p in parts]).reshape(x.shape)
        if name == "gemma2" and "norm" in tensor:
            x = x + 1
        renamed = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        assert renamed is not None, tensor
        writer.add_tensor(renamed, np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    got = load(tmp_path / "m.gguf", progress=quiet)
    same = dict(query_scale=0.0, norm_eps=0.0, activation="gelu")
    if name == "gemma2":  # llama.cpp derives it
        got = dataclasses.replace(
            got, config=dataclasses.replace(got.config, query_scale=config.query_scale)
        )
    if name != "mpt":  # which has a scale of its own, and llama.cpp none
        assert dataclasses.replace(got.config, **same) == dataclasses.replace(config, **same)
    for path, array in flatten(config, expected.params).items():
        np.testing.assert_allclose(
            flatten(got.config, got.params)[path], array, atol=1e-6, err_msg=path
        )
