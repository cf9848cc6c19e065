# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory over the context: a line a policy, and a level a chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxkv.layers.base import Policy
from jaxkv.models.mesh import device_bytes
from jaxkv.plan.chips import Chip
from jaxkv.plan.estimate import Setting

_LENGTHS = [2**power for power in range(10, 25)]
# Of Okabe and Ito: told apart by everyone.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"


def memory_over_context(
    setting: Setting, policy: Policy, chips: Sequence[Chip]
) -> list[tuple[int, int]]:
    """(tokens, bytes of weights and cache), up to just above the largest chip."""
    weights, most = device_bytes(setting.params), max(chip.memory for chip in chips)
    points = []
    for tokens in _LENGTHS:
        points.append((tokens, weights + setting.cache_bytes(policy, tokens)))
        if points[-1][1] > most:
            break
    return points


def draw(figure: Any, report: Mapping[str, Any]) -> None:
    """On a figure of matplotlib's."""
    from matplotlib.ticker import FuncFormatter

    figure.set_size_inches(7.2, 4.2)
    axis = figure.subplots()
    chips = report["chips"]
    most = max(chip["memory_bytes"] for chip in chips.values()) / 1e9
    top = 1.15 * most
    staying, leaving = [], []  # lines by where they end: at the right, or beyond the chips
    for index, curve in enumerate(report["curves"]):
        tokens, sizes = zip(*curve["points"], strict=True)
        colour = _COLOURS[index % len(_COLOURS)]
        marker = _MARKERS[index % len(_MARKERS)]
        sizes = [size / 1e9 for size in sizes]
        axis.plot(tokens, sizes, color=colour, marker=marker, markersize=4)
        named = curve["label"], colour
        if sizes[-1] > most:
            leaving.append((tokens[-1], -sizes[-1], *named))
        else:
            staying.append((sizes[-1], *named))
    for name, chip in chips.items():
        axis.axhline(chip["memory_bytes"] / 1e9, color="0.45", linestyle="--", linewidth=1)
        axis.annotate(
            name, (_LENGTHS[0], chip["memory_bytes"] / 1e9), xytext=(2, 3),
            textcoords="offset points", color="0.35", fontsize=8,
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set(
        ylim=(0, top), xlabel="context (tokens)", ylabel="weights and cache (GB)",
        title=f"{report['model']}: weights {report['weights']}, cache {report['kv_dtype']}",
    )  # fmt: skip
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axis.set_xticks([2**power for power in range(10, 25, 2)])
    axis.tick_params(axis="x", rotation=30)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    apart, lowest = 0.055 * top, 0.0
    for size, name, colour in sorted(staying):
        lowest = max(size, lowest)
        _name(axis, lowest, name, colour)
        lowest += apart
    for place, (*_, name, colour) in enumerate(sorted(leaving)):  # who leaves first is above
        _name(axis, top - apart * (place + 0.5), name, colour)


def _name(axis: Any, height: float, name: str, colour: str) -> None:
    axis.annotate(
        name, (1.01, height), xycoords=axis.get_yaxis_transform(), color=colour, fontsize=9,
        va="center", annotation_clip=False,
    )  # fmt: skip
