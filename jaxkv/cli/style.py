# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One look for all pictures: a policy's colour and marker, numbers on axes, names at line ends."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Of Okabe and Ito ("Color Universal Design", 2008), but for its yellow, which white swallows: told
# apart by everyone.
BLACK, BLUE, SKY, GREEN = "#000000", "#0072B2", "#56B4E9", "#009E73"
ORANGE, RED, PINK = "#E69F00", "#D55E00", "#CC79A7"
GREY = "#707070"  # of what is no policy: limits, peers
MARKERS = "os^vDPXd<>ph*"
POINTS: Mapping[str, Any] = {  # of every line
    "markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.6, "linewidth": 1.5,
}  # fmt: skip
LINES = ("-", "--", ":", "-.")  # one after the other for settings of one policy
MAP = "viridis"  # even steps of lightness, from dark to light

Look = tuple[str, str]  # a colour and a marker

# Policies that are mostly drawn together have colours of their own; no two have the same look.
LOOKS: Mapping[str, Look] = {
    "full": (BLACK, "o"),
    "window": (ORANGE, "s"),
    "streaming": (BLUE, "o"),
    "recompute": (BLACK, "D"),
    "duo": (PINK, "D"),
    "headkv": (RED, "^"),
    "snapkv": (GREEN, "o"),
    "pyramidkv": (PINK, "v"),
    "adakv": (SKY, "s"),
    "chunkkv": (BLUE, "s"),
    "compactor": (ORANGE, "X"),
    "cur": (PINK, "P"),
    "lagkv": (GREEN, "D"),
    "keydiff": (RED, "s"),
    "knorm": (ORANGE, "D"),
    "random": (BLACK, "X"),
    "recycled": (BLUE, "D"),
    "streaming-plus": (BLUE, "P"),
    "h2o": (ORANGE, "^"),
    "tova": (SKY, "o"),
    "expected": (RED, "o"),
    "kvzip": (BLUE, "^"),
    "kvzap": (BLUE, "v"),
}
_REST = [
    (colour, marker)
    for marker in MARKERS
    for colour in (BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK)
    if (colour, marker) not in LOOKS.values()
]

MOST_NAMED = 8  # lines that are named at their ends; more have a legend
NAME_SIZE = 8.0  # points


def look(name: str) -> Look:
    """The colour and marker of a policy by its name, the same in every picture.

    A policy that is not ours has one of those that ours leave, by its name alone.
    """
    return LOOKS.get(name) or _REST[zlib.crc32(name.encode()) % len(_REST)]


