# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation gave, to look at: rows, a table, pictures, a report."""

from __future__ import annotations

import dataclasses
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkv.cli.style import apart
from jaxkv.core.errors import InputError
from jaxkv.core.files import check_target
from jaxkv.eval.pictures.plot import check_kind, draw_kind, draw_on
from jaxkv.eval.runner.report import write_report
from jaxkv.eval.runner.result import TEXTS, Result, cell, finite, table
from jaxkv.policies.registry import budget_of

SHOWN = 12  # rows of a table, where something is to be looked at


@dataclasses.dataclass(frozen=True, repr=False)
class Results:
    """Results of a task, one for each policy and size; a part of them by its index or a slice.

    Attributes:
      task: its name.
      model: the model's.
      command: what made them.
      found: them.
    """

    task: str
    model: str
    command: str
    found: tuple[Result, ...]

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int | slice) -> Results:
        part = self.found[index]
        return dataclasses.replace(self, found=part if isinstance(part, tuple) else (part,))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Plain data for statistics: scores, each with all that it depends on.

        A row a policy, length and depth where the task has these; else a row a policy, with the
        scores of groups under "by." and their names. "policy" is its name, "settings" are the rest
        of it, "budget" its tokens a head; "query" is "aware", "agnostic" or None; sizes are bytes.
        """
        return [row for result in self.found for row in _rows(result)]

    @property
    def table(self) -> list[dict[str, Any]]:
        """The command's table: a row a policy, by the names of columns; sizes are MB."""
        return table(self.found)

    def to_pandas(self) -> Any:
        """`rows` as a `pandas.DataFrame`.

        Raises:
          InputError: pandas is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
        except ImportError:
            raise InputError(
                "to_pandas needs pandas, which is not installed; pip install pandas, or use .rows"
            ) from None
        return pandas.DataFrame(self.rows)

    def to_json(self) -> str:
        """What the command prints with --json: an object, or a list of them."""
        objects = [result.as_json() for result in self.found]
        return json.dumps(objects if len(objects) > 1 else objects[0])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a report with the machine, versions and date, whole or not at all.

        Raises:
          InputError: the path does not end in .json, or cannot be written.
        """
        if Path(path).suffix != ".json":
            raise InputError(f"path is {os.fspath(path)!r}; it must end in .json")
        check_target("path", os.fspath(path))
        write_report(Path(path), self.model, self.command, self.found)

    def plot(self, kind: str, ax: Any = None) -> Any:
        """Draws a picture.

        Args:
          kind: "tradeoff" (score over bytes), "heat" (score by length and depth), "kept" (tokens
            that each head keeps), "curve" (over the position in a stream) or "bars" (of groups).
          ax: matplotlib axes to draw into, several where a picture has a map a policy. None makes
            a figure, which a notebook shows.

        Returns:
          The axes, or a list of several; `.figure.savefig(path)` writes it.

        Raises:
          InputError: in one line, what is wrong and what is allowed.
        """
        check_kind(kind, self.found)
        if ax is None:
            import matplotlib.pyplot

            figure = matplotlib.pyplot.figure(layout="constrained")
            axes = draw_kind(figure, kind, self.found)
        else:
            axes = _flat(ax)
            draw_on(axes, kind, self.found)
        return axes if len(axes) > 1 else axes[0]

    def __repr__(self) -> str:
        rows = [[cell(value) for value in row.values()] for row in self._shown()]
        names = list(self._shown()[0])
        widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
        lines = [
            "  ".join(
                text.ljust(width) if name in TEXTS else text.rjust(width)
                for name, text, width in zip(names, texts, widths, strict=True)
            ).rstrip()
            for texts in (names, *rows)
        ]
        return "\n".join([self._title(), *lines, *self._rest()])

    def _repr_html_(self) -> str:
        """A notebook's."""
        shown = self._shown(groups=True)

        def line(tag: str, values: Sequence[Any]) -> str:
            sides = ["left" if name in TEXTS else "right" for name in shown[0]]
            return "".join(
                f'<{tag} style="text-align: {side}">{html.escape(cell(value))}</{tag}>'
                for side, value in zip(sides, values, strict=True)
            )

        head = line("th", list(shown[0]))
        body = "".join(f"<tr>{line('td', list(row.values()))}</tr>" for row in shown)
        rest = "".join(f"<p>{html.escape(text)}</p>" for text in self._rest())
        return (
            f"<p>{html.escape(self._title())}</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"
        )

    def _title(self) -> str:
        count = len(self.found)
        return f"{self.task} of {self.model}: {count} row{'s' if count > 1 else ''}"

    def _shown(self, groups: bool = False) -> list[dict[str, Any]]:
        """Rows of the table that are looked at, with short names, and groups if they are few."""
        first = self.found[:SHOWN]
        few = groups and len({name for result in first for name in result.by}) <= 6
        names = apart([result.policy for result in self.found])
        rows = [dict(row) for row in table(first, few)]
        for row, name in zip(rows, names, strict=False):
            row["policy"] = name
            del row["nominal MB"]
        return rows

    def _rest(self) -> list[str]:
        more = len(self.found) - SHOWN
        return [f"... and {more} more; .table has all"] if more > 0 else []


def _rows(result: Result) -> list[dict[str, Any]]:
    name, _, settings = result.label.partition(" ")
    told = {
        "policy": name,
        "settings": settings,
        "budget": budget_of(result.policy),
        "query": result.query,
    }
    sizes = {
        "cache_bytes": result.cache["physical_bytes"],
        "nominal_bytes": result.cache["nominal_bytes"],
        "peak_bytes": result.cache["peak_bytes"],
        "read_bytes": result.details.get("bytes_read_per_token"),
    }
    if cells := result.details.get("cells"):
        return [
            {**told, "length": int(length), "depth": float(depth), "score": finite(score), **sizes}
            for length, column in cells.items()
            for depth, score in column.items()
        ]
    by = {f"by.{group}": finite(value) for group, value in result.by.items()}
    score = {"score": finite(result.score), "n": result.n}
    return [{**told, "length": None, "depth": None, **score, **by, **sizes}]


def _flat(ax: Any) -> list[Any]:
    """Axes as a list, however matplotlib gave them."""
    import numpy as np

    axes = list(np.ravel(np.asarray(ax, dtype=object)))
    for axis in axes:
        if not hasattr(axis, "imshow"):
            raise InputError(f"ax has {axis!r:.80}; it must be axes of matplotlib")
    if not axes:
        raise InputError("ax is empty; it must be axes of matplotlib")
    return axes
