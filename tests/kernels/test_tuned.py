# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Block sizes kept as data: looked up by case, written by `bench kernels --tune`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.bench import kernels, tune
from jaxkv.bench.__main__ import main
from jaxkv.bench.kernels import OPS, Shapes
from jaxkv.core.errors import InputError
from pallas_kernels import prefill_attention, tuned

CASE = dict(op="prefill", implementation="xla", dtype="float32", head_dim=8, group=2)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    return tmp_path


def keep(*rows: dict[str, Any]) -> None:
    file = tuned.file_of(tuned.device_kind())
    file.write_text(json.dumps({"rows": [{**CASE, **row} for row in rows]}), encoding="utf-8")


def look_up(**other: Any) -> int | None:
    return tuned.max_block(**{**CASE, "slots": 1000, **other})


def test_a_file_is_named_after_its_kind_of_device() -> None:
    assert tuned.file_of("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3.json"
    assert tuned.file_of("TPU v5 lite").name == "tpu-v5-lite.json"


def test_nothing_is_known_without_a_file() -> None:
    assert look_up() is None


def test_the_nearest_length_counts_up_to_a_factor_of_four() -> None:
    keep({"slots": 1024, "block": 128}, {"slots": 8192, "block": 512})
    assert look_up(slots=1000) == 128
    assert look_up(slots=2800) == 128 and look_up(slots=3000) == 512  # by their ratios
    assert look_up(slots=256) == 128 and look_up(slots=255) is None
    assert look_up(slots=32768) == 512 and look_up(slots=32769) is None


@pytest.mark.parametrize(
    "other",
    [{"op": "mass"}, {"implementation": "mosaic_gpu"}, {"dtype": "int8"}, {"head_dim": 16},
     {"group": 1}],
)  # fmt: skip
def test_a_case_must_be_the_same_in_all_else(other: dict[str, Any]) -> None:
    keep({"slots": 1024, "block": 128})
    assert look_up() == 128
    assert look_up(**other) is None


def test_what_was_measured_is_what_a_program_takes() -> None:
    q, k = jnp.ones((1, 4, 4, 8)), jnp.ones((1, 2, 96, 8))
    q_pos, k_pos = jnp.full((1, 4), 96), jnp.arange(96)[None, None]

    def attend(q, k, v):
        return prefill_attention(q, k, v, q_pos, k_pos, scale=1.0, implementation="xla")

    def slices(size: int) -> int:
        """How often as many slots of a slab are taken."""
        fresh = functools.partial(attend)  # or what was traced before would come again
        return str(jax.make_jaxpr(fresh)(q, k, k)).count(f"slice_sizes=(1, 2, {size}, 8)")

    plain = attend(q, k, k)
    assert slices(96) and not slices(32)
    keep({"slots": 96, "block": 32})
    tuned.read.cache_clear()
    assert slices(32) and not slices(96)
    for one, other in zip(attend(q, k, k), plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[int | None, float]:
    """Seconds of each block, instead of measured ones."""
    times: dict[int | None, float] = {}
    monkeypatch.setattr(tune, "_times", lambda *args: dict(times))
    return times


def run(slots: int) -> dict[str, Any]:
    shapes = Shapes(heads=4, kv_heads=2, head_dim=8, dtype="float32")
    result = tune.tune(shapes, ["prefill"], [slots], 1, lambda *args: None)
    return {**result, "jax": jax.__version__, "date": "2026-01-01", "command": "here"}


def test_the_fastest_block_is_kept_and_other_cases_stay(timed, folder: Path) -> None:
    timed.update({None: 3.0, 128: 1.0, 256: 2.0})
    file = tune.write(run(1024))
    assert file.parent == folder
    tune.write(run(64))
    assert look_up(slots=1024) == 128 and look_up(slots=64) == 128
    timed.update({256: 0.5})
    tune.write(run(64))
    assert look_up(slots=1024) == 128 and look_up(slots=64) == 256
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [row["slots"] for row in rows] == [64, 1024]
    assert rows[0]["us"] == 5e5 and rows[0]["before_us"] == 3e6
    # What is in force is timed as None: once kept, nothing else is faster, and it stays.
    timed.clear()
    timed.update({None: 0.5, 128: 1.0, 256: 0.5})
    tune.write(run(64))
    assert look_up(slots=64) == 256 and look_up(slots=1024) == 128


def test_what_is_not_served_cannot_be_tuned(timed) -> None:
    with pytest.raises(InputError, match="prefill"):
        run(1024)


def test_what_is_in_force_is_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning twice keeps what it found the first time."""
    monkeypatch.setattr(kernels, "COLD_BYTES", 1)
    monkeypatch.setattr(tune, "CANDIDATES", {"xla": (32,)})
    shapes = Shapes(heads=4, kv_heads=2, head_dim=8, dtype="float32")
    asked: list[int | None] = []
    look = tuned.max_block
    monkeypatch.setattr(tuned, "max_block", lambda *a: asked.append(look(*a)) or asked[-1])
    keep({"slots": 64, "block": 32})
    tuned.read.cache_clear()
    tune._times("prefill", "xla", shapes, 64, 1)
    assert set(asked) == {32}


def test_every_block_is_timed_and_all_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "COLD_BYTES", 1)
    shapes = Shapes(heads=4, kv_heads=2, head_dim=8, dtype="float32")
    times = tune._times("mass", "xla", shapes, 256, 1)
    assert sorted(times, key=str) == [128, 256, None] and min(times.values()) > 0
    op = OPS["mass"]
    args = tune.arguments(op.queries, shapes, 256)
    calls = [functools.partial(op.implementations["xla"], max_block=x) for x in (None, 128)]
    one, other = (op.call(call, args[0], *args[1][:2], *args[2:]) for call in calls)
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_the_command_tells_what_is_kept(capsys, timed, folder: Path) -> None:
    timed.update({None: 3.0, 128: 1.0})
    words = ["kernels", "--contexts", "256", "--ops", "prefill", "--heads", "4,2,8", "--tune"]
    main(words)
    out = capsys.readouterr().out
    file = tuned.file_of(tuned.device_kind())
    assert "128" in out and file.name in out.replace("\n", "")
    row = json.loads(file.read_text(encoding="utf-8"))["rows"][0]
    assert row["command"] == f"python -m jaxkv.bench {' '.join(words)}"
    assert (row["block"], row["slots"], row["group"]) == (128, 256, 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["decode", "--tune"], "--tune is for kernels"),
        (["decode", "--ops", ""], "--ops is for kernels"),
        (["kernels", "--ops", "decode", "--contexts", "64", "--tune"], "nothing here has blocks"),
        (["kernels", "--tune", "--plot", "x.png"], "--plot draws what is measured without --tune"),
    ],
)
def test_where_it_has_no_meaning(words: list[str], says: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and says in capsys.readouterr().err
