# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The edge of every command: however it ends, it is one line on stderr and an exit status."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from jaxkv.cli import interrupts
from jaxkv.core.errors import InputError, one_line, say


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
