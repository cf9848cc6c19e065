# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keeps the advice of other libraries off the user's terminal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(logger: str, below: int = logging.ERROR) -> Iterator[None]:
    """Drops what the library's logger says below a level."""

    def is_grave(record: logging.LogRecord) -> bool:
        return record.levelno >= below

    filtered = logging.getLogger(logger)
    filtered.addFilter(is_grave)
    try:
        yield
    finally:
        filtered.removeFilter(is_grave)