def apart(policies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each described policy by its name and the settings in which those of its name differ."""
    told = []
    for policy in policies:
        alike = [other for other in policies if other["name"] == policy["name"]]
        varied = [n for n in policy if len({repr(other.get(n)) for other in alike}) > 1]
        told.append(" ".join([policy["name"], *(f"{n}={policy[n]}" for n in varied)]))
    return told


def line_of(policies: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """How `Axes.plot` draws each of the described policies, settings of one by kinds of line."""
    seen: dict[str, int] = {}
    for policy, label in zip(policies, apart(policies), strict=True):
        name = policy["name"]
        colour, marker = look(name)
        index = seen[name] = seen.get(name, -1) + 1
        yield dict(POINTS, color=colour, marker=marker, linestyle=LINES[index % len(LINES)],
                   label=label)  # fmt: skip


def tokens_text(count: int) -> str:
    """Tokens in words of few letters: 512, 1k, 4k, 1M in powers of two, else 20,000."""
    for size, unit in ((2**20, "M"), (2**10, "k")):
        if count >= size and count % size == 0:
            return f"{count // size}{unit}"
    return f"{count:,}"


def dress(axis: Any) -> None:
    """A light grid, and no box."""
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.title.set_fontsize(10)


def plain_log(axis: Any, which: str) -> None:
    """A logarithmic axis, "x" or "y", with numbers such as 20 and 0.5 instead of powers.

    How many depends on its limits: it is to be called when these are as they stay.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    getattr(axis, f"set_{which}scale")("log")
    ticks = getattr(axis, f"{which}axis")
    low, high = getattr(axis, f"get_{which}lim")()
    few, some = (1.0,), (1.0, 2.0, 5.0)
    many = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    subs = few if high > 1000 * low else some if high > 8 * low else many
    ticks.set_major_locator(LogLocator(subs=subs))
    ticks.set_major_formatter(StrMethodFormatter("{x:g}"))
    ticks.set_minor_formatter(NullFormatter())


def token_log(axis: Any, ticks: Sequence[int]) -> None:
    """A logarithmic axis of tokens, marked at these counts."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([tokens_text(tick) for tick in ticks])


def mark_size(axis: Any, tokens: int, text: str) -> None:
    """A dotted line where the position is a cache's size, with what it is."""
    axis.axvline(tokens, color=GREY, linestyle=":", linewidth=1)
    axis.annotate(
        text, (tokens, 1), xycoords=axis.get_xaxis_transform(), xytext=(3, -2),
        textcoords="offset points", va="top", color=GREY, fontsize=NAME_SIZE,
    )  # fmt: skip


def name_lines(axis: Any, lines: Sequence[Any] | None = None) -> None:
    """Names lines of an axis: at their ends, none over another, or by a legend if they are many.

    Where they stand depends on the size of everything: it is to be called when all is drawn.

    Args:
      axis: of matplotlib.
      lines: those to be named; None is all that have a label.
    """
    told = _told(axis)
    lines = told if lines is None else lines
    if len(lines) > MOST_NAMED:
        axis.legend(
            handles=lines, fontsize=NAME_SIZE, frameon=False, loc="center left",
            bbox_to_anchor=(1.0, 0.5),
        )  # fmt: skip
        return
    names = [_name(axis, line) for line in lines]
    for _ in range(2 if names else 0):  # names beside the axis make it narrower
        _put(axis, lines, names, told)


def name_once(axes: Sequence[Any]) -> None:
    """Names the lines of panels that have lines in common, each in the last that shows it."""
    last = {line.get_label(): line for axis in axes for line in _told(axis)}
    for axis in axes:
        name_lines(axis, [line for line in _told(axis) if last[line.get_label()] is line])


def _told(axis: Any) -> list[Any]:
    """Lines that have a label and are to be seen."""
    lines = [line for line in axis.lines if line.get_label()[:1] != "_"]
    return [line for line in lines if len(_corners(axis, line))]


def _name(axis: Any, line: Any) -> Any:
    """A line's name, not yet in its place."""
    colour, end = line.get_color(), axis.transData.inverted().transform(_end(axis, line))
    name = axis.annotate(
        line.get_label(), end, xytext=(7, 0), textcoords="offset points", va="center",
        annotation_clip=False, color=_darker(colour), fontsize=NAME_SIZE,
        arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.5, "linewidth": 0.7,
                    "shrinkA": 0, "shrinkB": 3},
    )  # fmt: skip
    name.arrow_patch.set_visible(False)
    return name


def _darker(colour: Any) -> Any:
    """As letters, which are thinner than lines."""
    from matplotlib.colors import to_rgb

    return tuple(0.75 * part for part in to_rgb(colour))


def _put(axis: Any, lines: Sequence[Any], names: Sequence[Any], told: Sequence[Any]) -> None:
    """Moves names off one another: those beside the axis up and down, those within it anywhere."""
    from matplotlib.text import Text

    figure = axis.figure.canvas.figure
    figure.draw_without_rendering()
    scale = 72 / figure.dpi  # points of a pixel
    ends = []
    for line, name in zip(lines, names, strict=True):
        end = _end(axis, line)
        name.xy = axis.transData.inverted().transform(end)
        ends.append(end * scale)
    boxes = [Text.get_window_extent(name).bounds for name in names]  # less their pointers
    sizes = [(width * scale, height * scale) for _, _, width, height in boxes]
    frame = axis.get_window_extent().extents * scale
    right = max((x for x, _ in ends), default=0.0) - 0.02 * (frame[2] - frame[0])
    beside = sorted((i for i, (x, _) in enumerate(ends) if x >= right), key=lambda i: ends[i][1])
    heights = spread([ends[i][1] for i in beside], [1.05 * sizes[i][1] for i in beside])
    taken = []
    for i, height in zip(beside, heights, strict=True):
        offset = max(9.0, frame[2] - ends[i][0] + 4), height - ends[i][1]
        _move(names[i], *offset, abs(offset[1]) > 0.8 * sizes[i][1])
        taken.append(_box(ends[i], offset, sizes[i]))
    drawn = [point for line in told for point in _points(axis, line, scale)]
    for i in range(len(names)):
        if i not in beside:
            offset = _free(ends[i], sizes[i], taken, drawn, frame)
            _move(names[i], *offset, abs(offset[1]) > 1.5 * sizes[i][1])
            taken.append(_box(ends[i], offset, sizes[i]))


