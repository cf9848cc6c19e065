# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a report of `decode` or `prefill` looks like: time and memory over the context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    figure.set_size_inches(3.4 * len(panels) + 0.4, 3.2 + 0.22 * len(lines))
    for axis, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, mine in lines.items():
            points = [(row["context"], _PANELS[name](row)) for row in mine]
            points = sorted((at, value) for at, value in points if value is not None)
            style = "k--s" if label == PEER else "-o"
            # A line without points keeps the colours of the others the same in all panels.
            axis.plot(*(zip(*points, strict=True) if points else ([], [])), style, label=label)
        axis.set(xlabel="context (tokens)", ylabel=name, xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8)


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by policy, and then those of the peer, once for each context."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(_label(row["policy"], rows), []).append(row)
    theirs = {row["context"]: row[PEER] for row in rows if PEER in row}
    if theirs:
        lines[PEER] = [{"context": context, **row} for context, row in theirs.items()]
    return lines


def _label(policy: Row, rows: Sequence[Row]) -> str:
    """Its name, and where others have the same name, the settings in which they differ."""
    alike = [row["policy"] for row in rows if row["policy"]["name"] == policy["name"]]
    varied = [name for name in policy if any(other[name] != policy[name] for other in alike)]
    return " ".join([policy["name"], *(f"{name}={policy[name]}" for name in varied)])
