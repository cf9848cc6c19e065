# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The one exception that means "the input is wrong", and its place at the edge of every command."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: value and what is allowed."""


@contextlib.contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Ends a command with one line on stderr and exit status 2 when its input is wrong.

    A full disk and an unreadable file are the user's to mend too, so `OSError` is reported the
    same way. Everything else is a fault of ours and keeps its traceback.
    """
    try:
        yield
    except (InputError, OSError) as error:
        line = " ".join(str(error).split())
        print(f"{command}: error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
