# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Our own checkpoint: a folder with orbax arrays, a configuration and a tokenizer.

It loads without conversion. It is written whole or not at all.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxkv.cache.bytes import nbytes
from jaxkv.checkpoints import config_json
from jaxkv.checkpoints.model import Model, on_one_device
from jaxkv.checkpoints.table import Shape, check_dtype, flat_shapes, flatten, tree
from jaxkv.core.checksums import check_sums, sums_of
from jaxkv.core.errors import InputError
from jaxkv.core.files import reserve, whole_folder
from jaxkv.core.progress import Progress, no_progress
from jaxkv.core.quiet import quiet
from jaxkv.core.reading import read_json
from jaxkv.models.config import ModelConfig
from jaxkv.models.mesh import Meshed, meshed
from jaxkv.models.placed import placed
from jaxkv.models.weights import (
    FORMS,
    Multiples,
    from_arrays,
    is_linear,
    part_names,
    rounded,
    to_arrays,
)
from jaxkv.text import hf
from jaxkv.text.tokenizer import Tokenizer

MARK = "jaxkv.json"  # the file that makes a folder a checkpoint of ours
TOKENIZER = "tokenizer"  # the folder in it of the tokenizer's files
_FORMAT = 4
_Result = TypeVar("_Result")
_ARRAYS, _CONFIG = "params", "config.json"


def save(
    path: str | os.PathLike[str], model: Model,
    beside: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Writes a checkpoint, replacing what is at `path`.

    Args:
      path: the folder.
      model: the model.
      beside: what else it tells, by the names of JSON files.

    Raises:
      InputError: orbax could not write it; nothing is left behind.
    """
    import orbax.checkpoint as ocp

    model = on_one_device(model)

    def write(target: Path) -> None:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            arrays = ocp.args.PyTreeSave(to_arrays(flatten(model.config, model.params)))
            checkpointer.save(target, args=arrays)

    size = nbytes(model.params)
    with whole_folder(path) as part:
        reserve(part, size + 2**24)  # beside the arrays there is a tokenizer
        _attempt(lambda: write(part.resolve() / _ARRAYS), f"{path} cannot be written")
        (part / TOKENIZER).mkdir()
        model.tokenizer.save(part / TOKENIZER)
        _write(part / _CONFIG, config_json.to_json(model.config))
        for name, value in beside.items():
            _write(part / name, value)
        note = {"format": _FORMAT, "source": model.name, "fingerprint": model.fingerprint}
        _write(part / MARK, {**note, "files": sums_of(part)})


def load(
    path: str | os.PathLike[str], dtype: str = "float32", progress: Progress = no_progress,
    weights: str | None = None, mesh: Mesh | None = None, tokenizer: Tokenizer | None = None,
) -> Model:  # fmt: skip
    """Loads a checkpoint onto the default device.

    Args:
      path: the folder.
      dtype: "float32" or "bfloat16"; arrays stored otherwise are cast.
      progress: called after every layer.
      weights: see `sources.load`; None is as they are stored.
      mesh, tokenizer: see `sources.load`.
    """
    target = check_dtype(dtype)
    path = Path(path)
    note = read_json(path / MARK)
    if note.get("format") != _FORMAT:
        raise InputError(
            f"{path / MARK} has format {note.get('format')!r:.60}; this version reads {_FORMAT}; "
            "convert the original again: python -m jaxkv.convert SRC DST"
        )
    check_sums(path, note.get("files"))
    config = config_json.from_json(read_json(path / _CONFIG), str(path / _CONFIG))
    config = meshed(config, mesh)
    tokenizer = tokenizer or hf.load(path / TOKENIZER)
    arrays = _attempt(
        lambda: _restore(path.resolve() / _ARRAYS, config, target, progress, weights),
        f"{path} is damaged or incomplete",
    )
    mark = str(note.get("fingerprint", ""))
    return Model(config, tree(config, arrays), tokenizer, str(path), mark)


def _restore(
    path: Path, config: ModelConfig, dtype: np.dtype, progress: Progress,
    weights: str | None,
) -> dict[str, jax.Array | Multiples]:  # fmt: skip
    """Reads layer by layer: orbax would hold every array twice if it were asked for all."""
    import orbax.checkpoint as ocp

    shapes = flat_shapes(config)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    arrays: dict[str, jax.Array | Multiples] = {}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        kinds = _stored_kinds(checkpointer, path, shapes, weights)
        for _, names in itertools.groupby(kinds, key=lambda name: name.split(".")[:2]):
            wanted = {
                name: jax.ShapeDtypeStruct(shape, stored or dtype, sharding=device)
                for name, (shape, stored) in ((name, kinds[name]) for name in names)
            }
            how = ocp.checkpoint_utils.construct_restore_args(wanted)
            request = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
            read = checkpointer.restore(path, args=request)
            found = from_arrays({name: _uncommitted(array) for name, array in read.items()})
            found = {name: rounded(name, array, weights) for name, array in found.items()}
            if isinstance(config, Meshed):
                found = {name: placed(config, name, held) for name, held in found.items()}
            arrays |= found
            progress("loading", len(arrays), len(shapes))
    return arrays


def _uncommitted(array: jax.Array) -> jax.Array:
    """int4 that compiled programs take.

    Of an array that is committed to its device jax compares layouts, and takes its own of int4 for
    another than the program's. jax 0.10.2; `test_a_checkpoint_says_what_its_source_says`.
    """
    return jax.device_put(np.asarray(array)) if array.dtype == jnp.int4 else array


def _stored_kinds(
    checkpointer: Any, path: Path, shapes: Mapping[str, Shape], weights: str | None
) -> dict[str, tuple[Shape, np.dtype | None]]:
    """Of every array that is read its shape, and its type, or None where that is what is asked for.

    Raises:
      InputError: it is not there in that shape, there is another, or weights are held otherwise.
    """
    metadata = checkpointer.metadata(path).item_metadata
    if metadata is None:
        raise InputError(f"{path} is damaged or incomplete: it does not say which arrays it holds")
    stored = {name: (tuple(metadata[name].shape), metadata[name].dtype) for name in metadata}
    kinds: dict[str, tuple[Shape, np.dtype | None]] = {}
    for name, shape in shapes.items():
        parts = [part for part in part_names(name) if part in stored]
        if not parts or not is_linear(name):
            # What is rounded is not cast before.
            as_it_is = weights and is_linear(name) and name in stored
            kinds[name] = shape, stored[name][1] if as_it_is else None
            continue
        form, groups = str(stored[parts[0]][1]), stored[parts[-1]][0][0]
        if weights not in (None, form):
            raise InputError(
                f"the weights in {path} are {form}, and {weights} was asked for; convert the "
                "original again: python -m jaxkv.convert SRC DST"
            )
        if form not in FORMS or shape[0] % max(groups, 1):
            raise InputError(f"{name!r:.120} in {path} has {groups} groups of {form!r:.60}")
        for part, own in zip(part_names(name), (shape, (groups, *shape[1:])), strict=True):
            kinds[part] = own, stored.get(part, (own, None))[1]
    for name in {**stored, **kinds}:
        found, needed = (table.get(name, (None,))[0] for table in (stored, kinds))
        if found != needed:
            raise InputError(
                f"{name!r:.120} in {path} has shape {found}; its configuration needs {needed}"
            )
    return kinds


def _attempt(work: Callable[[], _Result], failure: str) -> _Result:
    """Runs orbax, and makes one line of whatever it raises."""
    try:
        with quiet("absl", below=logging.CRITICAL):
            return work()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{failure}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].partition(". See full")[0][:200] if lines else type(error).__name__


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
