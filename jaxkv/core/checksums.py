# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums of large files, so that a flipped bit is found: by all cores, as fast as a disk reads."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxkv.core.errors import InputError
from jaxkv.core.reading import opened

_PIECE = 2**24  # bytes that one thread reads and sums
Sums = dict[str, list]  # size and sum of every file, by its path from the folder


def file_sum(path: Path) -> str:
    """SHA-256 of the SHA-256 of every 16 MiB of a file, in hexadecimal."""
    with opened(path) as file, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        handle = file.fileno()
        starts = range(0, os.fstat(handle).st_size, _PIECE)
        sums = pool.map(lambda at: hashlib.sha256(os.pread(handle, _PIECE, at)).digest(), starts)
        return hashlib.sha256(b"".join(sums)).hexdigest()


def sums_of(folder: Path) -> Sums:
    """Of every file in a folder and below it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        file.relative_to(folder).as_posix(): [file.stat().st_size, file_sum(file)] for file in files
    }


def check_sums(folder: Path, expected: object) -> None:
    """Compares the files of a folder with the sums that were kept of them.

    Raises:
      InputError: one is missing, or is not as it was written.
    """
    if not isinstance(expected, dict):
        raise InputError(f"{folder} does not say which files belong to it")
    for name, mark in expected.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
            raise InputError(f"{folder} is damaged or incomplete: {name:.200} is missing")
        # The size first: it costs nothing, and most damage is a copy that was cut short.
        size = path.stat().st_size
        if not isinstance(mark, list) or mark[:1] != [size] or mark[1:] != [file_sum(path)]:
            raise InputError(f"{folder} is damaged or incomplete: {name:.200} is not as written")
