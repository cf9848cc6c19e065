# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.plan`: bytes against the arrays themselves, and what is said of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import checkpoints
import jax
import jax.numpy as jnp
import pytest

from jaxkv import init_cache, make_policy, mesh, nbytes
from jaxkv.checkpoints import named, sources
from jaxkv.models.mesh import device_bytes, plain
from jaxkv.plan.__main__ import main
from jaxkv.plan.aot import has_compiler
from jaxkv.plan.chips import CHIPS
from jaxkv.plan.estimate import ENDLESS, EXACT, Setting, estimate, longest
from pallas_kernels.dispatch import order
from pallas_kernels.target import Target, aimed_at, target


def told(capsys, *words: str) -> dict:
    main([*words, "--json"])
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and err.count("\n") == 1
    return err


@pytest.mark.parametrize("weights", [None, "int8", "int4"])
@pytest.mark.parametrize("kv_dtype", ["float32", "int4"])
def test_bytes_are_those_of_the_arrays(tmp_path: Path, weights, kv_dtype) -> None:
    folder = checkpoints.write_hf(tmp_path / "hf", checkpoints.CONFIG)
    model = sources.load(folder, weights=weights)
    setting = Setting(model.config, 2, "float32", kv_dtype, weights)
    for name in ("full", "streaming", "snapkv", "recycled"):
        policy = make_policy(name)
        found = estimate(setting, policy, 300, CHIPS["h100"])
        assert found.weights_bytes == nbytes(model.params)
        cache = init_cache(model.config, policy, 2, 300, kv_dtype)
        assert found.cache_bytes == nbytes(cache)
        assert found.share == (found.weights_bytes + found.cache_bytes) / 80e9


@pytest.mark.parametrize("layout", ["heads", "slots"])
def test_bytes_of_each_chip_are_those_of_a_device(tmp_path: Path, layout: str) -> None:
    folder = checkpoints.write_hf(tmp_path / "hf", checkpoints.CONFIG)
    model = sources.load(folder, mesh=mesh(data=2, model=2))
    one = plain(model.config)
    setting = Setting(one, 2, "float32", "float32", None, data=2, model=2, layout=layout)
    for name in ("full", "streaming", "snapkv"):
        found = estimate(setting, make_policy(name), 320, CHIPS["v5e"])
        assert found.weights_bytes == device_bytes(model.params) and found.layout == layout
        config = dataclasses.replace(model.config, layout=layout)
        cache = init_cache(config, make_policy(name), 2, 320)
        assert found.cache_bytes == device_bytes(cache)
        assert found.cache_bytes == setting.cache_bytes(make_policy(name), 320)
    layers = one.num_layers
    assert found.collectives == 2 * layers + 2 + layers * (layout == "slots")


def test_many_chips(capsys) -> None:
    words = ["--model", "llama-3.1-70b", "--weights", "int8", "--policy", "full,duo"]
    rows = told(capsys, *words, "--chip", "v5e-8,v5p-4")["rows"]
    assert [(row["chip"], row["mesh"]["model"], row["layout"]) for row in rows] == [
        ("v5e", 8, "heads"), ("v5p", 4, "heads"), ("v5e", 8, "slots"), ("v5p", 4, "slots"),
    ]  # fmt: skip
    assert rows[0]["collectives"] == 162 and rows[2]["collectives"] == 402
    assert rows[0]["weights_bytes"] * 8 == pytest.approx(rows[1]["weights_bytes"] * 4, rel=0.01)
    main([*words, "--chip", "v5e", "--mesh", "data=2,model=4", "--batch", "2"])
    assert "v5e-8" in capsys.readouterr().out


def test_a_step_reads_weights_and_what_is_kept() -> None:
    """Llama 3.1 8B, by hand: all but the rows of the embedding, and 131,072 bytes a token."""
    config = named.named_config("llama-3.1-8b")
    setting = Setting(config, 1, "bfloat16", "bfloat16", None)
    weights = 8_030_261_248 * 2
    read = weights - 128256 * 4096 * 2
    by_policy = {
        "full": 100_000,
        "streaming": 4 + 1020,
        "recycled": 100_000 / 10 + 12_500 * 9 / 10,  # an eighth of the tokens, but in one of ten
    }
    for name, tokens in by_policy.items():
        found = estimate(setting, make_policy(name), 100_000, CHIPS["h200"])
        assert found.weights_bytes == weights
        assert found.read_bytes == read + int(tokens * 32 * 8 * 128 * 2 * 2)
        assert found.step_ms == pytest.approx(found.read_bytes / 4800e9 * 1e3)


