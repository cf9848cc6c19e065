# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.train`: a decoder from local text, or a model that learns on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jaxkv.cli.edge import as_process, one_line_errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with one line on stderr and status 2."""
    told = "interrupted; the same command goes on from the last state that was kept"
    with one_line_errors("jaxkv.train", told):
        from jaxkv.train.command import run

        run(list(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    as_process(main)
