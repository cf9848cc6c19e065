# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The look of pictures: colours that stay, names that do not overlap, plain numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from jaxkv.cli import style
from jaxkv.policies.registry import POLICIES

SIZES = st.floats(1.0, 20.0)


def test_every_policy_has_a_look_of_its_own() -> None:
    assert style.LOOKS.keys() == POLICIES.keys()
    assert len(set(style.LOOKS.values())) == len(POLICIES)
    assert not set(style.LOOKS.values()) & set(style._REST)


def test_looks_stay_as_they_are() -> None:
    """Pictures of two years are laid beside one another."""
    assert style.look("full") == ("#000000", "o")
    assert style.look("streaming") == ("#0072B2", "o")
    assert style.look("snapkv") == ("#009E73", "o")
    assert style.look("recycled") == ("#0072B2", "D")
    assert style.look("tova") == ("#56B4E9", "o")
    # Of others by their name, whatever else was drawn.
    names = ["mine:KeyDiff", "own-keydiff", "xla", "a", "b"]
    looks = [style.look(name) for name in names]
    assert looks == [style.look(name) for name in reversed(names)][::-1]
    assert style.look("mine:KeyDiff") == ("#000000", "s")
    assert len({style.look(f"policy {index}") for index in range(200)}) > 40


def luminance(colour: str, blindness: np.ndarray) -> np.ndarray:
    """Linear RGB as somebody sees it."""
    linear = np.array([x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4
                       for x in to_rgb(colour)])  # fmt: skip
    return np.clip(blindness @ linear, 0, 1)


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
PROTAN = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]])  # fmt: skip
DEUTAN = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                   [-0.011820, 0.042940, 0.968881]])  # fmt: skip


@pytest.mark.parametrize("blindness", [np.eye(3), PROTAN, DEUTAN], ids=["none", "red", "green"])
def test_colours_differ_to_all_eyes(blindness) -> None:
    colours = sorted({colour for colour, _ in style.LOOKS.values()})
    seen = {colour: luminance(colour, blindness) for colour in colours}
    for one, other in itertools.combinations(colours, 2):
        assert np.abs(seen[one] ** (1 / 2.2) - seen[other] ** (1 / 2.2)).max() > 0.1, (one, other)


def test_settings_of_a_policy_are_kinds_of_line() -> None:
    policies = [{"name": "streaming", "sinks": n, "window": 9} for n in (1, 4)] + [{"name": "full"}]
    one, other, full = style.line_of(policies)
    assert one["color"] == other["color"] and one["marker"] == other["marker"]
    assert one["linestyle"] != other["linestyle"] and full["linestyle"] == one["linestyle"]
    labels = [line["label"] for line in (one, other, full)]
    assert labels == ["streaming sinks=1", "streaming sinks=4", "full"]


@pytest.mark.parametrize(
    ("count", "said"),
    [(512, "512"), (1024, "1k"), (4096, "4k"), (131072, "128k"), (2**20, "1M"), (20000, "20,000"),
     (1000, "1,000"), (1536, "1,536"), (3 * 2**20, "3M")],
)  # fmt: skip
def test_tokens_are_short(count, said) -> None:
    assert style.tokens_text(count) == said


def test_logarithmic_axes_have_plain_numbers() -> None:
    figure = Figure(layout="constrained")
    one, other, near, far = figure.subplots(2, 2).flat
    one.plot([0.5, 60], [1, 2])
    style.plain_log(one, "x")
    far.plot([1, 1e9], [1, 2])
    style.plain_log(far, "x")
    near.plot([18, 55], [1, 2])
    style.plain_log(near, "x")
    other.plot([512, 4096], [1, 2])
    style.token_log(other, [512, 1024, 4096])
    figure.draw_without_rendering()
    shown = [text.get_text() for text in one.get_xticklabels()]
    assert {"0.5", "1", "10", "50"} <= set(shown) and not any("$" in text for text in shown)
    assert {"20", "25", "30", "40", "50"} <= {text.get_text() for text in near.get_xticklabels()}
    assert len(far.get_xticklabels()) < 14
    assert [text.get_text() for text in other.get_xticklabels()] == ["512", "1k", "4k"]


