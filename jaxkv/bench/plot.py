# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a report of `decode` or `prefill` looks like: time and memory over the context."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxkv.cli.style import GREY, POINTS, dress, line_of, name_once

Row = Mapping[str, Any]

PEER = "transformers"
_PANELS: Mapping[str, Callable[[Row], float | None]] = {
    "step (ms)": lambda row: row.get("step_ms"),
    "prefill (s)": lambda row: row.get("prefill_s"),
    "cache (MB)": lambda row: row["cache"]["physical_bytes"] / 1e6 if "cache" in row else None,
}


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """A panel for each measure that the rows have, a line for each policy and one for the peer."""
    lines = _lines(rows)
    panels = [name for name, of in _PANELS.items() if any(of(row) is not None for row in rows)]
    figure.set_size_inches(3.6 * len(panels) + 1.2, 3.6)
    figure.suptitle("time (medians) and memory over the length of the context", fontsize=10)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, name in zip(axes, panels, strict=True):
        for style, mine in lines:
            points = [(row["context"], _PANELS[name](row)) for row in mine]
            points = sorted((at, value) for at, value in points if value is not None)
            axis.plot(*(zip(*points, strict=True) if points else ([], [])), **style)
        axis.set(xlabel="context (tokens)", ylabel=name, xlim=(0, None), ylim=(0, None))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        dress(axis)
    name_once(list(axes))


def _lines(rows: Sequence[Row]) -> list[tuple[dict[str, Any], list[Row]]]:
    """How each policy's line looks, and its rows; then the peer's, once for each context."""
    policies = {json.dumps(row["policy"]): row["policy"] for row in rows}
    lines = [
        (style, [row for row in rows if row["policy"] == policy])
        for style, policy in zip(line_of(list(policies.values())), policies.values(), strict=True)
    ]
    theirs = {row["context"]: row[PEER] for row in rows if PEER in row}
    if theirs:
        style = dict(POINTS, color=GREY, marker="s", linestyle="--", label=PEER)
        lines.append((style, [{"context": context, **row} for context, row in theirs.items()]))
    return lines
