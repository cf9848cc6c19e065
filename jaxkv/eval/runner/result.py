# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found, as JSON and as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkv.cache.bytes import nbytes
from jaxkv.generate.recompute import Remembered
from jaxkv.generate.running import running
from jaxkv.layers.base import Cache, Policy
from jaxkv.policies.registry import describe, label

TEXTS = ("policy", "query")  # columns of a table that are no numbers


@dataclasses.dataclass(frozen=True)
class Result:
    """One policy's row.

    Attributes:
      task: its name.
      score: the task's measure over all that was evaluated.
      n: how many tokens or rows that is.
      by: the same measure for parts of it.
      policy: name and settings, as `make_policy` takes them.
      cache: bytes: nominal, physical, peak.
      details: further figures, next to the others in the JSON object.
    """

    task: str
    score: float
    n: int
    by: Mapping[str, float | None]
    policy: Mapping[str, Any]
    cache: Mapping[str, int]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """The policy in one line."""
        return label(self.policy)

    @property
    def query(self) -> str | None:
        """Whether what was kept was chosen with the question known; None where none is asked."""
        known = {True: "aware", False: "agnostic"}
        return known.get(self.details.get("query_aware", None))

    def as_json(self) -> dict[str, Any]:
        """Plain data. A number that is not finite has no spelling in JSON: it becomes null."""
        return {
            "task": self.task,
            "score": finite(self.score),
            "n": self.n,
            "by": {name: finite(value) for name, value in self.by.items()},
            "policy": dict(self.policy),
            "cache": dict(self.cache),
            **self.details,
        }


def from_json(value: Mapping[str, Any]) -> Result:
    """What `Result.as_json` gave, or a line of a sweep."""
    names = ("task", "score", "n", "by", "policy", "cache")
    known = {name: value[name] for name in names}
    if known["score"] is None:
        known["score"] = math.nan
    return Result(**known, details={k: v for k, v in value.items() if k not in names})


def policy_label(policy: Policy) -> str:
    """A policy in one line."""
    return label(describe(policy))


def cache_bytes(policy: Policy, cache: Cache | Remembered, peak_bytes: int) -> dict[str, int]:
    """What the policy says it keeps, what its arrays are, and the most a program held at once."""
    return {
        "nominal_bytes": running(policy, cache.geometry).nominal_bytes,
        "physical_bytes": nbytes(cache),
        "peak_bytes": peak_bytes,
    }


def table(results: Sequence[Result], groups: bool = True) -> list[dict[str, Any]]:
    """A row a policy: what it is, its scores, and millions of bytes, by the names of columns.

    Where questions are asked, each says whether what was kept was chosen with the question known
    ("aware") or not ("agnostic").

    Args:
      results: at least one.
      groups: with the scores of groups.
    """
    names = list(dict.fromkeys(name for result in results for name in result.by)) if groups else []
    asked = any("query_aware" in result.details for result in results)
    return [
        {
            "policy": result.label,
            **({"query": result.query} if asked else {}),
            "score": finite(result.score),
            "n": result.n,
            **{name: finite(result.by.get(name)) for name in names},
            **{
                f"{name} MB": result.cache[f"{key}_bytes"] / 1e6
                for name, key in (("cache", "physical"), ("nominal", "nominal"), ("peak", "peak"))
            },
        }
        for result in results
    ]


def print_table(results: Sequence[Result]) -> None:
    """One line a policy, on stdout."""
    import rich.box
    from rich.console import Console
    from rich.table import Table

    rows = table(results)
    shown = Table(title=results[0].task, box=rich.box.SIMPLE_HEAD)
    for name in rows[0]:
        shown.add_column(name, justify="left" if name in TEXTS else "right", overflow="fold")
    for row in rows:
        shown.add_row(*map(cell, row.values()))
    console = Console()
    if not console.is_terminal:
        # A log or a pipe has no width of its own; nothing is to be folded there.
        console = Console(width=60 + 14 * len(rows[0]))
    console.print(shown)


def cell(value: str | int | float | None) -> str:
    """A value of a table as text."""
    if value is None or isinstance(value, str | int):
        return "-" if value is None else str(value)
    return f"{value:.2f}" if abs(value) < 1e5 else f"{value:.3g}"


def finite(value: float | None) -> float | None:
    """A number, or None where it has no spelling in JSON."""
    return value if value is not None and math.isfinite(value) else None
