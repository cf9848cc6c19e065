# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The kinds of pictures that results can give: one kind, one picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkv.cli import style
from jaxkv.core.errors import InputError
from jaxkv.eval.runner.result import Result

COLUMNS = 4  # of small maps beside one another
MOST_CELLS = 16  # of a map's side, that have their number written in them


@dataclasses.dataclass(frozen=True)
class Kind:
    """A picture of results.

    Attributes:
      shows: what it shows, for the message where a result has none of it.
      can: whether a result has it.
      panels: how many axes it fills.
      size: width and height of one of them, in inches.
      title: what was measured.
      draw: puts results on axes.
      alone: whether the first of its axes is a picture by itself.
    """

    shows: str
    can: Callable[[Result], bool]
    panels: Callable[[Sequence[Result]], int]
    size: Callable[[Sequence[Result]], tuple[float, float]]
    title: Callable[[Sequence[Result]], str]
    draw: Callable[[Sequence[Any], Sequence[Result]], None]
    alone: bool = False


def check_kind(kind: str, results: Sequence[Result]) -> Kind:
    """The kind of a name, which the results can give.

    Raises:
      InputError: in one line, what is wrong and what is allowed.
    """
    found = KINDS.get(kind)
    if found is None:
        raise InputError(f"kind is {kind!r:.80}; it must be one of {', '.join(KINDS)}")
    if not all(found.can(result) for result in results):
        able = [n for n, other in KINDS.items() if all(other.can(result) for result in results)]
        others = f"; they give {', '.join(able)}" if able else ""
        raise InputError(
            f"kind is {kind!r}, which shows {found.shows}, and rows of {results[0].task} have "
            f"none{others}"
        )
    return found


