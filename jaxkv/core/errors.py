# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The one exception that means "the input is wrong", and how a line of it is shown."""

from __future__ import annotations

import re
import sys
from typing import Any

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
