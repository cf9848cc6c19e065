# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What both sides of `beside_kvpress` came to: medians, a table, and who is better at what."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

NOISE = 0.03  # share by which two timings may differ and mean nothing

# Name, key of a row, its scale in the table, digits, and whether more is better.
MEASURES = (
    ("score", "score", 1, 1, True),
    ("cache MB", "physical_bytes", 1e-6, 2, False),
    ("peak MB", "peak_rss_bytes", 1e-6, 0, False),
    ("prefill s", "prefill_s", 1, 3, False),
    ("question s", "question_s", 1, 3, False),
    ("tokens/s", "tokens_per_s", 1, 1, True),
)


def side_row(
    method: str,
    budget: int | None,
    side: str,
    called: str,
    of_sides: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """One side's figures of one method: medians over its rows and runs.

    Args:
      method: its name.
      budget: tokens, or None.
      side: whose.
      called: what its library calls the method.
      of_sides: the results of every run of each side, in order.

    Returns:
      Plain data; where no run succeeded, `failed` and no figures.
    """
    runs = [run for run in of_sides[side] if "failed" not in run]
    row: dict[str, Any] = {"method": method, "budget": budget, "side": side, "as": called}
    if not runs:
        return row | {"failed": of_sides[side][0]["failed"]}
    answers = runs[0]["rows"]
    kept = runs[0]["kept_tokens"]
    heads = [count for layer in kept for count in layer]
    lengths = dict.fromkeys(answer["length"] for answer in answers)
    row |= {
        "n": len(answers),
        "score": statistics.fmean(answer["score"] for answer in answers),
        "by": {
            str(length): statistics.fmean(a["score"] for a in answers if a["length"] == length)
            for length in lengths
            if length is not None
        },
        "same_answers": _same(of_sides),
        "kept_tokens": statistics.fmean(heads),
        "kept_tokens_of_layers": [statistics.fmean(layer) for layer in kept],
    }
    # Of the longest prompt, the last: it takes most.
    for name in ("kept_bytes", "physical_bytes", "end_kept_bytes", "end_physical_bytes"):
        row[name] = answers[-1][name]
    row["peak_rss_bytes"] = round(statistics.median(run["peak_rss_bytes"] for run in runs))
    for name in ("prefill_s", "question_s", "step_s"):
        row[name] = statistics.median(answer[name] for run in runs for answer in run["rows"])
    row["tokens_per_s"] = 1 / row.pop("step_s")
    row["texts"] = [answer["text"] for answer in answers]
    row["runs"] = [_of_run(run) for run in runs]
    return row


def _same(of_sides: Mapping[str, Sequence[Mapping[str, Any]]]) -> int | None:
    """How many rows both sides answered with the same tokens; None if one side has no answers."""
    first = [next((run for run in runs if "failed" not in run), None) for runs in of_sides.values()]
    if any(run is None for run in first):
        return None
    pairs = zip(*(run["rows"] for run in first if run), strict=True)
    return sum(ours["ids"] == theirs["ids"] for ours, theirs in pairs)


def _of_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """One process' own medians, which show how much the machine's pace changed."""
    names = ("prefill_s", "question_s", "step_s")
    own = {name: statistics.median(row[name] for row in run["rows"]) for name in names}
    rest = ("peak_rss_bytes", "program_peak_bytes", "compile_s")
    more = {name: run[name] for name in rest if name in run}
    return own | more


def wins(rows: Sequence[Mapping[str, Any]], side: str) -> list[dict[str, Any]]:
    """Where one side is better than the other: by any score, in all else by more than noise."""
    found = []
    for mine in rows:
        if mine["side"] != side or "failed" in mine:
            continue
        case = mine["method"], mine["budget"]
        other = next(x for x in rows if (x["method"], x["budget"]) == case and x["side"] != side)
        if "failed" in other:
            continue
        for name, key, _, _, more in MEASURES:
            ours, theirs = (x[key] if more else -x[key] for x in (mine, other))
            margin = 0 if key == "score" else NOISE * abs(theirs)
            if ours > theirs + margin:
                pair = {x["side"]: x[key] for x in (mine, other)}
                found.append({"method": case[0], "budget": case[1], "measure": name, **pair})
    return found


def by_measure(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each measure, in how many cases either side is better, and how many cases there are."""
    better = {side: [win["measure"] for win in wins(rows, side)] for side in ("jaxkv", "kvpress")}
    failed = {(row["method"], row["budget"]) for row in rows if "failed" in row}
    cases = {(row["method"], row["budget"]) for row in rows} - failed
    return [
        {"measure": name, "cases": len(cases), **{s: m.count(name) for s, m in better.items()}}
        for name, *_ in MEASURES
    ]


def print_report(report: Mapping[str, Any]) -> None:
    """The table, and below it where kvpress wins, on stdout."""
    import rich.box
    from rich.console import Console
    from rich.table import Table

    aware = "question in the context" if report["query_aware"] else "question after the context"
    table = Table(title=f"{report['model']}, {aware}", box=rich.box.SIMPLE_HEAD)
    for name in ("method", "budget", "side"):
        table.add_column(name)
    names = [name for name, *_ in MEASURES]
    for name in (names[0], "kept", "kept MB", *names[1:]):
        table.add_column(name, justify="right", overflow="fold")
    for row in report["rows"]:
        head = (row["method"], str(row["budget"] or "-"), row["side"])
        if "failed" in row:
            table.add_row(*head, "-", *[""] * (len(names) + 1))
            continue
        # No seconds of a question: it was part of the context.
        numbers = (f"{row[key] * scale:.{n}f}" if row[key] or key != "question_s" else "-"
                   for _, key, scale, n, _ in MEASURES)  # fmt: skip
        score, *cells = numbers
        kept = (f"{row['kept_tokens']:.1f}", f"{row['kept_bytes'] / 1e6:.2f}")
        table.add_row(*head, score, *kept, *cells)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a log has no width of its own; nothing is folded there
    console.print(table)
    for line in told(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def told(report: Mapping[str, Any]) -> list[str]:
    """What the table cannot say, in lines."""
    lines = [
        f"{row['side']} {row['method']} {row['budget'] or ''} failed: {row['failed']}"
        for row in report["rows"]
        if "failed" in row
    ]
    count = len(report["context_and_question_tokens"])
    lines.append(
        f"prompts that kvpress' pipeline tokenizes the same: {report['same_prompts']} of {count}"
    )
    scales = {name: (scale, digits) for name, _, scale, digits, _ in MEASURES}
    for name in scales:
        found = [win for win in report["kvpress_wins"] if win["measure"] == name]
        scale, digits = scales[name]
        cases = (
            " ".join(filter(None, (win["method"], str(win["budget"] or ""))))
            + f" {win['kvpress'] * scale:.{digits}f} against {win['jaxkv'] * scale:.{digits}f}"
            for win in found
        )
        if found:
            lines.append(f"kvpress wins in {name}: {'; '.join(cases)}")
    if not report["kvpress_wins"]:
        lines.append("kvpress wins nowhere")
    load, cores = report.get("load_before"), report["cores"]
    if load is not None and load + report["threads"] > cores + 1:
        lines.append(
            f"the machine was busy before (load {load:.1f} on {cores} cores): seconds and tokens/s "
            "of either side mean little"
        )
    return lines
