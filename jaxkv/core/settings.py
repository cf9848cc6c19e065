# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings as users type them: what a word means, and which of them an error is about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from jaxkv.core.errors import InputError


@contextlib.contextmanager
def flags_named(names: Sequence[str] | None = None, prefix: str = "--") -> Iterator[None]:
    """Makes "window is 0; ..." into "--policy.window is 0; ...": the word that was typed.

    Args:
      names: settings that a message may start with; None is any message.
      prefix: what is put before them.
    """
    try:
        yield
    except InputError as error:
        message = str(error)
        known = names is None or message.split(" ", 1)[0] in names
        raise InputError(f"{prefix}{message}" if known else message) from None


def scalar(text: str) -> Any:
    """A number where it looks like one, else the text as it is."""
    for kind in (int, float):
        try:
            return kind(text)  # a number of thousands of digits is none to Python
        except ValueError:
            continue
    lowered = {"true": True, "false": False, "none": None, "null": None}
    return lowered.get(text.lower(), text)
