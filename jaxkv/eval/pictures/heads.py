# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What policies keep of each head, and the gates or scores by which they do: nothing is run."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive
from jaxkv.cli.style import MAP
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common, Task
from jaxkv.layers.base import Geometry, Policy
from jaxkv.models.decoder import geometry
from jaxkv.models.plan import plan
from jaxkv.policies import head_scores
from jaxkv.policies.duo import DuoAttention
from jaxkv.policies.headkv import HeadKV
from jaxkv.policies.registry import describe
from jaxkv.policies.scored import ScoredPolicy

_DESCRIPTION = """What every KV head keeps of --length tokens, by each policy's own formula, and the calibrated
gates (duo), scores (headkv) or shares (allocation table) by which it does. Nothing is run, so peak
is 0.

  score        tokens kept, in percent of all: the mean over layers and KV heads
  n            KV heads of all layers
  by           the same for the KV head that keeps least, and for the one that keeps most
  kept_tokens  by layer and KV head
  calibrated   gates, scores or shares by layer and KV head, with what they are; none where there are
               none

A KV head's score is the mean of those of its query heads, as its budget is; scores sum to 1 over
all query heads of the model.

example:
  python -m jaxkv.eval heads --policy duo,headkv:budget=256 --length 4000 --plot heads.png
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    length: tokens seen.
    """

    length: int


def calibrated(policy: Policy, geometry: Geometry) -> tuple[str, np.ndarray] | None:
    """What was calibrated for a policy's heads: its name, and float64 [L, heads]; None if nothing.

    Raises:
      InputError: the file is missing, damaged, or of another model.
    """
    if isinstance(policy, DuoAttention):
        return "gate", head_scores.head_gates(policy.pattern, geometry)
    if isinstance(policy, HeadKV) and policy.allocation == "own":
        scores = head_scores.head_scores(policy.scores, geometry)
        of_group = geometry.num_layers, geometry.num_kv_heads, -1
        return "score", scores.reshape(of_group).mean(axis=-1)
    if isinstance(policy, ScoredPolicy) and policy.table is not None:
        return "share", policy.table_shares(geometry)
    return None


def evaluate(
    model: Model, common: Common, options: Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    del progress
    dtype = common.kv_dtype or str(model.params["embed"].dtype)
    shape = geometry(model.config, 1, options.length, dtype)
    for policy in common.policies:
        planned = plan(policy, shape)
        kept = np.stack([facts.kept(options.length) for facts in planned.facts])
        share = 100 * kept / options.length
        details: dict[str, Any] = {"length": options.length, "kept_tokens": kept.tolist()}
        if found := calibrated(policy, shape):
            details["calibrated"] = {"what": found[0], "values": found[1].tolist()}
        yield Result(
            task=TASK.name,
            score=float(share.mean()),
            n=share.size,
            by={"least": float(share.min()), "most": float(share.max())},
            policy=describe(policy),
            cache={
                "nominal_bytes": planned.nominal_bytes,
                "physical_bytes": planned.physical_bytes,
                "peak_bytes": 0,
            },
            details=details,
        )


def draw(figure: Any, results: Sequence[Result]) -> None:
    """A column for each policy: gates or scores on top, tokens kept below."""
    from matplotlib.colors import LogNorm, Normalize

    every = [result.details for result in results]
    told = any("calibrated" in details for details in every)
    height = min(max(2.6, 0.13 * len(every[0]["kept_tokens"])), 8.0)
    figure.set_size_inches(3.1 * len(results) + 0.9, (height + 0.6) * (2 if told else 1) + 0.4)
    axes = figure.subplots(2 if told else 1, len(results), squeeze=False)
    length = every[0]["length"]
    counts = [count for details in every for row in details["kept_tokens"] for count in row]
    # Some policies keep a hundredth of what others do.
    scale = LogNorm(max(0.1, min(*counts, length / 10)), max(*counts, length))
    for (top, bottom), result in zip(axes[[0, -1]].T, results, strict=True):
        label = f"kept of {length} tokens: {result.score:.1f} %"
        _draw_map(bottom, result.details["kept_tokens"], scale, label)
        found = result.details.get("calibrated")
        if found:
            most = float(np.max(found["values"]))
            most = max(1.0, most) if found["what"] == "gate" else most
            _draw_map(top, found["values"], Normalize(0, most), found["what"])
        elif told:
            top.axis("off")
        bottom.set_xlabel("KV head")
        (top if found else bottom).set_title(_title(result), fontsize=8)


def _title(result: Result) -> str:
    name, *fields = result.label.split(" ")
    said = [field for field in fields if not field.endswith(("=None", "=False"))]
    return "\n".join([name, *textwrap.wrap(" ".join(said), 36)])


def _draw_map(axis: Any, values: Sequence[Sequence[float]], scale: Any, label: str) -> None:
    """Layers by heads, with a colour bar."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, MaxNLocator

    image = axis.imshow(
        np.array(values), norm=scale, cmap=MAP, aspect="auto", interpolation="nearest"
    )
    for marks, count in ((axis.xaxis, len(values[0])), (axis.yaxis, len(values))):
        marks.set_major_locator(MaxNLocator(min(count, 10), integer=True))
    axis.set_ylabel("layer")
    ticks = LogLocator(subs=(1, 2, 5)) if isinstance(scale, LogNorm) else None
    bar = axis.figure.colorbar(image, ax=axis, label=label, ticks=ticks, format="%g")
    bar.minorticks_off()


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    add("--length", type=int, default=1000, metavar="N", help="tokens seen (default: 1000)")


def check(given: argparse.Namespace) -> Options:
    """The task's options."""
    check_positive(given, "length")
    for name in ("prefill_chunk", "max_length"):
        if getattr(given, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is not for heads: nothing is run")
    return Options(given.length)


TASK = Task(
    name="heads",
    summary="gates and scores of heads, and what each head keeps by them",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=("kept", "bars"),
)
