# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A local Hugging Face folder -> a model, without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxkv.checkpoints.families import by_hf_type
from jaxkv.checkpoints.model import Model, fingerprint
from jaxkv.checkpoints.table import Shape, assemble, check_dtype
from jaxkv.core.errors import InputError
from jaxkv.core.fields import Fields
from jaxkv.core.progress import Progress, no_progress
from jaxkv.core.reading import check_regular, read_json
from jaxkv.models.mesh import meshed
from jaxkv.text import hf
from jaxkv.text.tokenizer import Tokenizer

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_READABLE = {"F64", "F32", "F16", "BF16"}


def load(
    folder: str | os.PathLike[str], dtype: str = "float32", progress: Progress = no_progress,
    weights: str | None = None, mesh: Mesh | None = None, tokenizer: Tokenizer | None = None,
) -> Model:  # fmt: skip
    """Loads a model from a folder as `save_pretrained` writes it.

    Args:
      folder: holds config.json, safetensors files, and perhaps a tokenizer.
      dtype: "float32" or "bfloat16", of the parameters in memory.
      progress: called after every tensor.
      weights, mesh, tokenizer: see `sources.load`.
    """
    check_dtype(dtype)
    folder = Path(folder)
    fields = Fields(read_json(folder / "config.json"), "config.json")
    family = by_hf_type(fields.text("model_type"))
    config = meshed(family.hf_config(fields), mesh)
    tensors = SafeTensors(folder)
    ignored = family.hf_ignored
    named = {rule.ours: rule.theirs for rule in family.hf_rules}
    tensors.rename(_as_published(named, tensors.shapes, config.tie_embeddings))
    if config.tie_embeddings:
        ignored += (tensors.check_copy(named["lm_head"], named["embed"]),)
    tokenizer = tokenizer or hf.load(folder)
    params = assemble(config, family.hf_rules, ignored, tensors, dtype, progress, weights)
    return Model(config, params, tokenizer, str(folder), fingerprint(tensors.files))


def _as_published(
    named: Mapping[str, str], present: Mapping[str, Any], tied: bool
) -> dict[str, str]:
    """Names in a checkpoint that was not saved as it is published, to those that it should have.

    As transformers takes them: a model saved without its head has no `model.` before its names, and
    what a tied embedding and head share may be there under the head's name alone.
    """
    embed, head = named["embed"], named.get("lm_head", "")
    renamed: dict[str, str] = {}
    prefix = embed.partition(".")[0] + "."
    if embed not in present and embed.removeprefix(prefix) in present:
        renamed = {name: prefix + name for name in present if name != head}
    if tied and head in present and embed not in (*present, *renamed.values()):
        renamed[head] = embed
    return renamed


class SafeTensors:
    """The tensors of a folder's safetensors files; implements `table.Tensors`."""

    def __init__(self, folder: Path):
        self.where = str(folder)
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, Shape] = {}
        for name, (path, shape) in _contents(folder):
            self._file_of[name] = path
            self.shapes[name] = shape
        self.files = sorted(set(self._file_of.values()))
        self._stored: dict[str, str] = {}

    def rename(self, names: Mapping[str, str]) -> None:
        """From now on tensors have other names than in their files: `names` has new by old."""
        for old, new in names.items():
            self._file_of[new], self.shapes[new] = self._file_of.pop(old), self.shapes.pop(old)
            self._stored[new] = old

    def read(self, name: str) -> np.ndarray:
        """The tensor in the type it is stored in; the caller may keep it.

        Opened anew for every tensor, because pages that were read through an open map stay in
        memory: the whole file would be there beside the model.
        """
        path, stored = self._file_of[name], self._stored.get(name, name)
        with _opened(path) as file:
            kind = file.get_slice(stored).get_dtype()
            if kind not in _READABLE:
                raise InputError(
                    f"tensor {name!r} of {path} is stored as {kind}; supported are "
                    f"{', '.join(sorted(_READABLE))}"
                )
            return file.get_tensor(stored)

    def blocks(self, name: str, form: str) -> None:
        """None: matrices are stored as floats."""
        del name, form

    def check_copy(self, name: str, original: str) -> str:
        """Refuses a tensor that is there, should be a copy and is not; returns its pattern."""
        if name in self.shapes and original in self.shapes:
            if not np.array_equal(self.read(name), self.read(original)):
                raise InputError(
                    f"tensor {name!r} of {self.where} differs from {original!r}, although "
                    "config.json says tie_word_embeddings"
                )
        return name.replace(".", r"\.")


class _opened:
    """`safe_open` whose faults are the file's, in one line."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            check_regular(self._path.stat().st_mode, self._path)
            self._file = safe_open(self._path, framework="numpy")
            return self._file.__enter__()
        except (SafetensorError, OSError, ValueError, MemoryError) as error:
            raise InputError(f"{self._path} cannot be read as safetensors: {error}") from None

    def __exit__(self, *exception: Any) -> None:
        self._file.__exit__(*exception)


def _contents(folder: Path) -> Iterator[tuple[str, tuple[Path, Shape]]]:
    """Every tensor's name, file and shape."""
    for path, expected in _files(folder).items():
        with _opened(path) as file:
            present = set(file.keys())
            for name in sorted(expected or present):
                if name not in present:
                    raise InputError(f"tensor {name!r:.120} is missing from {path}, see {_INDEX}")
                yield name, (path, tuple(file.get_slice(name).get_shape()))


def _files(folder: Path) -> Mapping[Path, set[str]]:
    """Which tensors are in which file; an empty set means all that are there."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    if (folder / _SINGLE).is_file():  # before an index that is there too, as in transformers
        return {folder / _SINGLE: set()}
    if (folder / _INDEX).is_file():
        return _shards(folder)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise InputError(
            f"{folder} holds only a pickled checkpoint ({pickles[0]}), and a pickle can run any "
            "program: write it anew with save_pretrained(..., safe_serialization=True) of "
            "transformers, on a machine that you can afford to lose"
        )
    raise InputError(f"{folder} holds neither {_SINGLE} nor {_INDEX}")


def _shards(folder: Path) -> dict[Path, set[str]]:
    where = folder / _INDEX
    table = read_json(where).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise InputError(f"{where} has no weight_map")
    shards: dict[Path, set[str]] = {}
    for name, file in table.items():
        # A plain name cannot lead out of the folder. Where it is a link it is the user's own: the
        # hub's cache is made of links.
        plain = isinstance(file, str) and file == Path(file).name
        if not plain or not file.endswith(".safetensors"):
            raise InputError(f"{where} places {name!r:.120} in {file!r:.120}, not a file beside it")
        shards.setdefault(folder / file, set()).add(name)
    for path in shards:
        if not path.is_file():
            raise InputError(f"{path} is missing, see {_INDEX}")
    return shards
