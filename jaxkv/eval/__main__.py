# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.eval`: what a small cache costs in quality."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxkv.errors import as_process, one_line_errors, say
from jaxkv.interrupts import STATUS, raises

if TYPE_CHECKING:
    from jaxkv.eval.task import Common, Task

COMMAND = "jaxkv.eval"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with one line on stderr and status 2."""
    with one_line_errors(COMMAND):
        from jaxkv.eval.options import parse_options
        from jaxkv.startup import prepare

        task, common, own = parse_options(sys.argv[1:] if arguments is None else list(arguments))
        prepare()
        try:
            _run(task, common, own)
        except KeyboardInterrupt:
            on = "; the same command goes on from here" if common.out else ""
            say(f"\n{COMMAND}: interrupted{on}")
            raise SystemExit(STATUS) from None


def _run(task: Task, common: Common, own: Any) -> None:
    from jaxkv.convert.progress import bars
    from jaxkv.convert.sources import load
    from jaxkv.eval.report import evaluate
    from jaxkv.eval.result import print_table
    from jaxkv.figures import save_picture

    with raises(), bars() as progress:
        model = load(common.model, common.dtype, progress)
        results = evaluate(task, model, common, own, progress)
    objects = [result.as_json() for result in results]
    if common.json:
        print(json.dumps(objects if len(objects) > 1 else objects[0]))
    else:
        print_table(results)
    if common.plot is not None:
        save_picture(common.plot, lambda figure: task.draw(figure, results))


if __name__ == "__main__":
    as_process(main)