@given(st.lists(st.tuples(st.floats(0, 100), SIZES), min_size=1, max_size=9))
def test_spread_moves_as_little_as_can_be(given_: list[tuple[float, float]]) -> None:
    """No two touch more than they must; each group that touches is about its own middle."""
    wanted = sorted(height for height, _ in given_)
    sizes = [size for _, size in given_]
    heights = style.spread(wanted, sizes)
    gaps = [(a + b) / 2 for a, b in itertools.pairwise(sizes)]
    apart = [b - a for a, b in itertools.pairwise(heights)]
    assert all(have >= need - 1e-6 for have, need in zip(apart, gaps, strict=True))
    groups: list[list[int]] = [[0]]
    for index, (have, need) in enumerate(zip(apart, gaps, strict=True), start=1):
        if have > need + 1e-6:
            groups.append([])
        groups[-1].append(index)
    for group in groups:
        moved = sum(heights[i] - wanted[i] for i in group)
        assert abs(moved) < 1e-6 * max(1, len(group)) * 100


def drawn(ends: list[tuple[float, float]], size=(5.0, 3.2), log: bool = False):
    """An axis with lines that end there, named, as it is drawn."""
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    for index, (x, y) in enumerate(ends):
        axis.plot([x / 4, x / 2, x], [y / 3, y / 2, y], marker="o", label=f"policy-{index} a=12")
    if log:
        style.plain_log(axis, "x")
    axis.set(ylim=(-4, 104), xlabel="x", ylabel="y")
    style.dress(axis)
    style.name_lines(axis)
    figure.draw_without_rendering()
    return figure, axis


CASES = {
    "all at one height": [(10.0, 100.0)] * 8,
    "near": [(10.0, 50.0 + index) for index in range(8)],
    "far": [(10.0, 12.0 * index) for index in range(8)],
    "two heaps": [(10.0, 3.0), (10.0, 3.0), (10.0, 3.0), (10.0, 99.0), (10.0, 98.0)],
    "ends within": [(10.0, 60.0), (4.0, 60.0), (4.1, 61.0), (3.9, 40.0), (5.0, 20.0)],
    "all within one place": [(10.0, 60.0)] + [(4.0, 40.0)] * 6,
    "one": [(10.0, 0.0)],
}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("ends", CASES.values(), ids=CASES)
def test_names_do_not_overlap(ends, log) -> None:
    figure, axis = drawn(ends, log=log)
    boxes = [Text.get_window_extent(text) for text in axis.texts]
    assert len(boxes) == len(ends) and axis.get_legend() is None
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other), (one, other)
    page = figure.bbox
    for box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    for text, line in zip(axis.texts, axis.lines, strict=True):
        assert text.get_text() == line.get_label()


def test_names_stand_in_the_order_of_the_ends() -> None:
    _, axis = drawn([(10.0, 50.0 - index) for index in range(8)])
    heights = [Text.get_window_extent(text).y0 for text in axis.texts]
    assert heights == sorted(heights, reverse=True)


def test_a_line_that_leaves_is_named_where_it_does() -> None:
    figure = Figure(figsize=(5, 3), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1, 2], [0, 10, 200], label="leaves")
    axis.plot([0, 1, 2], [0, 5, 8], label="stays")
    axis.set_ylim(0, 20)
    style.name_lines(axis)
    figure.draw_without_rendering()
    leaves, _ = axis.texts
    np.testing.assert_allclose(leaves.xy, (1 + 10 / 190, 20), rtol=1e-3)


def test_many_lines_have_a_legend() -> None:
    _, axis = drawn([(10.0, 10.0 * index) for index in range(9)])
    assert not axis.texts and len(axis.get_legend().get_texts()) == 9


def test_what_has_no_number_has_no_name() -> None:
    figure = Figure(layout="constrained")
    axis = figure.subplots()
    axis.plot([1, 2], [np.nan, np.nan], label="nothing")
    axis.plot([1, 2], [1, np.nan], label="something")
    style.name_lines(axis)
    figure.draw_without_rendering()
    assert [text.get_text() for text in axis.texts] == ["something"]
