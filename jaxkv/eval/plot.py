# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Drawing on a figure of one's own: no display, and none of matplotlib's global state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkv.eval.result import Result
from jaxkv.files import whole_file


def save(path: str, draw: Callable[[Any], None]) -> None:
    """Draws, and writes the file whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    draw(figure)
    with whole_file(path) as part:
        figure.savefig(part, format=Path(path).suffix.lower().lstrip("."), dpi=150)


def heat_maps(figure: Any, results: Sequence[Result]) -> None:
    """A map of length by depth for each policy; `details["cells"]` holds {length: {depth: %}}."""
    figure.set_size_inches(max(6.0, 4.5 * len(results)), 4.0)
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
        axis.set(title=result.label, xlabel="prompt length (tokens)")
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("depth of the needle (%)")
    figure.colorbar(image, ax=list(axes), label=f"{results[0].task}: answers found (%)")


def bars(figure: Any, results: Sequence[Result]) -> None:
    """A bar for each policy in each group, and for the score over all."""
    groups = ["all", *dict.fromkeys(name for result in results for name in result.by)]
    figure.set_size_inches(max(5.0, 1.2 * len(groups) + 2.0), 4.0)
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
