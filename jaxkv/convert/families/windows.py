# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Which layers have a sliding window of their own, as config.json says it and as we do."""

from __future__ import annotations

from typing import Any

from jaxkv.convert.fields import Fields
from jaxkv.models.config import ModelConfig

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def windows_from_hf(
    fields: Fields, num_layers: int, max_positions: int, default: list[str], size: int | None = None
) -> tuple[int, ...]:
    """Of each layer, the past tokens it sees, and 0 where it sees all; empty if all do.

    Hugging Face's window counts the query itself. One that is as long as the trained context hides
    nothing.

    Args:
      fields: config.json.
      num_layers: L.
      max_positions: the trained context.
      default: the kinds of layers, where `layer_types` does not tell.
      size: the window where `sliding_window` is missing; None is none.
    """
    kinds = fields.raw("layer_types")
    if kinds is None:
        kinds = default
    known = isinstance(kinds, list) and all(kind in (LOCAL, GLOBAL) for kind in kinds)
    if not known or len(kinds) != num_layers:
        raise fields.refuse("layer_types", f"{num_layers} of {LOCAL} and {GLOBAL}")
    if LOCAL not in kinds or not (fields.has("sliding_window") or size):
        return ()
    window = fields.integer("sliding_window", size, low=2, high=2**31 - 1)
    if window >= max_positions:
        return ()
    return tuple(window - 1 if kind == LOCAL else 0 for kind in kinds)


def windows_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `windows_from_hf`."""
    if not config.windows:
        return {"sliding_window": None, "layer_types": [GLOBAL] * config.num_layers}
    kinds = [LOCAL if window else GLOBAL for window in config.windows]
    return {"sliding_window": max(config.windows) + 1, "layer_types": kinds}
