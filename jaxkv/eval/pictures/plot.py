# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What results look like: maps, bars, curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxkv.eval.runner.result import Result

Size = tuple[float, float]  # width and height that a drawing wants, in inches


def heat_maps(figure: Any, results: Sequence[Result]) -> Size:
    """A map of length by depth for each policy; `details["cells"]` holds {length: {depth: %}}."""
    axes = np.atleast_1d(figure.subplots(1, len(results), sharey=True))
    image = None
    for axis, result in zip(axes, results, strict=True):
        cells = result.details["cells"]
        lengths = list(cells)
        depths = sorted({depth for row in cells.values() for depth in row}, key=float)
        values = np.array([[cells[x].get(y, np.nan) for x in lengths] for y in depths], float)
        image = axis.imshow(values, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
        for row, column in np.argwhere(np.isfinite(values)):
            axis.text(column, row, f"{values[row, column]:.0f}", ha="center", va="center")
        axis.set_xticks(range(len(lengths)), lengths)
        axis.set_yticks(range(len(depths)), depths)
        axis.set(title=_title(result), xlabel="prompt length (tokens)")
        axis.title.set_fontsize(8)
    axes[0].set_ylabel("depth of the needle (%)")
    figure.colorbar(image, ax=list(axes), label=f"{results[0].task}: answers found (%)")
    return max(6.0, 3.5 * len(results)), 4.0


def bars(figure: Any, results: Sequence[Result]) -> Size:
    """A bar for each policy in each group, and for the score over all."""
    groups = ["all", *dict.fromkeys(name for result in results for name in result.by)]
    axis = figure.subplots()
    width = 0.8 / len(results)
    for index, result in enumerate(results):
        values = [result.score, *(result.by.get(name) for name in groups[1:])]
        heights = [np.nan if value is None else value for value in values]
        offset = (index - (len(results) - 1) / 2) * width
        axis.bar(np.arange(len(groups)) + offset, heights, width, label=result.label)
    axis.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    axis.set(ylabel="answers found (%)", ylim=(0, 105), title=results[0].task)
    axis.legend(fontsize=8)
    return max(5.0, 1.2 * len(groups) + 2.0), 4.0


def trade_off(figure: Any, results: Sequence[Result]) -> Size:
    """Score over physical bytes, and over bytes read per token.

    A line for each policy, a point for each of its settings.
    """
    held, read = figure.subplots(1, 2, sharey=True)
    _curves(held, results, lambda result: result.cache["physical_bytes"])
    _curves(read, results, lambda result: result.details["bytes_read_per_token"])
    held.set(xlabel="cache (MB)", ylabel="score (%)", ylim=(-5, 105))
    read.set(xlabel="keys and values read per token (MB)")
    figure.suptitle(f"{results[0].task}, n = {results[0].n}", fontsize=10)
    held.legend(fontsize=7)
    return 10.0, 4.5


def _curves(axis: Any, results: Sequence[Result], size: Callable[[Result], int]) -> None:
    """A line of score over size for each policy, its settings written beside the points."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for name in dict.fromkeys(result.policy["name"] for result in results):
        mine = sorted((r for r in results if r.policy["name"] == name), key=size)
        sizes = [size(result) / 1e6 for result in mine]
        axis.plot(sizes, [result.score for result in mine], marker="o", label=name)
        for at, result in zip(sizes, mine, strict=True):
            if varied := _varied(result, mine):
                axis.annotate(
                    varied, (at, result.score), textcoords="offset points", xytext=(4, -10),
                    fontsize=6,
                )  # fmt: skip
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def kept_maps(figure: Any, results: Sequence[Result]) -> Size:
    """Tokens kept in each layer and KV head; `details["kept_tokens"]` holds them by layer."""
    columns = min(len(results), 4)
    rows = -(-len(results) // columns)
    axes = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).reshape(-1)
    for axis in axes[len(results) :]:
        axis.set_visible(False)
    most = max(max(map(max, result.details["kept_tokens"])) for result in results)
    image = None
    for axis, result in zip(axes, results, strict=False):
        kept = np.array(result.details["kept_tokens"])
        image = axis.imshow(kept, vmin=0, vmax=most, cmap="viridis", aspect="auto")
        axis.set_xticks(range(kept.shape[1]) if kept.shape[1] <= 16 else [0, kept.shape[1] - 1])
        axis.set(title=_title(result), xlabel="KV head")
        axis.title.set_fontsize(7)
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(axes), label="tokens kept")
    return 3.0 * columns + 2.0, 4.0 * rows


def _title(result: Result) -> str:
    """The policy over two lines: its name, and what is set."""
    name, *fields = result.label.split(" ")
    told = [field for field in fields if not field.endswith(("=None", "=False"))]
    middle = -(-len(told) // 2) if len(told) > 3 else len(told)
    lines = (name, " ".join(told[:middle]), " ".join(told[middle:]))
    return "\n".join(line for line in lines if line)


def _varied(result: Result, among: Sequence[Result]) -> str:
    """The settings in which results of one policy differ."""
    names = [n for n in result.policy if len({str(other.policy[n]) for other in among}) > 1]
    return " ".join(f"{name}={result.policy[name]}" for name in names)