def test_the_longest_context_is_the_last_that_fits() -> None:
    config = named.named_config("llama-3.2-1b")
    setting = Setting(config, 1, "bfloat16", "int8", "int8")
    for name in ("full", "recycled"):
        policy, room = make_policy(name), 3_000_000_000
        most = longest(setting, policy, room)
        assert setting.plan(policy, most).physical_bytes <= room
        above = most + max(1, most // EXACT) + 1
        assert setting.plan(policy, above).physical_bytes > room
    assert longest(setting, make_policy("streaming"), 3_000_000_000) == ENDLESS
    assert longest(setting, make_policy("full"), 1000) == 0


def test_a_table_and_a_picture(capsys, tmp_path: Path) -> None:
    words = ["--policy", "full,duo,streaming:window=508", "--tokens", "131072,2000000"]
    main([*words, "--chip", "h100,v5e", "--plot", str(tmp_path / "plan.png")])
    out = capsys.readouterr().out
    assert "16.06" in out and "endless" in out and "! does not fit" in out
    assert "assumed: heads spread evenly" in out and "window=50" in out
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_has_all_of_it(capsys, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    words = ["--model", "smollm2-135m-instruct", "--policy", "duo", "--tokens", "8192"]
    report = told(capsys, *words, "--chip", "v5e", "--dtype", "float32", "--out", str(out))
    assert json.loads(out.read_text()) == report
    (row,) = report["rows"]
    assert "assumed" not in row  # gates are shipped for it
    assert row["chip"] == "v5e" and row["fits"] and row["tokens"] == 8192
    assert report["chips"]["v5e"] == {"memory_bytes": 16 * 2**30, "bytes_per_s": 819e9}
    assert report["weights"] == report["kv_dtype"] == "float32"


def test_assumed_heads_are_as_many_in_every_layer(capsys) -> None:
    for sparsity, share in ((0.5, 0.5), (0.75, 0.25)):
        words = ["--model", "llama-3.1-8b", "--tokens", "1000000", "--chip", "h200"]
        duo = told(capsys, *words, "--policy", f"duo:sparsity={sparsity}")["rows"][0]
        full = told(capsys, *words, "--policy", "full")["rows"][0]
        assert duo["cache_bytes"] / full["cache_bytes"] == pytest.approx(share, abs=0.001)
        assert duo["assumed"] == "heads spread evenly"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--chip", "a100"], "--chip has 'a100'; each must be one of v4"),
        (["--chip", "v5e-7"], "--chip has 'v5e-7'; each must be one of v4"),
        (["--chip", "v5e-8", "--mesh", "model=4"], "and --mesh model=4 takes 4"),
        (["--mesh", "model=four"], "--mesh is 'model=four'; it must be sizes of data and model"),
        (["--chip", "v5e-8", "--mesh", "data=8"], "the batch is 1; it must be a multiple of data"),
        (["--chip", "v5e-8,v5p-4", "--plot", "x.png"], "--plot draws one number of chips"),
        (["--tokens", "many"], "--tokens is 'many'"),
        (["--tokens", "0"], "--tokens is"),
        (["--model", "nothing"], "--model is 'nothing'"),
        (["--batch", "0"], "--batch is 0"),
        (["--weights", "int2"], "--weights is 'int2'; it must be int8 or int4"),
        (["--policy", "nothing"], "policy 'nothing' is unknown"),
        (["--plot", "x.txt"], "--plot"),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys, words, said) -> None:
    assert said in refused(capsys, *words)


def test_kernels_are_chosen_by_what_is_aimed_at() -> None:
    here = target()
    with aimed_at(CHIPS["v6e"].target):
        assert order() == ("mosaic_tpu", "xla")
        with aimed_at(Target("gpu", "a GPU", "9.0")):
            assert order() == ("mosaic_gpu", "xla") and target().capability == "9.0"
        assert order() == ("mosaic_tpu", "xla")
    assert target() == here


def test_what_was_traced_for_another_device_is_forgotten() -> None:
    traced = jax.jit(lambda x: x + len(order()))
    before = traced(jnp.int32(0))
    with aimed_at(CHIPS["v6e"].target):
        assert traced.lower(jnp.int32(0)).as_text().count("2") > 0
    assert traced(jnp.int32(0)) == before == 1


@pytest.mark.skipif(has_compiler("gpu"), reason="there is a compiler")
def test_without_a_compiler_it_says_what_brings_one(capsys) -> None:
    words = ["--model", "smollm2-135m", "--tokens", "512", "--compile"]
    assert "jaxkv[cuda]" in refused(capsys, *words)
