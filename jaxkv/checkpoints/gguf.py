# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A `.gguf` file -> a model, de-quantised tensor by tensor."""

from __future__ import annotations

import os
from pathlib import Path

from jax.sharding import Mesh

from jaxkv.checkpoints.families import by_gguf_type
from jaxkv.checkpoints.gguf_file import GGUFFile
from jaxkv.checkpoints.model import Model, fingerprint
from jaxkv.checkpoints.table import assemble, check_dtype
from jaxkv.core.errors import InputError
from jaxkv.core.fields import Fields
from jaxkv.core.progress import Progress, no_progress
from jaxkv.models.mesh import meshed
from jaxkv.text.gguf import tokenizer_from_gguf
from jaxkv.text.tokenizer import Tokenizer

_MOST_TOKENS = 2**24  # of a model whose embedding is not looked at


def load(
    path: str | os.PathLike[str], dtype: str = "float32", progress: Progress = no_progress,
    weights: str | None = None, mesh: Mesh | None = None, tokenizer: Tokenizer | None = None,
) -> Model:  # fmt: skip
    """Loads a model from one GGUF file.

    Args:
      path: the file.
      dtype: "float32" or "bfloat16", of the parameters in memory.
      progress: called after every tensor.
      weights: see `sources.load`; Q8_0 is taken as int8, and Q4_0 as int4, as they are.
      mesh, tokenizer: see `sources.load`.
    """
    check_dtype(dtype)
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file")
    file = GGUFFile(path)
    fields = Fields(file.metadata, file.where)
    if fields.integer("split.count", 1, low=0) > 1:
        raise fields.refuse("split.count", "1: join the parts with llama.cpp's gguf-split --merge")
    family = by_gguf_type(fields.text("general.architecture"))
    assert family.gguf_config is not None  # or it would not have been found
    config = meshed(family.gguf_config(fields, file), mesh)
    tokenizer = tokenizer or tokenizer_from_gguf(fields, config.vocab_size)
    rules, ignored = family.gguf_rules, family.gguf_ignored
    params = assemble(config, rules, ignored, file, dtype, progress, weights)
    return Model(config, params, tokenizer, str(path), fingerprint([path]))


def tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file, of which nothing else is read."""
    file = GGUFFile(path)
    return tokenizer_from_gguf(Fields(file.metadata, file.where), _MOST_TOKENS)
