# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""An evaluation from its start to its report: whole files, sweeps line by line, interruptions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.files import check_target, write_json
from jaxkv.core.machine import where
from jaxkv.core.progress import Progress
from jaxkv.eval.runner.journal import Journal, alone, append_line, json_lines, key_of
from jaxkv.eval.runner.result import Result, from_json
from jaxkv.eval.runner.task import Common, Task
from jaxkv.generate.loop import forget_programs
from jaxkv.layers.base import Policy
from jaxkv.layers.declared import as_compiled


def check_report(out: str, overwrite: bool) -> None:
    """Before the work: that a report can be written, and none that is finished is lost.

    Raises:
      InputError: it cannot, or a whole report is there.
    """
    check_target("--out", out)
    if not is_sweep(out) and Path(out).exists() and not overwrite:
        raise InputError(f"--out {out} is a finished report; give another name, or --overwrite")


def is_sweep(out: str) -> bool:
    """Whether a report is one line a policy."""
    return Path(out).suffix == ".jsonl"


def evaluate(
    task: Task, model: Model, common: Common, own: Any, progress: Progress
) -> list[Result]:
    """Runs what no earlier run of the same command has finished, and writes the report.

    What is finished before the report is kept beside it, in a hidden file that ends in ".work".
    """
    # A name alone does not say what was trained since.
    common = dataclasses.replace(common, fingerprint=model.fingerprint)
    if common.out is None:
        return list(_each(task, model, common, own, progress))
    out = Path(common.out)
    with alone(out.with_name(f".{out.name}.lock"), f"--out {out}"):
        return _kept(out, task, model, common, own, progress)


def _kept(
    out: Path, task: Task, model: Model, common: Common, own: Any, progress: Progress
) -> list[Result]:
    work = out.with_name(f".{out.name}.work")
    if common.overwrite:
        work.unlink(missing_ok=True)
        out.unlink(missing_ok=True)
    common = dataclasses.replace(common, journal=Journal(work))
    if is_sweep(str(out)):
        results = _sweep(out, task, model, common, own, progress)
    else:
        results = list(_each(task, model, common, own, progress))
        write_report(out, common.model, common.command, results)
    common.journal.end()
    return results


def write_report(path: Path, model: str, command: str, results: Sequence[Result]) -> None:
    """A whole report: what was evaluated, where, with what, by which words, and what it gave."""
    report = {"model": model, **where(), "command": command}
    write_json(path, {**report, "rows": [result.as_json() for result in results]})


def _sweep(
    out: Path, task: Task, model: Model, common: Common, own: Any, progress: Progress
) -> list[Result]:
    """Adds the lines that are missing, and gives those of all policies."""
    points = {policy: _point(task, common, own, policy) for policy in common.policies}
    lines = {line.get("point"): line for line in json_lines(out) if isinstance(line, dict)}
    missing = tuple(policy for policy, point in points.items() if point not in lines)
    rest = dataclasses.replace(common, policies=common.policies if task.compared else missing)
    if missing:
        told = {"model": common.model, "seed": common.seed, **where()}
        results = _each(task, model, rest, own, progress)
        for policy, result in zip(rest.policies, results, strict=True):
            if (point := points[policy]) not in lines:
                made = {"point": point, **result.as_json(), **told, "command": common.command}
                append_line(out, made)
                lines[point] = made
    return [from_json(lines[point]) for point in points.values()]


def _point(task: Task, common: Common, own: Any, policy: Policy) -> str:
    """What a line of a sweep depends on."""
    beside = common.policies if task.compared else ()
    return key_of(task.name, common.settings, own, policy, beside)


def _each(
    task: Task, model: Model, common: Common, own: Any, progress: Progress
) -> Iterator[Result]:
    policies = [as_compiled(policy) for policy in common.policies]
    for index, result in enumerate(task.evaluate(model, common, own, progress)):
        yield result
        # Those of a long list would fill the memory. The next policy may run the same.
        if policies[index + 1 : index + 2] != policies[index : index + 1]:
            forget_programs()
