# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`tiny-random`: a toy of the right shape and with random weights, for trying things out.

It is made on the spot, the same on every machine and with every version of jax.
"""

from __future__ import annotations

import itertools

import jax
import numpy as np
from jax.sharding import Mesh

from jaxkv.checkpoints.model import Model
from jaxkv.checkpoints.table import check_dtype, flat_shapes, tree
from jaxkv.core.rope import Rope
from jaxkv.models.config import ModelConfig
from jaxkv.models.mesh import meshed
from jaxkv.models.placed import placed
from jaxkv.models.weights import is_linear, multiples
from jaxkv.text.pieces import CONTROL, NORMAL, byte_level
from jaxkv.text.stream import byte_of_character
from jaxkv.text.tokenizer import Tokenizer, make

NAME = "tiny-random"
_SEED = 20240
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def load(
    dtype: str = "float32", weights: str | None = None, mesh: Mesh | None = None,
    text: Tokenizer | None = None,
) -> Model:  # fmt: skip
    """The toy, with parameters of the asked dtype and form; see `sources.load`."""
    target = check_dtype(dtype)
    config = ModelConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rope=Rope(rotary_dim=16, theta=10000.0),
        max_positions=4096,
        tie_embeddings=True,
    )
    config = meshed(config, mesh)
    arrays = {
        path: placed(
            config,
            path,
            multiples(jax.device_put(values), weights)
            if weights and is_linear(path)
            else values.astype(target),
        )
        for path, values in _weights(config).items()
    }
    return Model(config, tree(config, arrays), text or tokenizer(), NAME, f"{NAME}-{_SEED}")


def _weights(config: ModelConfig) -> dict[str, np.ndarray]:
    """Norms of one, and normal numbers that keep the size of what they are multiplied with."""
    generator = np.random.default_rng(_SEED)
    weights = {}
    for path, shape in flat_shapes(config).items():
        if len(shape) == 1:
            weights[path] = np.ones(shape, np.float32)
            continue
        scale = 1.0 if path == "embed" else shape[0] ** -0.5
        weights[path] = generator.standard_normal(shape).astype(np.float32) * np.float32(scale)
    return weights


def tokenizer() -> Tokenizer:
    """Every byte is a token; common pairs of letters fill the vocabulary up to 512."""
    letters = "Ġetaoinshrdlucm."  # Ġ is the space in the byte-level alphabet
    pairs = list(itertools.product(letters, letters))[: 512 - 256 - len(_SPECIAL)]
    tokens = [*_SPECIAL, *byte_of_character(), *("".join(pair) for pair in pairs)]
    kinds = [CONTROL] * len(_SPECIAL) + [NORMAL] * (len(tokens) - len(_SPECIAL))
    return make(
        byte_level(tokens, pairs, kinds, "gpt2"),
        eos_ids=(2,),
        chat_template=_TEMPLATE,
        special_tokens={"bos_token": _SPECIAL[1], "eos_token": _SPECIAL[2]},
    )
