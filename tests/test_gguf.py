# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""GGUF files: every kind of block, the order of rotary rows, and damaged headers."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import checkpoints
import gguf as package
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv.checkpoints import gguf, hf
from jaxkv.checkpoints.families.llama import ExplicitScaling
from jaxkv.checkpoints.gguf_file import GGUFFile
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling
from jaxkv.models.config import ModelConfig

_QUANTISED = [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1]
_K_QUANTS = [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]


def _equal(a: dict, b: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _from_blocks(tmp_path: Path, config: dict, blocks: dict, kind: Kind) -> dict:
    """The parameters of a Hugging Face folder that holds what the package reads from blocks."""
    tensors = checkpoints.weights(config)
    names = dict(zip(checkpoints.to_gguf(config, tensors), tensors, strict=True))
    for name, block in blocks.items():
        values = package.quants.dequantize(block, kind)
        original = names[name]
        back = checkpoints.to_gguf(config, {original: values}, unpair=True)
        tensors[original] = next(iter(back.values()))
    return hf.load(checkpoints.write_hf(tmp_path / "hf", config, tensors)).params


def test_plain_numbers_equal_the_original(tmp_path: Path) -> None:
    config = {**checkpoints.CONFIG, "attention_bias": True, "tie_word_embeddings": False}
    ours = gguf.load(checkpoints.write_gguf(tmp_path / "m.gguf", config))
    theirs = hf.load(checkpoints.write_hf(tmp_path / "hf", config))
    assert ours.config == theirs.config
    _equal(ours.params, theirs.params)
    assert ours.tokenizer.encode("Hello there") == theirs.tokenizer.encode("Hello there")


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_other_families_equal_the_original(tmp_path: Path, family: str) -> None:
    config = {**checkpoints.CONFIG, "model_type": family, "head_dim": 16}
    ours = gguf.load(checkpoints.write_gguf(tmp_path / "m.gguf", config))
    theirs = hf.load(checkpoints.write_hf(tmp_path / "hf", config))
    assert ours.config == theirs.config
    assert ours.config.qkv_bias == (family == "qwen2")
    assert ours.config.qk_norm == (family == "qwen3")
    _equal(ours.params, theirs.params)


@pytest.mark.parametrize("kind", _QUANTISED, ids=lambda kind: kind.name)
def test_blocks_are_read_as_the_package_reads_them(tmp_path: Path, kind: Kind) -> None:
    config = checkpoints.WIDE
    blocks = {
        name: package.quants.quantize(x, kind)
        for name, x in checkpoints.to_gguf(config, checkpoints.weights(config)).items()
        if x.ndim == 2
    }
    ours = gguf.load(checkpoints.write_gguf(tmp_path / "m.gguf", config, kind=kind)).params
    _equal(ours, _from_blocks(tmp_path, config, blocks, kind))


@pytest.mark.parametrize("kind", _K_QUANTS, ids=lambda kind: kind.name)
def test_k_quants(tmp_path: Path, kind: Kind) -> None:
    config, rng = checkpoints.WIDE, np.random.default_rng(0)
    width, size = package.GGML_QUANT_SIZES[kind]
    blocks = {
        name: rng.integers(0, 256, (x.shape[0], x.shape[1] // width * size), np.uint8)
        for name, x in checkpoints.to_gguf(config, checkpoints.weights(config)).items()
        if x.ndim == 2
    }
    path = checkpoints.write_gguf(tmp_path / "m.gguf", config, kind=kind, raw=blocks)
    with np.errstate(all="ignore"):  # random scales may be NaN or infinite
        _equal(gguf.load(path).params, _from_blocks(tmp_path, config, blocks, kind))


def _heads(model: Model) -> np.ndarray:
    """`wqkv` of the first layer, [D, K, G + 2, H]."""
    c = model.config
    wqkv = np.asarray(model.params["layers"][0]["wqkv"])
    return wqkv.reshape(c.hidden_size, c.num_kv_heads, c.group_size + 2, c.head_dim)


def test_partial_rotation_reorders_only_what_rotates(tmp_path: Path) -> None:
    extra = {"llama.rope.dimension_count": 8}
    path = checkpoints.write_gguf(tmp_path / "m.gguf", extra=extra)
    model, stored = gguf.load(path), GGUFFile(path).read("blk.0.attn_q.weight")
    assert model.config.rope.rotary_dim == 8
    head = stored.reshape(4, 16, 64)[2]
    order = [0, 2, 4, 6, 1, 3, 5, 7, *range(8, 16)]
    np.testing.assert_array_equal(_heads(model)[:, 1, 0], head[order].T)


def _rope(tmp_path: Path, **extra) -> Rope:
    pairs = {"llama.rope." + key.replace("__", "."): value for key, value in extra.items()}
    path = checkpoints.write_gguf(tmp_path / "m.gguf", extra=pairs)
    return gguf.load(path).config.rope


def test_rope_scalings(tmp_path: Path) -> None:
    linear = _rope(tmp_path, scaling__type="linear", scaling__factor=2.5)
    assert linear.scaling == LinearScaling(2.5)
    yarn = _rope(
        tmp_path, scaling__type="yarn", scaling__factor=4.0, scaling__original_context_length=64
    )
    assert isinstance(yarn.scaling, YarnScaling)
    freqs, factor = yarn.frequencies()
    expected, expected_factor = Rope(16, 1e4, YarnScaling(4.0, 64)).frequencies()
    np.testing.assert_array_equal(freqs, expected)
    assert factor == expected_factor
    with pytest.raises(InputError, match="longrope"):
        _rope(tmp_path, scaling__type="longrope")


def test_llama3_frequencies_come_from_their_tensor(tmp_path: Path) -> None:
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 128)
    plain, _ = Rope(16, 1e4).frequencies()
    scaled, _ = Rope(16, 1e4, scaling).frequencies()
    tensors = checkpoints.weights(checkpoints.CONFIG)
    tensors["rope_freqs.weight"] = (plain / scaled).astype(np.float32)
    config = gguf.load(checkpoints.write_gguf(tmp_path / "m.gguf", tensors=tensors)).config
    assert isinstance(config.rope.scaling, ExplicitScaling)
    np.testing.assert_allclose(config.rope.frequencies()[0], scaled, rtol=1e-7)
    assert isinstance(config, ModelConfig) and hash(config) == hash(config)


def _refused(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        gguf.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({"llama.block_count": 10**6}, "llama.block_count"),
        ({"llama.block_count": 3}, "blk.2.attn_norm.weight"),
        ({"llama.block_count": 1}, "unknown tensor 'blk.1"),
        ({"llama.embedding_length": 0}, "llama.embedding_length"),
        ({"llama.embedding_length": "64"}, "llama.embedding_length"),
        ({"llama.attention.head_count": None}, "llama.attention.head_count"),
        ({"llama.attention.head_count_kv": [2, 2]}, "head_count_kv"),
        ({"llama.attention.head_count_kv": 3}, "num_kv_heads"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon"),
        ({"llama.rope.freq_base": -1.0}, "freq_base"),
        ({"llama.expert_count": 8}, "expert_count"),
        ({"split.count": 2}, "split.count"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model"),
        ({"tokenizer.ggml.pre": "mystery"}, "tokenizer.ggml.pre"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "merge"),
        ({"tokenizer.ggml.merges": ["zz yy"]}, "merge"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "twice"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type"),
        ({"tokenizer.ggml.eos_token_id": 512}, "eos_token_id"),
        ({"tokenizer.ggml.add_bos_token": 7}, "add_bos_token"),
    ],
)
def test_absurd_headers_are_named(tmp_path: Path, extra: dict, name: str) -> None:
    _refused(checkpoints.write_gguf(tmp_path / "m.gguf", extra=extra), name)


@pytest.mark.parametrize(
    "name", ["deepseek-r1-qwen", "tekken", "dbrx", "gpt-4o", "falcon3", "smaug-bpe", "llama4"]
)
def test_splits_by_the_names_that_llama_cpp_knows(tmp_path: Path, name: str) -> None:
    path = checkpoints.write_gguf(tmp_path / "m.gguf", extra={"tokenizer.ggml.pre": name})
    tokenizer = gguf.load(path).tokenizer
    assert tokenizer.decode(tokenizer.encode("it's 12345 fooBar")) == "it's 12345 fooBar"


def test_a_file_that_names_no_split_is_split_as_its_family_and_says_so(tmp_path: Path) -> None:
    text = "12345 don't  Stop\n\nnow"
    made = {}
    for name in ("llama-bpe", "gpt-2", None):
        path = checkpoints.write_gguf(tmp_path / "m.gguf", extra={"tokenizer.ggml.pre": name})
        if name is None:
            with pytest.warns(UserWarning, match="does not name how its text is split.*llama3"):
                model = gguf.load(path)
        else:
            model = gguf.load(path)
        made[name] = json.loads(model.tokenizer.backend.to_str())["pre_tokenizer"]
        assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    assert made[None] == made["llama-bpe"] != made["gpt-2"]


def test_other_architectures_are_named(tmp_path: Path) -> None:
    writer = package.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _refused(tmp_path / "m.gguf", "'mamba'; supported are falcon, gemma2, gemma3")


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<IQQ", 3, 2**63, 0),  # tensors without end
        struct.pack("<IQQ", 3, 0, 2**63),  # pairs without end
        struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**64 - 1),  # an endless name
        struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 2**40),  # an endless array
        struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 2**40),  # arrays of arrays
        struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77),  # an unknown kind
        struct.pack("<IQQQ1sI2QIQ", 3, 1, 0, 1, b"t", 2, 2**40, 2**40, 0, 0),  # a giant tensor
        struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 8, 0, 2**62),  # a far offset
        struct.pack("<IQQ", 1, 0, 0),
        struct.pack(">IQQ", 3, 0, 0),  # big-endian
    ],
)
def test_sizes_are_not_believed(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + header + bytes(64))
    start = time.perf_counter()
    _refused(tmp_path / "m.gguf", "m.gguf")
    assert time.perf_counter() - start < 2


