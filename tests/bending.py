# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Right files bent out of shape: strategies for hypothesis."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

# What stands where something else was expected. Text in RAW is put in as JSON has it.
RAW = {
    "@digits@": "9" * 5000,
    "@minus@": "-" + "9" * 5000,
    "@deep@": "[" * 5000 + "]" * 5000,
    "@deeper@": '{"a":' * 3000 + "1" + "}" * 3000,
    "@nan@": "NaN",
    "@inf@": "-Infinity",
    "@half@": '"\\ud800"',
    "@long@": json.dumps("x" * 100_000),
    "@exponent@": "1e999",
}
values = st.one_of(
    st.sampled_from(
        [
            None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**31 - 1, 2**63, -(2**63), 10**30,
            0.0, -0.5, 1e-30, 1e308, 1.5, "", " ", "a\0b", "\x1b[2J", "☃" * 50, "../x", "/dev/zero",
            [], {}, [[]], [None], {"a": None}, [1, 2, 3], ["a", 1], [[1, 2], [3]], {"type": "x"},
            *RAW,
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
).map(copy.deepcopy)  # fmt: skip


class Right:
    """What is bent; a failing example does not print it."""

    def __init__(self, value: Any):
        self.value = value


def paths_of(value: Any, at: tuple = ()) -> list[tuple]:
    """Every place in plain data, few of each long list."""
    found = [at]
    if isinstance(value, dict):
        keys = list(value)
        for key in keys[:40] + keys[-3:]:
            found += paths_of(value[key], (*at, key))
    elif isinstance(value, list):
        for index in [*range(min(len(value), 3)), *range(max(len(value) - 1, 3), len(value))]:
            found += paths_of(value[index], (*at, index))
    return found


@st.composite
def bent_json(draw: Any, right: Right) -> bytes:
    """A JSON text with one to three things wrong with it."""
    value = copy.deepcopy(right.value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths_of(value)))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                value = draw(values)
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        what = draw(st.sampled_from(["replace", "replace", "delete", "add", "rename"]))
        if what == "delete":
            del holder[path[-1]]
        elif what == "replace" or isinstance(holder, list):
            holder[path[-1]] = draw(values)
        elif what == "add":
            holder[draw(st.text(max_size=5))] = draw(values)
        else:
            holder[draw(st.text(max_size=5))] = holder.pop(path[-1])
    text = json.dumps(value)
    for mark, raw in RAW.items():
        text = text.replace(json.dumps(mark), raw)
    return draw(bent_bytes(Right(text.encode()), often=False))


@st.composite
def bent_bytes(draw: Any, right: Right, often: bool = True, begin: int = 4096) -> bytes:
    """A file that is cut short, overwritten, or filled with more; mostly near its beginning."""
    data = right.value
    kinds = ["flip", "cut", "insert", "zero", "ones", "repeat"]
    for _ in range(draw(st.integers(1, 4)) if often else draw(st.integers(-8, 1))):
        kind = draw(st.sampled_from(kinds))
        near = draw(st.booleans())
        at = draw(st.integers(0, max(len(data) - 1, 0) if not near else min(len(data), begin)))
        size = draw(st.sampled_from([1, 1, 2, 4, 8, 64]))
        if kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + draw(st.binary(max_size=9)) + data[at:]
        elif kind == "repeat":
            data = data[:at] + data[at : at + size] * 3 + data[at + size :]
        elif at < len(data):
            new = {"zero": bytes(size), "ones": b"\xff" * size}.get(kind)
            new = new or bytes([data[at] ^ (1 << draw(st.integers(0, 7)))])
            data = data[:at] + new + data[at + len(new) :]
    return data
