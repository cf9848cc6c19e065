# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A model -> a folder of safetensors, configuration and tokenizer that transformers loads."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkv.checkpoints.families import by_hf_type
from jaxkv.checkpoints.model import Model, on_one_device
from jaxkv.checkpoints.table import disassemble
from jaxkv.core.errors import InputError
from jaxkv.core.fields import Fields
from jaxkv.core.files import reserve, whole_folder
from jaxkv.core.progress import Progress, no_progress
from jaxkv.models.config import ModelConfig
from jaxkv.models.weights import form_of

SHARD_BYTES = 2 * 2**30  # of tensors a file: what is held twice while it is written


def export_hf(
    path: str | os.PathLike[str],
    model: Model,
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> None:
    """Writes a model as its family publishes it, whole or not at all.

    Tensors are those that the model was loaded from, bit for bit, if its dtype is theirs.

    Args:
      path: the folder.
      model: of any family.
      progress: called after every tensor.
      overwrite: whether a folder that is there, and all that it holds, is replaced.

    Raises:
      InputError: there is such a folder, the configuration has what config.json has no word for,
        or the weights are rounded.
    """
    target, model = Path(path), on_one_device(model)
    if not overwrite and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{path} exists; give a new folder, or overwrite=True to replace it")
    if form := form_of(model.params):
        raise InputError(
            f"the model's weights are {form}; Hugging Face's format has floats: load it without "
            "weights, and export that"
        )
    config = config_to_hf(model.config)
    leaves = jax.tree.leaves(model.params)
    config["torch_dtype"] = leaves[0].dtype.name
    if model.tokenizer.eos_ids:
        config["eos_token_id"] = list(model.tokenizer.eos_ids)
    if model.tokenizer.bos_ids:
        config["bos_token_id"] = model.tokenizer.bos_ids[0]
    size = sum(leaf.nbytes for leaf in leaves)
    with whole_folder(path) as part:
        reserve(part, size + 2**24)  # beside the tensors there is a tokenizer
        model.tokenizer.save(part)
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _write(part, model, progress)


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """What config.json says of a model, but for its tokens and its dtype.

    Raises:
      InputError: read again, it would not be the same model.
    """
    family = by_hf_type(config.family)
    made = family.hf_json(config)
    again = family.hf_config(Fields(made, "config.json"))
    for field in dataclasses.fields(config):
        mine, other = (getattr(x, field.name) for x in (config, again))
        if mine != other:
            raise InputError(
                f"the model's {field.name} is {mine!r:.80}; a {config.family} in Hugging Face's "
                f"format has {other!r:.80}"
            )
    return made


def tensors_to_hf(model: Model) -> dict[str, np.ndarray]:
    """Every parameter under its family's name for it."""
    rules = by_hf_type(model.config.family).hf_rules
    return {name: make() for name, _, make in disassemble(model.config, rules, model.params)}


def _write(folder: Path, model: Model, progress: Progress) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    rules = by_hf_type(model.config.family).hf_rules
    tensors = list(disassemble(model.config, rules, model.params))
    itemsize = jax.tree.leaves(model.params)[0].dtype.itemsize
    shards, room = [[]], SHARD_BYTES
    for tensor in tensors:
        size = math.prod(tensor[1]) * itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(tensor)
        room -= size
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        made = {}
        for name, _, make in shard:
            made[name], places[name] = make(), file
            progress("writing", len(places), len(tensors))
        try:
            save_file(made, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise InputError(f"{folder / file} cannot be written: {error}") from None
    if len(shards) > 1:
        total = sum(math.prod(shape) for _, shape, _ in tensors) * itemsize
        index = {"metadata": {"total_size": total}, "weight_map": places}
        target = folder / "model.safetensors.index.json"
        target.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
