# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures as files: no display, and none of matplotlib's global state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxkv.core.errors import InputError
from jaxkv.core.files import check_target, whole_file
from jaxkv.core.optional import require

FORMATS = ("png", "pdf", "svg")


def check_picture(flag: str, name: str) -> None:
    """Before the work: a picture that cannot be written should not cost an hour first.

    Raises:
      InputError: the ending is not that of a format, a folder is there, or matplotlib is not.
    """
    path = Path(name)
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise InputError(f"{flag} {name} must end in {' or '.join('.' + f for f in FORMATS)}")
    check_target(flag, name)
    require("matplotlib", "plots", flag)


def save_picture(path: str, draw: Callable[[Any], None]) -> None:
    """Draws on a figure of its own, and writes the file whole or not at all."""
    require("matplotlib", "plots", f"drawing {path}")
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    draw(figure)
    with whole_file(path) as part:
        figure.savefig(part, format=Path(path).suffix.lower().lstrip("."), dpi=150)