def _move(name: Any, right: float, up: float, far: Any) -> None:
    """Points of it from the line's end; what is far has a pointer to it."""
    name.set_position((right, up))
    name.arrow_patch.set_visible(bool(far))


def _box(end: Any, offset: tuple[float, float], size: tuple[float, float]) -> tuple[float, ...]:
    """Left, bottom, right and top of a name."""
    left, middle = end[0] + offset[0], end[1] + offset[1]
    return left, middle - size[1] / 2, left + size[0], middle + size[1] / 2


def _corners(axis: Any, line: Any) -> Any:
    """A line's points as pixels [n, 2]."""
    import numpy as np

    corners = axis.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
    return corners[np.isfinite(corners).all(axis=1)]


def _end(axis: Any, line: Any) -> Any:
    """The last pixel of a line that is to be seen: its end, or where it leaves at the top."""
    corners, top = _corners(axis, line), axis.get_window_extent().ymax
    inside = [index for index, (_, y) in enumerate(corners) if y <= top + 1]
    if not inside or inside[-1] == len(corners) - 1:
        return corners[-1]
    last, beyond = corners[inside[-1]], corners[inside[-1] + 1]
    return last + (beyond - last) * (top - last[1]) / (beyond[1] - last[1])


def _points(axis: Any, line: Any, scale: float) -> list[Any]:
    """Where a line goes, every few points of it."""
    import numpy as np

    corners = _corners(axis, line) * scale
    found = list(corners)
    for begin, end in zip(corners[:-1], corners[1:], strict=True):
        steps = min(200, int(np.hypot(*(end - begin)) // 4))
        found += [begin + (end - begin) * (i + 1) / (steps + 1) for i in range(steps)]
    return found


def _free(
    end: Any,
    size: tuple[float, float],
    taken: Sequence[tuple[float, ...]],
    drawn: Sequence[Any],
    frame: Any,
) -> tuple[float, float]:
    """Where around a line's end its name covers no name, and as little else as can be."""
    width, height = size
    choices = []
    for rings in range(8):
        up = 1.1 * height * (1 + rings)
        for right in (7.0, -width / 2, -width - 7.0):
            choices += [(right, up), (right, -up)]
        if not rings:
            choices = [(7.0, 0.0), (-width - 7.0, 0.0), *choices]

    def cost(offset: tuple[float, float]) -> float:
        left, bottom, far, top = _box(end, offset, size)
        over = sum(
            left < b[2] + 4 and b[0] - 4 < far and bottom < b[3] and b[1] < top for b in taken
        )
        outside = left < frame[0] or far > frame[2] or bottom < frame[1] or top > frame[3]
        lines = sum(left - 2 < x < far + 2 and bottom - 1 < y < top + 1 for x, y in drawn)
        return 1e6 * over + 1e3 * outside + lines + 0.02 * abs(offset[0]) + 0.06 * abs(offset[1])

    return min(choices, key=cost)


def spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Heights as near as can be to those wanted, where none of these sizes covers another.

    Args:
      wanted: ascending.
      sizes: of what stands there, its middle at its height.

    Returns:
      Ascending heights: the least squares of what is wanted, with neighbours half the sum of their
      sizes apart or more.
    """
    ends, below = [], 0.0
    for index, size in enumerate(sizes):
        below += (sizes[index - 1] + size) / 2 if index else 0.0
        ends.append(below)
    groups: list[tuple[float, int]] = []  # means of neighbours that touch, and how many they are
    for height, gap in zip(wanted, ends, strict=True):
        mean, count = height - gap, 1
        while groups and groups[-1][0] >= mean:
            other, more = groups.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        groups.append((mean, count))
    flat = [mean for mean, count in groups for _ in range(count)]
    return [mean + gap for mean, gap in zip(flat, ends, strict=True)]
