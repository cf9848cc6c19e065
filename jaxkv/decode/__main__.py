# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.decode`: text in, text out, with a cache that stays small."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxkv.cli.edge import as_process, one_line_errors
from jaxkv.cli.interrupts import raises
from jaxkv.core.errors import say

if TYPE_CHECKING:
    from jaxkv.cli.decode.options import Options


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with one line on stderr and status 2."""
    began = time.perf_counter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show all characters
    with one_line_errors("jaxkv.decode"):
        from jaxkv.cli.decode.options import parse_options
        from jaxkv.cli.startup import prepare

        options = parse_options(arguments)
        prepare()
        options.devices.begin()
        _run(options, began)


def _run(options: Options, began: float) -> None:
    from jaxkv.cli.arguments import model_named
    from jaxkv.cli.decode.interactive import chat
    from jaxkv.cli.decode.once import answer_once
    from jaxkv.core.hosts import is_first
    from jaxkv.core.progress import bars
    from jaxkv.core.settings import flags_named
    from jaxkv.generate.report import report_of, summary

    o = options
    with raises(), flags_named(["cache-layout"]):
        with bars() as progress, model_named(options.model):
            model = o.devices.load(o.model, o.dtype, progress, o.weights, o.revision, o.tokenizer)
        load_s = time.perf_counter() - began
        if options.interactive:
            chat(options, model, load_s)
            return
        report = report_of(answer_once(options, model, load_s))
        if not is_first():
            return
        if options.json:
            print(json.dumps(report))
        else:
            say(summary(report))


if __name__ == "__main__":
    as_process(main)
