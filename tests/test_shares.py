# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables of shares: what is written is read, and what is wrong is one line."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import policy_cases
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from jaxkv import InputError, SnapKV
from jaxkv.decode.__main__ import main as decode
from jaxkv.policies.shares import head_shares, save_shares

TOY = dataclasses.replace(toys.geometry(), model="this one")
GOOD = {
    "format": "jaxkv.shares",
    "model": "this one",
    "ratios": [0.1, 0.5, 1],
    "shares": [[[0.25, 1.75], [1.2, 0.8]], [[0.5, 1.0], [1.5, 1.0]], [[1, 1], [1, 1]]],
}


def written(path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_shares_lie_between_those_of_the_ratios(tmp_path) -> None:
    path, tables = written(tmp_path / "a", GOOD), np.array(GOOD["shares"])
    for kept, expected in {
        0.1: tables[0],
        0.2: 0.75 * tables[0] + 0.25 * tables[1],
        0.5: tables[1],
        0.9: 0.2 * tables[1] + 0.8 * tables[2],
        1.0: tables[2],
        0.001: tables[0],  # beyond the ends
        7.0: tables[2],
    }.items():
        np.testing.assert_allclose(head_shares(path, kept, TOY), expected)
    one = written(tmp_path / "b", {**GOOD, "ratios": [0.3], "shares": GOOD["shares"][:1]})
    np.testing.assert_allclose(head_shares(one, 0.9, TOY), tables[0])


def test_layers_with_a_window_of_their_own_take_no_part(tmp_path) -> None:
    path = written(tmp_path / "a", GOOD)
    windows = dataclasses.replace(TOY, windows=(0, 6))
    assert head_shares(path, 0.1, windows)[0].tolist() == [0.25, 1.75]
    assert head_shares(path, 0.5, windows)[0] == pytest.approx([2 / 3, 4 / 3])
    policy = SnapKV(20, window=2, kernel=3, decode_room=0, allocation="table", table=path)
    assert sum(policy.at(0, windows).caps) == 2 * 18
    nothing = {**GOOD, "ratios": [0.1], "shares": [[[0, 0], [2, 2]]]}
    with pytest.raises(InputError, match="gives nothing to the layers"):
        head_shares(written(tmp_path / "b", nothing), 0.1, windows)


@given(st.lists(st.floats(0.01, 100), min_size=8, max_size=8))
def test_what_is_saved_is_read(tmp_path_factory, values) -> None:
    path = tmp_path_factory.mktemp("shares") / "a.json"
    shares = np.array(values).reshape(2, 2, 2)
    save_shares(path, [0.25, 0.75], shares, "this one", {"seed": 3})
    for kept, table in zip((0.25, 0.75), shares, strict=True):
        np.testing.assert_allclose(head_shares(str(path), kept, TOY), table / table.mean(), 1e-5)
    assert json.loads(path.read_text())["seed"] == 3


def changed(**fields):
    return {**GOOD, **fields}


def with_first(value):
    """The good tables, but for one number."""
    text = json.dumps(GOOD)
    assert text.count("0.25") == 1
    return text.replace("0.25", value)


BAD = {
    "truncated": (json.dumps(GOOD)[:-9], "is not JSON"),
    "a list": ("[1]", "must hold a JSON object"),
    "deep": ("[" * 100_000, "is not JSON"),
    "scores": ({"format": "jaxkv.headkv", "scores": []}, "is no table of shares: its format is"),
    "no format": ({"ratios": [0.5]}, "is no table of shares"),
    "another model": (changed(model="other"), "made for a model of 'other', this one is 'this one"),
    "a model that is no text": (changed(model=["this one"]), "made for a model of"),
    "no ratios": (changed(ratios=[], shares=[]), "ratios must be rising numbers"),
    "ratios that are none": (changed(ratios=0.5), "ratios must be rising numbers"),
    "ratios of text": (changed(ratios=["0.1", "0.5", "1"]), "ratios must be rising numbers"),
    "ratios that fall": (changed(ratios=[0.1, 1, 0.5]), "ratios must be rising numbers"),
    "a ratio twice": (changed(ratios=[0.1, 0.5, 0.5]), "ratios must be rising numbers"),
    "a ratio of 0": (changed(ratios=[0, 0.5, 1]), "above 0 and at most 1"),
    "a ratio in percent": (changed(ratios=[0.1, 0.5, 100]), "above 0 and at most 1"),
    "a ratio of NaN": (changed(ratios=[0.1, float("nan"), 1]), "ratios must be rising numbers"),
    "a ratio of true": (changed(ratios=[0.1, 0.5, True]), "ratios must be rising numbers"),
    "a table missing": (changed(ratios=[0.1, 0.5]), "a table for each of the ratios"),
    "no tables": (changed(shares=None), "a table for each of the ratios"),
    "a layer missing": (
        changed(ratios=[0.5], shares=[[[1, 1]]]),
        "ratio 0.5, is for 1 layers of .* the model has 2 layers of 2",
    ),
    "query heads": (
        changed(ratios=[0.5], shares=[[[1] * 4] * 2]),
        r"is for 2 layers of \[4\] KV heads; the model has 2 layers of 2",
    ),
    "ragged": (changed(ratios=[0.5], shares=[[[1, 1], [1]]]), "the model has 2 layers of 2"),
    "flat": (changed(ratios=[0.5], shares=[[1, 1, 1, 1]]), "must hold a list of numbers for each"),
    "NaN": (with_first("NaN"), "ratio 0.1, holds something that is not a finite number"),
    "infinite": (with_first("Infinity"), "not a finite number"),
    "true": (with_first("true"), "not a finite number"),
    "a text": (with_first('"0.25"'), "not a finite number"),
    "below zero": (with_first("-0.25"), "ratio 0.1, has shares below 0"),
    "huge": (with_first("1" + "0" * 400), "not a finite number"),
    "endless": (with_first("1" + "0" * 9999), "is not JSON"),
    "large": (with_first("1e29"), r"shares of mean 2.5e\+28; it must be 1"),
    "tokens": (with_first("25"), "shares of mean 7.1875; it must be 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_one_line(name, tmp_path) -> None:
    content, says = BAD[name]
    path = written(tmp_path / "a.json", content)
    policy = SnapKV(8, window=2, kernel=3, allocation="table", table=path)
    with pytest.raises(InputError, match=says) as error:
        policy.at(0, TOY)
    assert "\n" not in str(error.value) and str(error.value).startswith("table ")


def test_a_missing_table_is_one_line(tmp_path, capsys) -> None:
    policy = SnapKV(8, window=2, kernel=3, allocation="table", table=str(tmp_path / "none"))
    with pytest.raises(InputError, match="none is missing"):
        policy.at(0, TOY)
    words = ["--model", "tiny-random", "--prompt", "hello", "--policy", "snapkv"]
    for more, said in (
        (["--policy.allocation", "table"], "--policy.table is not given; allocation 'table' needs"),
        (["--policy.allocation", "whole"], "--policy.allocation is 'whole'; it must be uniform"),
        (["--policy.table", "x.json"], "--policy.table is 'x.json', which is for allocation 'tab"),
        (
            ["--policy.allocation", "table", "--policy.table", policy_cases.SHARES],
            "is for 2 layers of [2] KV heads; the model has 3 layers of 2",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            decode([*words, *more])
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and out == "" and said in err.splitlines()[-1]


def curve(change=lambda pruned: pruned) -> np.ndarray:
    """As LU-KV's: for each percentage that goes, what goes of each head."""
    percent = np.arange(1, 100)[:, None, None] / 100
    lean = np.array([[0.3, -0.3], [0.1, -0.1]]) * percent * (1 - percent)
    return change((percent + lean).astype(np.float32))


@pytest.mark.parametrize("kept", [0.01, 0.25, 0.5, 0.99])
def test_lu_kvs_curves_say_what_goes(tmp_path, kept) -> None:
    path = tmp_path / "curve.npy"
    np.save(path, curve())
    goes = 1 - kept
    of_heads = 1 - goes - np.array([[0.3, -0.3], [0.1, -0.1]]) * goes * kept
    np.testing.assert_allclose(head_shares(str(path), kept, TOY), of_heads / kept, rtol=1e-4)
    policy = SnapKV(24, window=4, sinks=4, decode_room=0, allocation="table", table=str(path))
    assert sum(sum(policy.at(layer, TOY).caps) for layer in (0, 1)) == 4 * 20


@pytest.mark.parametrize(
    "change, told",
    [
        (
            lambda x: x[:98],
            r"shape \(98, 2, 2\); for this model LU-KV's files are \(99, 2, 2\)",
        ),
        (lambda x: x * 2, "not a share from 0 to 1"),
        (lambda x: x * np.nan, "not a share from 0 to 1"),
        (lambda x: np.ones_like(x), "keeps nothing of any head"),
        (lambda x: x.astype(str), "not a share from 0 to 1"),
        (lambda x: x.astype(object), "is no NumPy array"),
    ],
)
def test_curves_that_are_none_are_refused(tmp_path, change, told) -> None:
    path = tmp_path / "curve.npy"
    np.save(path, curve(change), allow_pickle=True)
    with pytest.raises(InputError, match=told):
        head_shares(str(path), 0.5, TOY)


def test_curves_that_are_not_there_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        head_shares(str(tmp_path / "no.npy"), 0.5, TOY)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'")
    with pytest.raises(InputError, match="is no NumPy array"):
        head_shares(str(tmp_path / "cut.npy"), 0.5, TOY)
