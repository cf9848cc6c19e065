# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A model before its first step: its shape, what its first tokens are, and random weights.

What a first token is decides whether a model needs one later (arXiv 2309.17453, section 3.3). Three
arms differ in that alone:

    vanilla      a sample is text, and whatever comes first in it becomes the sink
    zero-sink    the softmax has one more term, exp(0), which is no token: nothing needs a sink
    sink-token   a token of its own stands before every sample, and is learnt as the sink
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkv.checkpoints.families import by_hf_type
from jaxkv.checkpoints.table import flat_shapes, tree
from jaxkv.core.errors import InputError
from jaxkv.core.fields import Fields
from jaxkv.models.config import ModelConfig
from jaxkv.text.engine import refusing
from jaxkv.text.tokenizer import Tokenizer

ARMS = ("vanilla", "zero-sink", "sink-token")
SINKS = ("<|sink|>", "<|sink2|>")
# What a family has beside the sizes, in the words of its config.json.
FAMILIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gpt_neox": {"max_position_embeddings": 0, "rotary_pct": 0.25},
        "llama": {"max_position_embeddings": 0, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    }
)
_MULTIPLE = 128  # of which the rows of an embedding are, as Pythia's
_LAST = ("wo", "w_down")  # what is added to the residual stream


@dataclasses.dataclass(frozen=True)
class Shape:
    """Attributes:
    family: one of `FAMILIES`.
    layers: how many.
    width: of the residual stream.
    heads: of queries; they divide the width.
    kv_heads: None is as many; only a Llama may have fewer.
    mlp_width: None is four times the width.
    """

    family: str = "gpt_neox"
    layers: int = 5
    width: int = 256
    heads: int = 4
    kv_heads: int | None = None
    mlp_width: int | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InputError(f"family is {self.family!r}; it must be {' or '.join(FAMILIES)}")
        for name in ("layers", "width", "heads", "kv_heads", "mlp_width"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 2**20:
                flag = name.replace("_", "-")
                raise InputError(f"{flag} is {value}; it must be from 1 to {2**20}")
        if self.width % self.heads or self.width // self.heads % 8:
            raise InputError(
                f"width is {self.width}; it must be {self.heads} heads of a multiple of 8"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise InputError(f"kv-heads is {self.kv_heads}; it must divide {self.heads} heads")
        if self.kv_heads not in (None, self.heads) and self.family != "llama":
            raise InputError(f"kv-heads is {self.kv_heads}; a {self.family} has as many as heads")

    def config(self, tokens: int, context: int, attention: str) -> ModelConfig:
        """The model's configuration.

        An embedding has rows for two sink tokens in every arm, so that all have one size.

        Args:
          tokens: ids of the tokenizer, without sink tokens.
          context: tokens of a sample, which is what it is trained for.
          attention: one of `ARMS`.
        """
        rows = tokens + len(SINKS)
        fields = dict(FAMILIES[self.family]) | {
            "model_type": self.family,
            "vocab_size": -(-rows // _MULTIPLE) * _MULTIPLE,
            "hidden_size": self.width,
            "intermediate_size": self.mlp_width or 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads or self.heads,
            "max_position_embeddings": context,
        }
        config = by_hf_type(self.family).hf_config(Fields(fields, "the shape"))
        return dataclasses.replace(config, sink_logits=attention == "zero-sink")


def with_sinks(tokenizer: Tokenizer, count: int) -> Tokenizer:
    """The tokenizer of an arm: what is put before a text are so many sink tokens, and nothing else.

    They are the ids after all others. To whoever runs the model they are its BOS, which stands
    before a prompt by itself and is a first token like any other.
    """
    import tokenizers

    special = {role: text for role, text in tokenizer.special_tokens.items() if role != "bos_token"}
    if not count:
        return dataclasses.replace(tokenizer, bos_ids=(), special_tokens=special)
    with refusing("the tokenizer takes no sink tokens"):
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        backend.add_special_tokens(
            [tokenizers.AddedToken(text, normalized=False) for text in SINKS[:count]]
        )
        ids = [backend.token_to_id(text) for text in SINKS[:count]]
    return dataclasses.replace(
        tokenizer, backend=backend, bos_ids=tuple(int(i) for i in ids if i is not None),
        special_tokens={**special, "bos_token": SINKS[0]},
    )  # fmt: skip


def first_weights(config: ModelConfig, seed: int) -> dict:
    """Random float32 weights, the same on every machine.

    Normal numbers of variance 2 / 5D, and of deviation 2 / (L sqrt(D)) where they are added to the
    residual stream: GPT-NeoX' `small_init` and `wang_init`. Norms do nothing, biases and logits of
    sinks are zero.
    """
    width, arrays = config.hidden_size, {}
    usual, last = math.sqrt(2 / (5 * width)), 2 / (config.num_layers * math.sqrt(width))
    for index, (path, shape) in enumerate(flat_shapes(config).items()):
        name = path.rpartition(".")[2]
        if len(shape) == 1:
            arrays[path] = jnp.full(shape, float(name.endswith("norm")), jnp.float32)
            continue
        rng = np.random.default_rng([seed, index])
        deviation = np.float32(last if name in _LAST else usual)
        drawn = rng.standard_normal(shape, np.float32)
        arrays[path] = jnp.asarray(drawn * deviation)
    return tree(config, arrays)
