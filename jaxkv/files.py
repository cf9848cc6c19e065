# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are written whole or not at all, and where downloads are kept."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxkv.errors import InputError


def home() -> Path:
    """The cache folder: `$JAXKV_HOME`, else the platform's user cache folder for jaxkv."""
    if value := os.environ.get("JAXKV_HOME"):
        return Path(value).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("jaxkv", appauthor=False))


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and moves it there only if the body succeeds."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    part = Path(name)
    part.chmod(0o644)  # mkstemp makes it private
    try:
        yield part
        _sync(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Plain data as a JSON file for people to read, written whole."""
    with whole_file(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_target(flag: str, name: str) -> None:
    """Before the work: a file that cannot be written should not cost an hour first.

    Raises:
      InputError: a folder is there, or nothing can be put where `flag` says.
    """
    path = Path(name)
    if path.is_dir() or not path.name:
        raise InputError(f"{flag} {name!r} is a folder; it must be a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise InputError(f"{flag} {name!r} cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {name!r} cannot be written: no permission in {folder}")


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, and moves it there only if the body succeeds.

    An existing `path` is replaced in two renames, the shortest moment a POSIX system allows.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield part
        part.chmod(0o755)  # mkdtemp makes it private
        if target.exists():
            old = Path(
                tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent)
            )
            os.replace(target, old / target.name)
            os.replace(part, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flushes to disk, so that a crash after the rename cannot leave an empty file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def reserve(folder: Path, size: int) -> None:
    """Asks for bytes of disk before they are needed.

    A full disk is one clear OSError here; in the middle of a library's threads it is many.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        elif shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
