# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.decode`: text in, text out, with a cache that stays small."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence

from jaxkv.decode.options import COMMAND, Options, parse_options
from jaxkv.errors import InputError, one_line_errors
from jaxkv.startup import prepare


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with one line on stderr and status 2."""
    began = time.perf_counter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show all characters
    with one_line_errors(COMMAND):
        options = parse_options(arguments)
        prepare()
        try:
            _run(options, began)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            print(f"\n{COMMAND}: interrupted", file=sys.stderr)
            raise SystemExit(130) from None


def _run(options: Options, began: float) -> None:
    from jaxkv.convert.progress import bars
    from jaxkv.convert.sources import load
    from jaxkv.decode.interactive import chat
    from jaxkv.decode.once import answer_once
    from jaxkv.generate.report import report_of, summary

    with bars() as progress, _model_named(options.model):
        model = load(options.model, options.dtype, progress)
    load_s = time.perf_counter() - began
    if options.interactive:
        chat(options, model, load_s)
        return
    report = report_of(answer_once(options, model, load_s))
    if options.json:
        print(json.dumps(report))
    else:
        print(summary(report), file=sys.stderr)


@contextlib.contextmanager
def _model_named(name: str) -> Iterator[None]:
    """A model that cannot be used is reported with the flag that named it."""
    try:
        yield
    except InputError as error:
        known = str(error).startswith(("model ", "dtype "))
        prefix = "--" if known else f"--model {name}: "
        raise InputError(f"{prefix}{error}") from None


if __name__ == "__main__":
    main()