def test_a_tensor_larger_than_its_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = checkpoints.write_gguf(tmp_path / "m.gguf")
    data = path.read_bytes()
    entry = b"token_embd.weight" + struct.pack("<IQ", 2, 64)
    assert data.count(entry + struct.pack("<Q", 512)) == 1
    path.write_bytes(data.replace(entry + struct.pack("<Q", 512), entry + struct.pack("<Q", 2**40)))
    _refused(path, "cut off: tensor 'token_embd.weight' runs past its end")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf")


@pytest.mark.parametrize("length", [0, 3, 4, 20, 30, 1000, 9000, 14_000, 200_000, -1])
def test_truncated_files_are_refused(tmp_path: Path, file: Path, length: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:length])
    _refused(tmp_path / "cut.gguf", "cut.gguf")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_never_crash(file: Path, data: st.DataObject) -> None:
    damaged = bytearray(file.read_bytes())
    header = 14_000
    for place in data.draw(st.lists(st.integers(0, header), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    path = file.parent / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        gguf.load(path)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.real_model
def test_the_real_model(smollm2, smollm2_gguf: Path) -> None:
    config = smollm2.config
    assert (config.num_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert config.rope == Rope(64, 1e5) and config.tie_embeddings and config.norm_eps == 1e-5
    reader = package.GGUFReader(smollm2_gguf)
    stored = {t.name: package.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors[:10]}
    layer = smollm2.params["layers"][0]
    np.testing.assert_array_equal(smollm2.params["embed"], stored["token_embd.weight"])
    np.testing.assert_array_equal(layer["w_down"], stored["blk.0.ffn_down.weight"].T)
    k = stored["blk.0.attn_k.weight"].reshape(3, 32, 2, 576).swapaxes(1, 2).reshape(3, 64, 576)
    np.testing.assert_array_equal(_heads(smollm2)[:, :, -2], np.moveaxis(k, -1, 0))