def draw_kind(figure: Any, kind: str, results: Sequence[Result]) -> list[Any]:
    """A picture on a figure of its own, which gets the size that it wants; its axes.

    Raises:
      InputError: the results cannot give it.
    """
    found = check_kind(kind, results)
    count = found.panels(results)
    rows = -(-count // COLUMNS)
    columns = -(-count // rows)
    width, height = found.size(results)
    # A scale of colours takes an inch, and so do names beside lines.
    figure.set_size_inches(width * columns + 1.0, height * rows)
    figure.suptitle(found.title(results), fontsize=10)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    found.draw(axes[:count], results)
    return axes[:count]


def draw_on(axes: Sequence[Any], kind: str, results: Sequence[Result]) -> None:
    """A picture on axes that are there.

    Raises:
      InputError: the results cannot give it, or it takes another number of axes.
    """
    found = check_kind(kind, results)
    numbers = sorted({found.panels(results), *([1] if found.alone else [])})
    if len(axes) not in numbers:
        raise InputError(
            f"ax is {len(axes)} axes; {kind} of {len(results)} rows takes "
            f"{' or '.join(map(str, numbers))}"
        )
    axes[0].set_title(found.title(results), fontsize=10)
    found.draw(axes, results)


def heat(axes: Sequence[Any], results: Sequence[Result]) -> None:
    """A map of length by depth for each policy; `details["cells"]` holds {length: {depth: %}}."""
    image = None
    names = style.apart([result.policy for result in results])
    for axis, result, name in zip(axes, results, names, strict=True):
        cells = result.details["cells"]
        lengths = list(cells)
        depths = sorted({depth for row in cells.values() for depth in row}, key=float)
        values = np.array([[cells[x].get(y, np.nan) for x in lengths] for y in depths], float)
        image = axis.imshow(values, vmin=0, vmax=100, cmap=style.MAP, aspect="auto")
        if max(values.shape) <= MOST_CELLS:
            for row, column in np.argwhere(np.isfinite(values)):
                value = values[row, column]
                axis.text(
                    column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                    color="white" if value < 60 else "black",
                )  # fmt: skip
        axis.set_xticks(range(len(lengths)), [style.tokens_text(int(x)) for x in lengths])
        _few(axis.xaxis, len(lengths))
        axis.set_yticks(range(len(depths)), [f"{float(depth):.3g}" for depth in depths])
        axis.tick_params(labelsize=8)
        axis.set_title(_wrapped(name), fontsize=9)
        axis.set_xlabel("prompt (tokens)", fontsize=8)
    axes[0].set_ylabel("depth of the needle (%)", fontsize=8)
    _scale(axes, image, f"{results[0].task}: score (%)")


def kept(axes: Sequence[Any], results: Sequence[Result]) -> None:
    """Tokens kept in each layer and KV head; `details["kept_tokens"]` holds them by layer."""
    most = max(max(map(max, result.details["kept_tokens"])) for result in results)
    names = style.apart([result.policy for result in results])
    image = None
    for axis, result, name in zip(axes, results, names, strict=True):
        values = np.array(result.details["kept_tokens"])
        image = axis.imshow(
            values, vmin=0, vmax=most, cmap=style.MAP, aspect="auto", interpolation="nearest"
        )
        for marks, count in ((axis.xaxis, values.shape[1]), (axis.yaxis, values.shape[0])):
            marks.set_ticks(range(count))
            _few(marks, count)
        axis.tick_params(labelsize=8)
        axis.set_title(_wrapped(name), fontsize=9)
        axis.set_xlabel("KV head", fontsize=8)
    axes[0].set_ylabel("layer", fontsize=8)
    _scale(axes, image, "tokens kept")


def bars(axes: Sequence[Any], results: Sequence[Result]) -> None:
    """A bar for each policy in each group, and for the score over all."""
    (axis,) = axes
    groups = _groups(results)
    policies = [result.policy for result in results]
    width = 0.8 / len(results)
    seen: dict[str, int] = {}
    hatches = ("", "//", "..", "xx")
    for index, (result, label) in enumerate(zip(results, style.apart(policies), strict=True)):
        values = [result.score, *(result.by.get(name) for name in groups[1:])]
        heights = [np.nan if value is None else value for value in values]
        offset = (index - (len(results) - 1) / 2) * width
        name = result.policy["name"]
        again = seen[name] = seen.get(name, -1) + 1
        axis.bar(
            np.arange(len(groups)) + offset, heights, 0.92 * width, label=label,
            color=style.look(name)[0], hatch=hatches[again % len(hatches)], edgecolor="white",
            linewidth=0,
        )  # fmt: skip
    style.dress(axis)
    axis.grid(visible=False, axis="x")
    many = len(groups) > 6
    axis.set_xticks(
        range(len(groups)), groups, rotation=30 if many else 0, ha="right" if many else "center"
    )
    axis.set(ylabel=_measure(results[0]), ylim=(0, 102))
    axis.legend(
        fontsize=style.NAME_SIZE, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )


def trade_off(axes: Sequence[Any], results: Sequence[Result]) -> None:
    """Score over physical bytes, and, on a second of two axes, over bytes read per token.

    A line for each policy, a point for each of its settings.
    """
    sizes: list[Callable[[Result], float]] = [
        lambda result: result.cache["physical_bytes"] / 1e6,
        lambda result: result.details["bytes_read_per_token"] / 1e6,
    ]
    labels = ("cache (MB)", "keys and values read per token (MB)")
    results = _whole(results)
    for axis, size, label in zip(axes, sizes, labels, strict=False):
        for name in dict.fromkeys(result.policy["name"] for result in results):
            mine = sorted((r for r in results if r.policy["name"] == name), key=size)
            colour, marker = style.look(name)
            axis.plot(
                [size(result) for result in mine], [_score(result) for result in mine],
                color=colour, marker=marker, label=name, **style.POINTS,
            )  # fmt: skip
        style.dress(axis)
        style.plain_log(axis, "x")
        axis.set_xlabel(label)
        _ends(axis, results[0])
    where = " (where all predict)" if results[0].task == "ppl" else ""
    axes[0].set_ylabel(f"{_measure(results[0])}{where}")
    style.name_lines(axes[-1])


def curve(axes: Sequence[Any], results: Sequence[Result]) -> None:
    """The measure over the position in a stream, one line a policy."""
    (axis,) = axes
    whole = _whole(results)
    looks = style.line_of([result.policy for result in whole])
    for result, drawn in zip(whole, looks, strict=True):
        positions, values = _points(result)
        axis.plot(positions, values, **drawn, markevery=max(1, len(values) // 10))
    style.dress(axis)
    told = {r.details["cache_tokens"] for r in whole if r.details.get("cache_tokens")}
    for tokens in sorted(told):
        if tokens < max(_points(result)[0][-1] for result in whole):
            style.mark_size(axis, tokens, f"cache full: {tokens:,} tokens")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set(xlabel="position (tokens)", ylabel=_measure(results[0]))
    axis.set_xlim(0, None)
    _ends(axis, results[0])
    if results[0].task == "ppl":
        axis.set_ylabel("perplexity up to here")
        # The first tokens of a text are guesses, and would flatten all that follows.
        every = [_points(result)[1] for result in whole]
        late = [value for values in every for value in [*values[min(5, len(values) - 1) :]]]
        axis.set_ylim(min(map(min, every)) / 1.2, max(late) * 1.2)
        style.plain_log(axis, "y")
    style.name_lines(axis)


def _whole(results: Sequence[Result]) -> list[Result]:
    """Less what ppl sampled at a few positions: its mean is another than that of a whole stream."""
    return [result for result in results if result.by.get("all", 0.0) is not None] or list(results)


def _points(result: Result) -> tuple[list, list]:
    """Positions and values of a curve, whatever they are called."""
    positions, values = result.details["curve"].values()
    return positions, values


def _score(result: Result) -> float:
    """Of ppl, where all policies predict: what is beyond has another mean."""
    value = result.by.get("common") if result.task == "ppl" else None
    return result.score if value is None else value


def _measure(result: Result) -> str:
    return "perplexity" if result.task == "ppl" else "score (%)"


def _ends(axis: Any, result: Result) -> None:
    """The same for every picture of percentages."""
    if result.task != "ppl":
        axis.set(ylim=(-4, 112), yticks=range(0, 101, 20))  # names stand above 100


def _title(results: Sequence[Result]) -> str:
    """What was measured: of how much, and in which way it was asked."""
    count = max(result.n for result in results)
    if results[0].task == "ppl":
        return f"ppl: perplexity of {count:,} tokens"
    told = {"aware": "known before evicting", "agnostic": "unknown when evicting"}
    ways = {result.query for result in results if result.query}
    said = f", question {told[ways.pop()]}" if len(ways) == 1 else ""
    return f"{results[0].task}: score of {count:,} answers{said}"


def _wrapped(name: str) -> str:
    """A policy over two lines: its name, and what is set."""
    return name.replace(" ", "\n", 1)


def _few(marks: Any, count: int) -> None:
    """Of so many ticks, labels at ten or so."""
    from matplotlib.ticker import FixedLocator

    every = -(-count // 10)
    if every > 1:
        labels = [label.get_text() or str(i) for i, label in enumerate(marks.get_ticklabels())]
        marks.set_major_locator(FixedLocator(list(range(0, count, every))))
        marks.set_ticklabels(labels[::every])


def _scale(axes: Sequence[Any], image: Any, label: str) -> None:
    """One scale of colours for all maps."""
    bar = axes[0].figure.colorbar(image, ax=list(axes), label=label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)


def usual(results: Sequence[Result]) -> str:
    """The kind that says most of questions' results."""
    names = [result.policy["name"] for result in results]
    if len(names) > len(set(names)):
        return "tradeoff"
    return "heat" if all(KINDS["heat"].can(result) for result in results) else "bars"


def _both(results: Sequence[Result]) -> int:
    """Axes of a trade-off: bytes that are held, and those that are read if that is known."""
    return 2 if all("bytes_read_per_token" in result.details for result in results) else 1


def _groups(results: Sequence[Result]) -> list[str]:
    """What bars stand for."""
    return ["all", *dict.fromkeys(name for result in results for name in result.by)]


KINDS: Mapping[str, Kind] = {
    "tradeoff": Kind(
        "scores over the bytes of caches",
        lambda result: bool(result.cache.get("peak_bytes")) and math.isfinite(_score(result)),
        _both, lambda results: (4.6, 4.2), _title, trade_off, alone=True,
    ),
    "heat": Kind(
        "scores by length and depth", lambda result: bool(result.details.get("cells")),
        len, lambda results: (2.9, 3.0), _title, heat,
    ),
    "kept": Kind(
        "what each head keeps", lambda result: bool(result.details.get("kept_tokens")),
        len, lambda results: (2.4, 3.2),
        lambda results: f"{results[0].task}: tokens that heads keep of the longest prompt", kept,
    ),
    "curve": Kind(
        "a measure over the position", lambda result: bool(result.details.get("curve")),
        lambda results: 1, lambda results: (6.4, 4.2), _title, curve,
    ),
    "bars": Kind(
        "scores of groups in percent", lambda result: bool(result.by) and result.task != "ppl",
        lambda results: 1,
        lambda results: (max(4.5, 0.5 * len(_groups(results)) * (1 + len(results) / 8)), 3.8),
        _title, bars,
    ),
}  # fmt: skip
