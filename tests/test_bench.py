# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.bench`: what it reports, and what it refuses. No time is asserted."""

from __future__ import annotations

import json

import pytest

from jaxkv.bench import kernels, runs
from jaxkv.bench.__main__ import main
from jaxkv.checkpoints import toy
from jaxkv.policies.kvzip import KVzip

MACHINE = {"device", "platform", "jax", "python", "date", "command"}


def test_decode_reports_what_it_read(capsys, tmp_path):
    out = tmp_path / "new" / "decode.json"
    main(
        ["decode", "--model", "tiny-random", "--policy", "full,recycled:k=8:stride=4", "--contexts",
         "20", "--tokens", "17", "--runs", "1", "--out", str(out), "--json"]
    )  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(out.read_text())
    assert MACHINE < set(report)
    full, recycled = report["rows"]
    assert full["context"] == recycled["context"] == 20
    assert 0 < recycled["bytes_read"] < full["bytes_read"]


def test_forms_of_a_cache_by_turns(capsys) -> None:
    words = [
        "decode",
        "--model",
        "tiny-random",
        "--contexts",
        "40",
        "--tokens",
        "17",
        "--runs",
        "1",
    ]
    main([*words, "--kv-dtype", "float32,int8", "--json"])
    wide, packed = json.loads(capsys.readouterr().out)["rows"]
    assert (wide["kv_dtype"], packed["kv_dtype"]) == ("float32", "int8")
    assert packed["cache"]["physical_bytes"] < 0.4 * wide["cache"]["physical_bytes"]
    assert packed["bytes_read"] < wide["bytes_read"]
    for wrong in (["--kv-dtype", "int3"], ["--kv-dtype", "float32,"]):
        with pytest.raises(SystemExit):
            main([*words, *wrong])
        assert "--kv-dtype is" in capsys.readouterr().err


@pytest.mark.slow
def test_kernels_beside_jax_itself(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "COLD_BYTES", 1)
    plot = tmp_path / "kernels.png"
    main(
        ["kernels", "--ops", "decode,mass", "--heads", "4,2,16", "--contexts", "520,1040", "--runs",
         "1", "--plot", str(plot), "--json"]
    )  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    assert MACHINE | {"copy_bytes_per_s"} < set(report)
    cases = [(row["op"], row["implementation"], row["context"]) for row in report["rows"]]
    dense = "jax.nn.dot_product_attention"
    assert cases == [
        *[("decode", name, slots) for slots in (520, 1040) for name in ("xla", dense)],
        *[("mass", "xla", slots) for slots in (520, 1040)],
    ]
    # Keys and values of two heads, one query and one result of four heads, positions.
    assert report["rows"][0]["bytes"] == 4 * (2 * 2 * 520 * 16 + 2 * 4 * 16 + 520)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_kernels_over_int8_and_over_a_pool(capsys, monkeypatch):
    monkeypatch.setattr(kernels, "COLD_BYTES", 1)
    main(
        ["kernels", "--ops", "decode,pool,mass", "--heads", "4,2,16", "--contexts", "96", "--runs",
         "1", "--int8", "--json"]
    )  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    assert report["int8"] is True
    rows = {row["op"]: row for row in report["rows"] if row["implementation"] == "xla"}
    assert all(row["us"] > 0 for row in report["rows"])
    # Of each token of both heads 16 numbers and a scale; queries and results stay wide.
    keys, wide = 2 * 96 * (16 + 4), 4 * 4 * 16
    assert rows["decode"]["bytes"] == 2 * keys + 2 * wide + 4 * 96
    assert rows["pool"]["bytes"] == 2 * keys + 2 * wide + 2 * 4 * 96, "positions of both heads"
    assert rows["mass"]["bytes"] == keys + 96 * wide + 4 * 96 + 4 * 4 * 96


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["decode", "--int8"], "--int8 is for kernels"),
        (["sprint"], "kernels"),
        (["kernels", "--heads", "9,2,64"], "multiple"),
        (["kernels", "--heads", "9,3"], "32,8,128"),
        (["kernels", "--ops", "decode,sort"], "decode-mass"),
        (["kernels", "--dtype", "int4"], "bfloat16"),
        (["decode", "--contexts", "0"], "1000,6000"),
        (["decode", "--tokens", "3"], "17"),
        (["decode", "--out", "/"], "folder"),
        (["kernels", "--plot", "x.doc"], ".png"),
        (["kernels", "--min-roofline", "1"], "not for kernels"),
    ],
)
def test_wrong_input_is_one_line(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--model", "tiny-random"])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    assert said in err.splitlines()[-1] and "Traceback" not in err


def test_every_timed_prompt_is_a_first_one():
    """What a policy does with a first prompt alone is done, and timed, each time."""
    model = toy.load()
    prompt = runs.random_prompt(model, 90)
    runner = runs.Runner.make(model, KVzip(40, window=8, decode_room=8), prompt, 4, None)
    for _ in range(2):
        runner.prefill()
        layers = runner.session.state.cache.layers
        assert all(int(layer.counts.sum()) > 0 for layer in layers)
    assert len(runner.prefills) == 2
