# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.eval`: what a small cache costs in quality."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxkv.cli.edge import as_process, one_line_errors
from jaxkv.cli.interrupts import STATUS, raises
from jaxkv.core.errors import say

if TYPE_CHECKING:
    from jaxkv.eval.runner.task import Common, Task

COMMAND = "jaxkv.eval"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with one line on stderr and status 2."""
    with one_line_errors(COMMAND):
        from jaxkv.cli.startup import prepare
        from jaxkv.eval.runner.options import parse_options

        task, common, own = parse_options(sys.argv[1:] if arguments is None else list(arguments))
        prepare()
        common.devices.begin()
        try:
            _run(task, common, own)
        except KeyboardInterrupt:
            on = "; the same command goes on from here" if common.out else ""
            say(f"\n{COMMAND}: interrupted{on}")
            raise SystemExit(STATUS) from None


def _run(task: Task, common: Common, own: Any) -> None:
    from jaxkv.cli.figures import save_picture
    from jaxkv.core.hosts import is_first
    from jaxkv.core.progress import bars
    from jaxkv.core.settings import flags_named
    from jaxkv.eval.api import run
    from jaxkv.eval.pictures.plot import draw_kind
    from jaxkv.eval.runner.result import print_table

    with raises(), flags_named(["cache-layout"]), bars() as progress:
        results = run(task, common, own, progress)
    if not is_first():
        return
    if common.json:
        print(results.to_json())
    else:
        print_table(results.found)
    if common.plot is None:
        return
    kind = common.plot_kind

    def draw(figure: Any) -> None:
        if kind is None:
            task.draw(figure, results.found)
        else:
            with flags_named(["kind"], "--plot-"):
                draw_kind(figure, kind, results.found)

    save_picture(common.plot, draw)


if __name__ == "__main__":
    as_process(main)
