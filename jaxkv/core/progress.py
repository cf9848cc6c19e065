# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Bars on stderr, or a line in a notebook, for work that takes longer than a glance."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

# What is being done, how much is done, of how much; of 0 where a program is compiled first.
Progress = Callable[[str, int, int], None]


def no_progress(what: str, done: int, total: int) -> None:
    """Reports to nobody."""


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """Yields a function that draws one bar for each kind of work; they vanish at the end.

    In a notebook it is one line, which is written anew, and says at the end what was done. Where
    stderr is not a terminal there are plain lines instead, few of them.
    """
    if in_notebook():
        with _one_line() as progress:
            yield progress
        return
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
                tasks[what] = rich.add_task(what, total=total or None)
            told = what if total else f"{what}: compiling"
            rich.update(tasks[what], description=told, completed=done, total=total or None)

        yield draw


def in_notebook() -> bool:
    """Whether what is shown goes to a notebook's cell."""
    found = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(found, "kernel", None) is not None


@contextlib.contextmanager
def _one_line(every: float = 0.2) -> Iterator[Progress]:
    """One output of a cell, as plain text that is replaced: what is kept of it is its last line."""
    from IPython.display import display  # pyright: ignore[reportMissingImports]

    began, shown, last, line = time.monotonic(), None, 0.0, ""

    def show(text: str) -> None:
        nonlocal shown
        if shown is None:
            shown = display({"text/plain": text}, raw=True, display_id=True)
        else:
            shown.update({"text/plain": text}, raw=True)

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last, line
        now = time.monotonic()
        begins = not line.startswith(f"{what}:")
        line = f"{what}: {done / total:.0%}" if total else f"{what}: compiling a program ..."
        # A front end that gets thousands of lines falls behind.
        if begins or not total or now - last >= every:
            last = now
            show(line)

    yield tell
    if line:
        show(f"{line}, {time.monotonic() - began:.1f} s")


@contextlib.contextmanager
def waiting(what: str) -> Iterator[Callable[[], None]]:
    """Something that moves on a terminal, until the function that it yields is called.

    Elsewhere, and on terminals that cannot take back what they show, there is nothing.
    """
    with contextlib.ExitStack() as shown:
        if sys.stderr.isatty():
            from rich.console import Console

            console = Console(stderr=True)
            if not console.is_dumb_terminal:
                shown.enter_context(console.status(what))
        yield shown.close


def _lines(every: float = 30.0) -> Progress:
    """A line where work begins, and one now and then with how long the rest may take."""
    begun: dict[str, float] = {}
    told: dict[str, float] = {}

    def tell(what: str, done: int, total: int) -> None:
        # Loading takes a second or two; only a download is worth a line in a log.
        if what == "loading":
            return
        now = time.monotonic()
        if what not in told:
            told[what] = now
            compiling = "" if total else ": compiling a program"
            print(f"{what}{compiling} ...", file=sys.stderr, flush=True)
        if not total or what not in begun:
            begun[what] = now
        elif now - told[what] >= every and 0 < done < total:
            told[what] = now
            left = (now - begun[what]) * (total - done) / done
            message = f"{what}: {done / total:.0%}, about {left / 60:.1f} minutes left"
            print(message, file=sys.stderr, flush=True)

    return tell
