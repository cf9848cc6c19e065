# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A picture of how a training went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkv.cli import style
from jaxkv.cli.figures import save_picture

_POINTS = 200  # of a line: each is the mean of the steps since the one before


def draw_losses(figure: Any, report: Mapping[str, Any]) -> None:
    """Draws the loss over the steps, and what it was on the text that is held out.

    Args:
      figure: a `matplotlib.figure.Figure`.
      report: of a training.
    """
    figure.set_size_inches(7.0, 4.5)
    axis, losses = figure.subplots(), np.asarray(report["losses"])
    parts = np.array_split(np.arange(1, len(losses) + 1), min(_POINTS, len(losses)))
    line = [(part[-1], losses[part - 1].mean()) for part in parts]
    axis.plot(*zip(*line, strict=True), color=style.BLUE, label="training")
    held = [(point["step"], point["loss"]) for point in report["validation"]]
    axis.plot(*zip(*held, strict=True), "o", **style.POINTS, color=style.RED, label="held out")
    name, tokens = report["policy"]["name"], report["tokens"]
    axis.set(
        xlabel="step", ylabel="loss (nats a token)", xlim=(0, None),
        title=f"{report['attention']}, {report['parameters'] / 1e6:.1f}M parameters, "
        f"{tokens / 1e6:.3g}M tokens under {name}",
    )  # fmt: skip
    style.dress(axis)
    axis.legend(fontsize=style.NAME_SIZE, frameon=False)


def save_losses(path: str, report: Mapping[str, Any]) -> None:
    """Draws a training to a file."""
    save_picture(path, lambda figure: draw_losses(figure, report))
