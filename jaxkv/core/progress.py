# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Bars on stderr for work that takes longer than a glance."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Progress = Callable[[str, int, int], None]  # what is being done, how much is done, of how much


def no_progress(what: str, done: int, total: int) -> None:
    """Reports to nobody."""


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """Yields a function that draws one bar for each kind of work; they vanish at the end.

    Where stderr is not a terminal there are plain lines instead, few of them.
    """
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as rich:
        tasks = {}

        def draw(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = rich.add_task(what, total=total)
            rich.update(tasks[what], completed=done, total=total)

        yield draw


def _lines(every: float = 30.0) -> Progress:
    """A line where work begins, and one now and then with how long the rest may take."""
    begun: dict[str, float] = {}
    told: dict[str, float] = {}

    def tell(what: str, done: int, total: int) -> None:
        # Loading takes a second or two; only a download is worth a line in a log.
        if what == "loading":
            return
        now = time.monotonic()
        if what not in begun:
            begun[what] = told[what] = now
            print(f"{what} ...", file=sys.stderr, flush=True)
        elif now - told[what] >= every and 0 < done < total:
            told[what] = now
            left = (now - begun[what]) * (total - done) / done
            message = f"{what}: {done / total:.0%}, about {left / 60:.1f} minutes left"
            print(message, file=sys.stderr, flush=True)

    return tell
