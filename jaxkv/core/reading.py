# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Files that strangers made: read only where they are files, and only up to a bound."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jaxkv.core.errors import InputError

MOST_TEXT = 2**30  # bytes: a library of books
MOST_JSON = 2**26  # bytes; the largest index of a published model has a few megabytes
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Name = str | os.PathLike[str]


@contextlib.contextmanager
def opened(path: Name, where: str | None = None) -> Iterator[BinaryIO]:
    """A regular file, open for reading: pipes and devices may never end, or never begin.

    Args:
      path: of the file.
      where: what errors call it; None is by its path.

    Raises:
      InputError: it is something else.
      OSError: it is not there, or may not be read.
    """
    name = os.fspath(path)
    try:
        handle = os.open(name, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a zero byte, or half a character
        raise InputError(f"{name!r:.200} is no name of a file: {error}") from None
    with open(handle, "rb") as file:
        check_regular(os.fstat(handle).st_mode, where or name)
        yield file


def check_regular(mode: int, name: Name) -> None:
    """Refuses what is no plain file, by its mode.

    Raises:
      InputError: it is a pipe or a device.
      IsADirectoryError: it is a folder.
    """
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(name))
    if not stat.S_ISREG(mode):
        raise InputError(f"{os.fspath(name)} is a pipe or a device; it must be a plain file")


def read_bytes(path: Name, most: int = MOST_JSON, where: str | None = None) -> bytes:
    """The whole of a file that has at most so many bytes.

    Args:
      path: of the file.
      most: bytes.
      where: what errors call it; None is by its path.

    Raises:
      InputError: it has more.
      OSError: it cannot be read.
    """
    with opened(path, where) as file:
        return read_bounded(file, most, where or os.fspath(path))


def read_bounded(file: Any, most: int, where: str) -> bytes:
    """What is left of a binary file, which has at most so many bytes.

    Raises:
      InputError: it has more.
    """
    data = file.read(most + 1)  # no more, whatever its size is said to be
    if len(data) > most:
        raise InputError(f"{where} has more than the {most} bytes that are read of it")
    return data


def read_text(path: Name, where: str, most: int = MOST_JSON) -> str:
    """A file's text, UTF-8 with or without the mark that some editors put before it.

    Args:
      path: of the file.
      where: what errors call it.
      most: bytes.

    Raises:
      InputError: it cannot be read, has more bytes, or is not UTF-8.
    """
    try:
        return as_text(read_bytes(path, most, where), where)
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from None


def as_text(data: bytes, where: str) -> str:
    """UTF-8, with or without a mark before it.

    Raises:
      InputError: it is something else.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text: {error.reason}") from None


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text.

    Raises:
      InputError: it is none, is too deep, has a number of thousands of digits, or half a character.
    """
    try:
        value = json.loads(text)
        if isinstance(text, str) and _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    return value


def read_json(path: Path, where: str | None = None, most: int = MOST_JSON) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      InputError: it is missing or cannot be read, or does not hold one JSON object.
    """
    where = where or str(path)
    if not path.exists():
        raise InputError(f"{where} is missing")
    value = parse_json(read_text(path, where, most), where)
    if not isinstance(value, dict):
        raise InputError(f"{where} must hold a JSON object")
    return value
