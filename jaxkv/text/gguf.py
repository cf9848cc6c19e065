# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that a GGUF header carries."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxkv.core.errors import InputError
from jaxkv.core.fields import Fields
from jaxkv.text.engine import refusing
from jaxkv.text.pieces import BYTE_LEVEL_SPLITS, CONTROL, Pieces, byte_level, sentence_pieces
from jaxkv.text.tokenizer import Tokenizer, make

if TYPE_CHECKING:
    import tokenizers

_KEY = "tokenizer.ggml."
# llama.cpp's names for how text is split before merging -> ours.
_SPLITS = {
    "gpt-2": "gpt2",
    "default": "gpt2",
    "mpt": "gpt2",
    "olmo": "gpt2",
    "smollm": "digits",
    "starcoder": "digits",
    "refact": "digits",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "falcon3": "llama3",
    "falcon-h1": "llama3",
    "pixtral": "llama3",
    "midm-2.0": "llama3",
    "lfm2": "llama3",
    "dbrx": "dbrx",
    "smaug-bpe": "dbrx",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "kormo": "qwen2",
    "megrez": "qwen2",
    "gpt-4o": "gpt4o",
    "llama4": "gpt4o",
    "tekken": "tekken",
    "falcon": "falcon",
    "phi-2": "gpt2",
    "gigachat": "gpt2",
    "mellum": "gpt2",
    "a.x-4.0": "gpt2",
    "exaone4": "gpt2",
}
# Of files that do not name it, such as the first of Llama 3.
_FAMILIES = {"llama": "llama3", "qwen2": "qwen2", "qwen3": "qwen2", "falcon": "falcon"}
_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def tokenizer_from_gguf(fields: Fields, vocab_size: int) -> Tokenizer:
    """Builds the tokenizer of a GGUF file.

    Args:
      fields: the header.
      vocab_size: rows of the embedding; ids beyond it are refused.
    """
    tokens = _tokens(fields, vocab_size)
    backends: dict[str, Callable[[Fields, list[str]], tokenizers.Tokenizer]] = {
        "gpt2": _byte_level,
        "llama": _sentence_pieces,
    }
    kind = fields.text(_KEY + "model")
    if kind not in backends:
        raise fields.refuse(_KEY + "model", f"one of {', '.join(backends)}")
    with refusing("the tokenizer cannot be used"):
        backend = backends[kind](fields, tokens)
    names = (*_NAMES, "eot", "eom")
    ids = {name: _id(fields, f"{_KEY}{name}_token_id", len(tokens)) for name in names}
    special = {role: tokens[i] for name, role in _NAMES.items() if (i := ids[name]) is not None}
    named = fields.has(_KEY + "pre") and _split(fields) == "llama3"
    add_bos = fields.flag(_KEY + "add_bos_token", kind == "llama" or named)
    has_template = fields.has("tokenizer.chat_template")
    return make(
        backend,
        bos_ids=[i for i in (ids["bos"],) if i is not None and add_bos],
        eos_ids=[ids[name] for name in ("eos", "eot", "eom")],
        chat_template=fields.text("tokenizer.chat_template") if has_template else None,
        special_tokens=special,
    )


def _tokens(fields: Fields, vocab_size: int) -> list[str]:
    tokens = _strings(fields, "tokens")
    if not 0 < len(tokens) <= vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokens)} tokens; it must have 1 to {vocab_size}, as the model"
        )
    if len(set(tokens)) < len(tokens):
        raise InputError("the tokenizer holds the same token twice")
    return tokens


def _byte_level(fields: Fields, tokens: list[str]) -> tokenizers.Tokenizer:
    merges = [tuple(merge.split(" ")) for merge in _strings(fields, "merges")]
    split = _split(fields)
    if not fields.has(_KEY + "pre"):
        warnings.warn(
            f"{fields.where} does not name how its text is split before merging; it is split as "
            f"{split}, as its family does",
            stacklevel=2,
        )
    return byte_level(tokens, merges, _kinds(fields, tokens), split)


def _sentence_pieces(fields: Fields, tokens: list[str]) -> tokenizers.Tokenizer:
    scores = _array(fields, "scores", len(tokens)).astype(np.float64).tolist()
    kinds = _kinds(fields, tokens)
    prefix = fields.flag(_KEY + "add_space_prefix", True)
    return sentence_pieces(
        Pieces(tokens, scores, kinds), add_prefix=prefix, swallowing=_swallowing(fields, tokens)
    )


def _swallowing(fields: Fields, tokens: list[str]) -> set[str]:
    """Phi-3's special tokens take the white space behind them.

    A header has no field for that: as llama.cpp does, it is told by the name of the model.
    """
    name = fields.text("general.name", "").lower().replace("-", "")
    if "phi3" not in name and fields.text("general.architecture", "") != "phi3":
        return set()
    return {*tokens} - {"<unk>", "<s>", "<|endoftext|>"}


def _split(fields: Fields) -> str:
    family = _FAMILIES.get(fields.text("general.architecture", ""), "gpt2")
    name = fields.text(_KEY + "pre", family)
    if name not in _SPLITS and name not in BYTE_LEVEL_SPLITS:
        raise fields.refuse(_KEY + "pre", f"one of {', '.join(_SPLITS)}")
    return _SPLITS.get(name, name)


def _kinds(fields: Fields, tokens: list[str]) -> list[int]:
    """How each token is used; where the header does not say, `<|...|>` are special."""
    if not fields.has(_KEY + "token_type"):
        return [CONTROL if t.startswith("<|") and t.endswith("|>") else 1 for t in tokens]
    return _array(fields, "token_type", len(tokens)).tolist()


def _id(fields: Fields, key: str, count: int) -> int | None:
    return fields.integer(key, low=0, high=count - 1) if fields.has(key) else None


def _strings(fields: Fields, name: str) -> list[str]:
    value: Any = fields.raw(_KEY + name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise fields.refuse(_KEY + name, "an array of texts")
    return value


def _array(fields: Fields, name: str, count: int) -> np.ndarray:
    value: Sequence | np.ndarray | None = fields.raw(_KEY + name)
    if not isinstance(value, np.ndarray) or value.shape != (count,):
        raise fields.refuse(_KEY + name, f"an array of {count} numbers")
    return value
