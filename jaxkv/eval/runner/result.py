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

    def as_json(self) -> dict[str, Any]:
        """Plain data. A number that is not finite has no spelling in JSON: it becomes null."""
        return {
            "task": self.task,
            "score": _finite(self.score),
            "n": self.n,
            "by": {name: _finite(value) for name, value in self.by.items()},
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


def print_table(results: Sequence[Result]) -> None:
    """One line a policy, on stdout.

    Where questions are asked, each says whether what was kept was chosen with the question known
    ("aware") or not ("agnostic").
    """
    import rich.box
    from rich.console import Console
    from rich.table import Table

    groups = list(dict.fromkeys(name for result in results for name in result.by))
    table = Table(title=results[0].task, box=rich.box.SIMPLE_HEAD)
    table.add_column("policy", overflow="fold")
    asked = any("query_aware" in result.details for result in results)
    if asked:
        table.add_column("query", overflow="fold")
    for name in ("score", "n", *groups, "cache MB", "nominal MB", "peak MB"):
        table.add_column(name, justify="right", overflow="fold")
    for result in results:
        cache = result.cache
        sizes = [cache[f"{name}_bytes"] / 1e6 for name in ("physical", "nominal", "peak")]
        aware = result.details.get("query_aware")
        table.add_row(
            result.label,
            *([{True: "aware", False: "agnostic", None: "-"}[aware]] if asked else []),
            _cell(result.score),
            str(result.n),
            *(_cell(result.by.get(name)) for name in groups),
            *(f"{size:.2f}" for size in sizes),
        )
    console = Console()
    if not console.is_terminal:
        # A log or a pipe has no width of its own; nothing is to be folded there.
        console = Console(width=60 + 14 * (len(groups) + 5))
    console.print(table)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if abs(value) < 1e5 else f"{value:.3g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
