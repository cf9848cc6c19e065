# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A loaded model: what every command starts from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxkv.checkpoints.given import checked_params, fingerprint_of
from jaxkv.core.errors import InputError
from jaxkv.models.config import ModelConfig
from jaxkv.models.mesh import Meshed, plain
from jaxkv.models.placed import taken_back
from jaxkv.models.weights import count, form_of
from jaxkv.text.tokenizer import Tokenizer, without_engine


@dataclasses.dataclass(frozen=True)
class Model:
    """Attributes:
    config: what the decoder is made of.
    params: the tree of `parameter_shapes(config)`, jax arrays; linear maps of layers may be
      `models.weights.Multiples`.
    tokenizer: text to ids and back; where there is none (`tokenizer.missing`), whatever needs text
      raises an InputError.
    name: what the user asked for.
    fingerprint: a short hash that tells one set of weights from another.
    """

    config: ModelConfig
    params: dict
    tokenizer: Tokenizer
    name: str
    fingerprint: str

    def __post_init__(self) -> None:
        self.check_ids(self.tokenizer.bos_ids, "the tokenizer's bos")
        self.check_ids(self.tokenizer.eos_ids, "the tokenizer's eos")

    @classmethod
    def from_params(
        cls, config: ModelConfig, params: Mapping[str, Any], tokenizer: Tokenizer | None = None
    ) -> Model:
        """A model of parameters that you have, from training perhaps.

        Args:
          config: what the decoder is made of, on one device.
          params: a tree like `jaxkv.parameter_shapes(config)`, of NumPy's arrays or jax's, all
            float32 or all bfloat16. Linear maps of layers are [in, out], and projections of the
            same input are one array: see there.
          tokenizer: a `Model.tokenizer`; None leaves prompts and answers token ids.

        Raises:
          InputError: names the first parameter that is missing, or has another shape or dtype, or
            is not of this configuration.
        """
        if isinstance(config, Meshed):
            raise InputError("config lies on a mesh; give that of a model on one device")
        held = checked_params(config, params)
        text = tokenizer or without_engine("the model was given without a tokenizer")
        return cls(config, held, text, "from parameters", fingerprint_of(config, held))

    def __repr__(self) -> str:
        c = self.config
        heads = f"{c.num_heads} query and {c.num_kv_heads} KV heads of {c.head_dim}"
        form, dtype = form_of(self.params), self.params["embed"].dtype
        kind = f"{form} and {dtype}" if form else dtype
        size = f"{count(self.params):,} {kind}, {c.num_layers} layers"
        return f"<Model {self.name}: {c.family}, {size}, {heads}>"

    def check_ids(self, ids: Iterable[int], what: str) -> None:
        """Refuses ids that have no row in the embedding: jax would take another one's.

        Raises:
          InputError: names the first of them.
        """
        rows = self.config.vocab_size
        wrong = next((int(i) for i in ids if not 0 <= i < rows), None)
        if wrong is not None:
            spoken = not self.tokenizer.missing and 0 <= wrong < 2**32
            text = self.tokenizer.backend.id_to_token(wrong) if spoken else None
            spelled = f" ({text!r:.40})" if text else ""
            raise InputError(
                f"{what} id is {wrong}{spelled}; this model has ids from 0 to {rows - 1}"
            )


def on_one_device(model: Model) -> Model:
    """The model as it lies without a mesh, its parameters in the host's memory."""
    if not isinstance(model.config, Meshed):
        return model
    params = taken_back(model.config, model.params)
    return dataclasses.replace(model, config=plain(model.config), params=params)


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of the files' bytes: of all of them, or of 16 MB spread over a large file.

    Reading a large model twice would double the time to load it; a page of every tensor is enough
    to tell two trainings apart.
    """
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with open(path, "rb") as file:
            if size <= 2**28:
                while block := file.read(2**20):
                    digest.update(block)
            else:
                for step in range(4096):
                    file.seek(size * step // 4096)
                    digest.update(file.read(4096))
    return digest.hexdigest()[:16]
