# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are written whole or not at all, and where downloads are kept."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxkv.core.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where what a killed run leaves stays
    fcntl = None


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
    with beside(target) as part:
        yield part
        _sync(part)
        os.replace(part, target)


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

    An existing `path` is replaced in two renames, the shortest moment a POSIX system allows. Who
    is killed between them leaves the old one under another name, and the next run puts it back.
    """
    target = Path(path)
    with beside(target, folder=True) as part:
        yield part
        if not target.exists():
            os.replace(part, target)
            return
        with beside(target, folder=True, suffix="old") as old:
            os.replace(target, old / target.name)
            os.replace(part, target)


@contextlib.contextmanager
def beside(target: Path, folder: bool = False, suffix: str = "part") -> Iterator[Path]:
    """Yields a new file or folder next to `target`, which is deleted at the end if still there.

    It has the rights that the user's umask gives, and a name that nobody can foresee. A lock tells
    it from what a killed run has left: that is deleted first.

    Args:
      target: what it is made for.
      folder: whether it is one.
      suffix: how its name ends.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear(target)
    while True:
        part = target.parent / f".{target.name}.{secrets.token_hex(6)}.{suffix}"
        if folder:
            os.mkdir(part)
            handle = os.open(part, os.O_RDONLY)
        else:
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            # Another run may have taken it for an old one before it was locked.
            if lock(handle) and part.exists():
                break
        except OSError:  # a disk without locks, where what killed runs leave stays
            break
        os.close(handle)
    try:
        yield part
    finally:
        _delete(part)
        os.close(handle)


def _clear(target: Path) -> None:
    """Deletes what killed runs have left of `target`, or brings the old one back."""
    ours = re.compile(re.escape(f".{target.name}.") + r"[a-z0-9_]{8,12}\.(part|old)")
    for left in [name for name in os.listdir(target.parent) if ours.fullmatch(name)]:
        path = target.parent / left
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            try:
                if lock(handle):
                    whole = path.suffix == ".old" and (path / target.name).exists()
                    if whole and not target.exists():
                        os.replace(path / target.name, target)
                    _delete(path)
            finally:
                os.close(handle)


def lock(handle: int) -> bool:
    """Whether nobody else holds it; from now on we do, until it is closed.

    Raises:
      OSError: there are no locks here.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
