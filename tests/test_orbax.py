# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Our own checkpoints: what comes back, and what is never taken for whole."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxkv.checkpoints import config_json, orbax, toy
from jaxkv.checkpoints.families.llama import ExplicitScaling
from jaxkv.core.errors import InputError
from jaxkv.core.rope import LinearScaling, Llama3Scaling, Rope, RopeScaling, YarnScaling

SCALINGS = [
    None,
    LinearScaling(2.0),
    Llama3Scaling(8.0, 1.0, 4.0, 8192),
    YarnScaling(4.0, 4096, attention_factor=1.5, truncate=False),
    ExplicitScaling((1.0, 2.5, 32.0)),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("orbax") / "toy"
    orbax.save(path, toy.load())
    return path


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "toy"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_everything_comes_back(checkpoint: Path, dtype: str) -> None:
    seen = []
    model = orbax.load(checkpoint, dtype, lambda *progress: seen.append(progress))
    expected = toy.load(dtype)
    assert model.config == expected.config and model.fingerprint == expected.fingerprint
    assert jax.tree.structure(model.params) == jax.tree.structure(expected.params)
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)
    assert {str(x.dtype) for x in jax.tree.leaves(model.params)} == {dtype}
    count = len(jax.tree.leaves(expected.params))
    assert seen[-1] == ("loading", count, count)
    ours, theirs = model.tokenizer, expected.tokenizer
    for name in ("bos_ids", "eos_ids", "chat_template", "special_tokens", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name)
    text = "<|im_start|>Hello there, naïve 🙂\n"
    for special in (False, True):
        assert ours.encode(text, special) == theirs.encode(text, special)


def test_biases_and_an_untied_head_come_back(tmp_path: Path) -> None:
    model = toy.load()
    config = dataclasses.replace(model.config, tie_embeddings=False, out_bias=True)
    layers = tuple(
        {**layer, "bo": np.full(64, 3.0, np.float32)} for layer in model.params["layers"]
    )
    params = {**model.params, "layers": layers, "lm_head": model.params["embed"] + 1}
    orbax.save(tmp_path / "m", dataclasses.replace(model, config=config, params=params))
    back = orbax.load(tmp_path / "m").params
    np.testing.assert_array_equal(back["lm_head"], params["lm_head"])
    np.testing.assert_array_equal(back["layers"][2]["bo"], np.full(64, 3.0))


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: type(s).__name__)
def test_configurations_survive_json(scaling: RopeScaling | None) -> None:
    config = dataclasses.replace(toy.load().config, rope=Rope(6, 5e5, scaling))
    text = json.dumps(config_json.to_json(config))
    assert config_json.from_json(json.loads(text), "x") == config


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"tie_embeddings": 1}, "tie_embeddings"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"surprise": 1}, "surprise"),
        ({"rope": 3}, "rope"),
        ({"windows": [-1]}, "windows"),
        ({"windows": [4]}, "windows"),
        ({"activation": "relu"}, "activation"),
        ({"rope": {"rotary_dim": 16, "scaling": {"type": "os.system"}}}, "rope scaling"),
        ({"rope": {"rotary_dim": 16, "scaling": {"type": "LinearScaling"}}}, "factor"),
        ({"rope": {"rotary_dim": 16, "scaling": [1]}}, "rope scaling"),
    ],
)
def test_damaged_configurations_are_named(change: dict, name: str) -> None:
    values = {**config_json.to_json(toy.load().config), **change}
    with pytest.raises(InputError, match=name):
        config_json.from_json(values, "config.json")


def _refused(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        orbax.load(path)
    assert "\n" not in str(caught.value)


def test_shapes_must_be_those_of_the_configuration(copy: Path) -> None:
    values = json.loads((copy / "config.json").read_text())
    note = json.loads((copy / "jaxkv.json").read_text())
    del note["files"]["config.json"]
    (copy / "jaxkv.json").write_text(json.dumps(note))
    (copy / "config.json").write_text(json.dumps({**values, "num_layers": 2}))
    _refused(copy, "layers.2")
    (copy / "config.json").write_text(json.dumps({**values, "intermediate_size": 64}))
    _refused(copy, "layers.0.w_down")
    (copy / "config.json").write_text(json.dumps({**values, "tie_embeddings": False}))
    _refused(copy, "lm_head")


def test_other_formats_and_lost_files_are_refused(copy: Path) -> None:
    for number in (1, 9):
        (copy / "jaxkv.json").write_text(f'{{"format": {number}}}')
        _refused(copy, f"format {number}.*convert the original again")
    (copy / "jaxkv.json").write_text("{")
    _refused(copy, "jaxkv.json is not JSON")
    (copy / "jaxkv.json").unlink()
    _refused(copy, "jaxkv.json is missing")


def test_damaged_and_incomplete_copies_are_refused(copy: Path, capfd) -> None:
    files = [f for f in copy.rglob("*") if f.is_file() and f.name != "jaxkv.json"]
    assert len(files) > 10
    for file in files:
        good = file.read_bytes()
        name = file.relative_to(copy)
        for bad in (good[:-1], good[:-1] + bytes([good[-1] ^ 1])) if good else ():
            file.write_bytes(bad)
            _refused(copy, f"damaged or incomplete: {name} is not as written")
        file.unlink()
        _refused(copy, f"damaged or incomplete: {name} is missing")
        file.write_bytes(good)
    assert orbax.load(copy).config == toy.load().config
    assert capfd.readouterr() == ("", "")


_DAMAGED = """
import sys
from jaxkv.checkpoints import orbax
from jaxkv.cli.edge import one_line_errors
orbax._SMALL = 0
with one_line_errors("test"):
    orbax.load(sys.argv[1])
"""


def test_damage_that_only_orbax_sees(copy: Path) -> None:
    # In a process of its own, because orbax's threads complain long after it has given up.
    note = json.loads((copy / "jaxkv.json").read_text())
    note["files"] = {name: [size, 0] for name, (size, _) in note["files"].items()}
    (copy / "jaxkv.json").write_text(json.dumps(note))
    manifest = copy / "params" / "manifest.ocdbt"
    manifest.write_bytes(bytes(byte ^ 255 for byte in manifest.read_bytes()))
    command = [sys.executable, "-c", _DAMAGED, str(copy)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and "test: error: " in run.stderr
    assert "damaged or incomplete" in run.stderr


def test_a_failed_save_leaves_what_was_there(copy: Path, monkeypatch) -> None:
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    model = toy.load()
    monkeypatch.setattr(type(model.tokenizer), "save", fail)
    with pytest.raises(OSError, match="No space left"):
        orbax.save(copy, model)
    with pytest.raises(OSError, match="No space left"):
        orbax.save(copy.parent / "new", model)
    assert [p.name for p in copy.parent.iterdir()] == ["toy"]
    assert orbax.load(copy).config == model.config
