# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The rotary embedding of a Hugging Face config.json, in the spellings of transformers 4 and 5."""

from __future__ import annotations

from jaxkv.convert.fields import Fields
from jaxkv.rope import LinearScaling, Llama3Scaling, Rope, RopeScaling, YarnScaling

_ALLOWED = "default, linear, llama3 or yarn"
_LENGTH = 2**31 - 1


def rope_from_hf(fields: Fields, head_dim: int, max_positions: int) -> Rope:
    """Reads `rope_parameters`, or `rope_theta` beside `rope_scaling`.

    Args:
      fields: the whole config.json.
      head_dim: H.
      max_positions: the trained length, which yarn and llama3 fall back to.
    """
    nested = fields.within("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    if any(isinstance(nested.raw(key), dict) for key in nested.keys()):
        raise fields.refuse("rope_parameters", "one set of numbers for all layers")
    theta = nested.number("rope_theta", fields.number("rope_theta", 10000.0, above=1), above=1)
    part = nested.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if part > 1:
        raise (nested if nested.has("partial_rotary_factor") else fields).refuse(
            "partial_rotary_factor", "at most 1"
        )
    original = fields.integer("original_max_position_embeddings", max_positions, high=_LENGTH)
    return Rope(int(head_dim * part), theta, _scaling(nested, original, max_positions))


def _scaling(fields: Fields, original: int, max_positions: int) -> RopeScaling | None:
    key = "rope_type" if fields.has("rope_type") else "type"
    kind = fields.text(key, "default")
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(fields.number("factor"))
    if kind in ("dynamic", "longrope", "su"):
        # A key is rotated once, when it is written: frequencies that change with the length
        # would need every kept key to be rotated again.
        raise fields.refuse(key, f"{_ALLOWED}: its frequencies depend on the current length")
    if kind not in ("llama3", "yarn"):
        raise fields.refuse(key, _ALLOWED)
    original = fields.integer("original_max_position_embeddings", original, high=_LENGTH)
    if kind == "llama3":
        low = fields.number("low_freq_factor")
        return Llama3Scaling(
            factor=fields.number("factor"),
            low_freq_factor=low,
            high_freq_factor=fields.number("high_freq_factor", above=low),
            original_max_positions=original,
        )
    return YarnScaling(
        factor=fields.number("factor", max_positions / original),
        original_max_positions=original,
        beta_fast=fields.number("beta_fast", 32.0),
        beta_slow=fields.number("beta_slow", 1.0),
        attention_factor=_optional(fields, "attention_factor"),
        mscale=_optional(fields, "mscale"),
        mscale_all_dim=_optional(fields, "mscale_all_dim"),
        truncate=fields.flag("truncate", True),
    )


def _optional(fields: Fields, key: str) -> float | None:
    return fields.number(key) if fields.has(key) else None
