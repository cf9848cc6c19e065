# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Finished pieces of work on disk, so that an evaluation that was cut short goes on from there."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxkv.core.errors import InputError
from jaxkv.core.files import lock
from jaxkv.core.reading import MOST_TEXT, read_bytes


def plain(value: Any) -> Any:
    """Options as data that is the same in every process; functions become their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [type(value).__qualname__, fields]
    if isinstance(value, functools.partial):
        return [plain(value.func), plain(value.args), plain(value.keywords)]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def key_of(*parts: Any) -> str:
    """A short name for what a piece of work depends on: equal parts, equal names."""
    text = json.dumps(plain(parts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def json_lines(path: Path) -> Iterator[Any]:
    """The values of a file with one JSON text a line; a line that a kill cut short is left out."""
    if not path.exists():
        return
    for line in read_bytes(path, MOST_TEXT).decode(errors="replace").split("\n"):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            continue


def append_line(path: Path, value: Any) -> None:
    """Adds one JSON line, and waits until it is on disk.

    Raises:
      OSError: it cannot be written, or somebody has put a link in its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(path, flags, 0o666), "a+b") as file:
        # A line that was cut short by a kill must not run into this one.
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """While one process works here, no other does the same work.

    Args:
      path: of a file that is made for it.
      what: is being worked on, for the message.

    Raises:
      InputError: another one does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path, flags, 0o666)
    try:
        try:
            # Who ended just now has deleted the file that was opened here: another one counts.
            held = lock(handle) and os.path.samestat(os.fstat(handle), path.lstat())
        except FileNotFoundError:
            held = False
        except OSError:  # a disk without locks
            held = True
        if not held:
            raise InputError(f"{what} is being written by another process; wait for it to end")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


class Journal:
    """Values by key, each on disk as soon as it is there; without a path it holds nothing.

    Attributes:
      path: of the file, or None.
    """

    def __init__(self, path: Path | None):
        self.path = path
        lines = json_lines(path) if path else ()
        self._values = {
            line["key"]: line["value"]
            for line in lines
            if isinstance(line, dict) and isinstance(line.get("key"), str) and "value" in line
        }

    def get(self, key: str) -> Any:
        """What is kept under a key, or None."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keeps plain data."""
        if self.path is not None:
            self._values[key] = value
            append_line(self.path, {"key": key, "value": value})

    def end(self) -> None:
        """Deletes the file: its work is in a report."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
