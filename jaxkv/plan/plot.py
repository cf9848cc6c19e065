# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory over the context: a line a policy, and a level a chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxkv.cli.style import GREY, NAME_SIZE, dress, line_of, name_lines, token_log
from jaxkv.layers.base import Policy
from jaxkv.models.mesh import device_bytes
from jaxkv.plan.chips import Chip
from jaxkv.plan.estimate import Setting

_LENGTHS = [2**power for power in range(10, 25)]


def memory_over_context(
    setting: Setting, policy: Policy, chips: Sequence[Chip]
) -> list[tuple[int, int]]:
    """(tokens, bytes of weights and cache), up to just above the largest chip."""
    weights, most = device_bytes(setting.params), max(chip.memory for chip in chips)
    points = []
    for tokens in _LENGTHS:
        points.append((tokens, weights + setting.cache_bytes(policy, tokens)))
        if points[-1][1] > most:
            break
    return points


def draw(figure: Any, report: Mapping[str, Any]) -> None:
    """On a figure of matplotlib's."""
    figure.set_size_inches(7.2, 4.2)
    axis = figure.subplots()
    chips = report["chips"]
    most = max(chip["memory_bytes"] for chip in chips.values()) / 1e9
    top = 1.15 * most
    looks = line_of([{"name": c["label"].partition(" ")[0]} for c in report["curves"]])
    for curve, style in zip(report["curves"], looks, strict=True):
        tokens, sizes = zip(*curve["points"], strict=True)
        axis.plot(tokens, [size / 1e9 for size in sizes], **style | {"label": curve["label"]})
    for name, chip in chips.items():
        axis.axhline(chip["memory_bytes"] / 1e9, color=GREY, linestyle="--", linewidth=1)
        axis.annotate(
            name, (_LENGTHS[0], chip["memory_bytes"] / 1e9), xytext=(2, 3),
            textcoords="offset points", color=GREY, fontsize=NAME_SIZE,
        )  # fmt: skip
    token_log(axis, [2**power for power in range(10, 25, 2)])
    axis.set(
        ylim=(0, top), xlabel="context (tokens)", ylabel="weights and cache (GB)",
        title=f"{report['model']}: memory by context, weights {report['weights']}, "
        f"cache {report['kv_dtype']}",
    )  # fmt: skip
    dress(axis)
    name_lines(axis)
