# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Models whose true shapes are known by name: to plan and to measure, no weights are needed.

`llama-3.1-8b-random` is a model of that shape with random weights.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxkv.checkpoints import toy
from jaxkv.checkpoints.families import by_hf_type
from jaxkv.checkpoints.model import Model
from jaxkv.checkpoints.table import check_dtype, flat_shapes, tree
from jaxkv.core.errors import InputError
from jaxkv.core.fields import Fields
from jaxkv.core.progress import Progress, no_progress
from jaxkv.models.config import ModelConfig
from jaxkv.models.mesh import meshed
from jaxkv.models.placed import placed
from jaxkv.models.weights import check_form, rounded
from jaxkv.text.tokenizer import Tokenizer

SUFFIX = "-random"
_PACKAGE = Path(__file__).parent.parent
_FOLDERS = (_PACKAGE / "shapes", _PACKAGE.parent / "configs" / "models")


def names() -> list[str]:
    """Every model whose shape is shipped."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.yaml")})


def named_config(name: str) -> ModelConfig:
    """The true configuration of a published model.

    Args:
      name: one of `names()`, such as "llama-3.1-8b".

    Raises:
      InputError: there is no such name.
    """
    import yaml

    for folder in _FOLDERS:
        path = folder / f"{name}.yaml"
        if name in names() and path.is_file():
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))["config"]
            return by_hf_type(fields["model_type"]).hf_config(Fields(fields, path.name))
    raise InputError(f"there is no shape called {name!r:.80}; there are {', '.join(names())}")


def abstract_params(config: ModelConfig, dtype: str, weights: str | None = None) -> Any:
    """Parameters as shapes and types: nothing is made.

    Args:
      config: the model.
      dtype: "float32" or "bfloat16".
      weights: see `sources.load`.
    """
    check_dtype(dtype)
    check_form(weights)

    def made() -> Any:
        shapes = flat_shapes(config)
        zeros = {path: jnp.zeros(shape, dtype) for path, shape in shapes.items()}
        return tree(config, {path: rounded(path, x, weights) for path, x in zeros.items()})

    return jax.eval_shape(made)


def load_random(
    name: str, dtype: str = "float32", progress: Progress = no_progress,
    weights: str | None = None, mesh: Mesh | None = None, tokenizer: Tokenizer | None = None,
) -> Model:  # fmt: skip
    """A model of a true shape with random weights, made on the default device.

    Its tokenizer, unless one is given, is that of `tiny-random`: text that comes out means nothing.

    Args:
      name: one of `names()`.
      dtype: "float32" or "bfloat16".
      progress: called after every array.
      weights, mesh, tokenizer: see `sources.load`.
    """
    check_dtype(dtype)
    config = meshed(named_config(name), mesh)
    shapes = flat_shapes(config)
    key, arrays = jax.random.key(0), {}
    for index, (path, shape) in enumerate(shapes.items(), 1):
        array = _array(path, shape, dtype, config, jax.random.fold_in(key, index))
        held = rounded(path, array, weights)
        if mesh is not None:
            held = placed(config, path, held)
        arrays[path] = jax.block_until_ready(held)  # or all are in flight
        progress("making", index, len(shapes))
    made = f"{name}{SUFFIX}"
    return Model(config, tree(config, arrays), tokenizer or toy.tokenizer(), made, made)


def _array(path: str, shape: tuple[int, ...], dtype: str, config: ModelConfig, key: Any) -> Any:
    """Norms that do nothing, no biases, and maps that keep the size of what they are given."""
    if len(shape) == 1:
        neutral = "norm" in path and not path.endswith("bias") and not config.unit_offset
        return jnp.full(shape, float(neutral), dtype)
    # Embeddings and heads lie as [V, D], linear maps as [in, out].
    inputs = shape[1] if path in ("embed", "lm_head") else shape[0]
    return _normal(key, shape, dtype) * jnp.asarray(inputs**-0.5, dtype)


_normal = functools.partial(jax.jit, static_argnums=(1, 2))(jax.random.normal)
