# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The one exception that means "the input is wrong", and its place at the edge of every command."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from jaxkv import interrupts

_MOST = 600  # characters of an error line: what a stranger's file says may have any length
# All but tab and line feed, and what turns the direction of text around.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: value and what is allowed."""


def one_line(error: object) -> str:
    """What an error says, on one line of bounded length."""
    text = " ".join(str(error)[: 8 * _MOST].split())
    return text if len(text) <= _MOST else f"{text[:_MOST]} ..."


def visible(text: str, stream: Any) -> str:
    """A text as it may be shown: a terminal gets control characters as escapes, and obeys none."""
    if stream is None or not stream.isatty():
        return text
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def say(line: str) -> None:
    """One line on stderr."""
    print(visible(line, sys.stderr), file=sys.stderr)


@contextlib.contextmanager
def one_line_errors(command: str, interrupted: str = "interrupted") -> Iterator[None]:
    """The edge of a command: however it ends, it is one line on stderr and an exit status.

    Wrong input is status 2. A full disk and an unreadable file are the user's to mend too, so
    `OSError` is reported the same way. Ctrl-C is 130, and a reader that has seen enough, such as
    `head`, 1. Everything else is a fault of ours and keeps its traceback.

    Args:
      command: what the line begins with.
      interrupted: what it says after Ctrl-C.
    """
    open_streams()
    line = f"{command}: {interrupted}"
    try:
        with interrupts.ends_at_once(line):
            try:
                yield
            except KeyboardInterrupt:
                say(f"\n{line}")
                raise SystemExit(interrupts.STATUS) from None
            finally:
                sys.stdout.flush()
    except BrokenPipeError:
        # Or Python would try once more as it ends, and say so at length.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (InputError, OSError) as error:
        say(f"{command}: error: {one_line(error)}")
        raise SystemExit(2) from None


def as_process(main: Callable[[], None]) -> None:
    """Runs a command that is all that its process does.

    After Ctrl-C nothing more is waited for: jax would first finish what it has begun to compute.
    """
    try:
        main()
    except SystemExit as end:
        if end.code == interrupts.STATUS:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(interrupts.STATUS)
        raise


def open_streams() -> None:
    """What was closed by whoever started us reads as empty, and takes what is written to it.

    Else the next file that is opened would be stderr to every library.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
