# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The model families that can be loaded. A further one is one file and one name here."""

from __future__ import annotations

from jaxkv.checkpoints.families import falcon, gemma, llama, mistral, mpt, neox, phi, qwen
from jaxkv.checkpoints.families.base import Family
from jaxkv.core.errors import InputError

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    phi.FAMILY,
    qwen.QWEN2,
    qwen.QWEN3,
    gemma.GEMMA2,
    gemma.GEMMA3,
    gemma.GEMMA3_WITH_PICTURES,
    neox.FAMILY,
    falcon.FAMILY,
    mpt.FAMILY,
)


def by_hf_type(model_type: str) -> Family:
    """The family of config.json's `model_type`."""
    return _find(model_type, {name: family for family in FAMILIES for name in family.hf_types})


def by_gguf_type(architecture: str) -> Family:
    """The family of a GGUF file's `general.architecture`."""
    return _find(architecture, {name: family for family in FAMILIES for name in family.gguf_types})


def _find(name: str, table: dict[str, Family]) -> Family:
    if name not in table:
        raise InputError(
            f"the model's architecture is {name!r:.80}; supported are {', '.join(sorted(table))}"
        )
    return table[name]
