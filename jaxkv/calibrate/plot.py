# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A picture of one number for each head of each layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkv.cli.figures import save_picture
from jaxkv.cli.style import MAP


def draw_heads(figure: Any, values: np.ndarray, title: str, label: str) -> None:
    """Draws a matrix, a row a layer and a column a head, with a colour bar.

    Args:
      figure: a `matplotlib.figure.Figure`.
      values: [L, heads]; colours go from 0 to 1, or to the largest value if that is not in between.
      title: above the picture.
      label: what the numbers are, beside the colour bar.
    """
    layers, heads = values.shape
    figure.set_size_inches(
        min(max(4.0, 0.3 * heads + 2.5), 12.0), min(max(3.0, 0.2 * layers), 12.0)
    )
    axis = figure.subplots()
    top = float(values.max())
    image = axis.imshow(
        values, vmin=0.0, vmax=1.0 if top <= 1.0 else top, cmap=MAP, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    axis.set(xlabel="head", ylabel="layer", title=title)
    axis.title.set_fontsize(9)
    for marks, count in ((axis.xaxis, heads), (axis.yaxis, layers)):
        marks.set_major_locator(_whole_numbers(count))
    figure.colorbar(image, ax=axis, label=label)


def save_heads(path: str, values: np.ndarray, title: str, label: str) -> None:
    """Draws a matrix of heads to a file."""
    save_picture(path, lambda figure: draw_heads(figure, values, title, label))


def _whole_numbers(count: int) -> Any:
    """Ticks at indices, at most sixteen."""
    from matplotlib.ticker import MultipleLocator

    return MultipleLocator(max(1, -(-count // 16)))
