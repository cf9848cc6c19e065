# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Which layers have a sliding window of their own, as config.json says it and as we do."""

from __future__ import annotations

from typing import Any

from jaxkv.core.fields import Fields
from jaxkv.models.config import ModelConfig

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def kinds_from_hf(fields: Fields, default: list[str]) -> list[str]:
    """The kind of each layer: `layer_types`, or the default of the family."""
    kinds = fields.raw("layer_types")
    if kinds is None:
        return default
    known = isinstance(kinds, list) and all(kind in (LOCAL, GLOBAL) for kind in kinds)
    if not known or len(kinds) != len(default):
        raise fields.refuse("layer_types", f"{len(default)} of {LOCAL} and {GLOBAL}")
    return kinds


def windows_from_hf(
    fields: Fields, kinds: list[str], size: int | None, most: int | None = None
) -> tuple[int, ...]:
    """Of each layer, the past tokens it sees, and 0 where it sees all; empty if all do.

    Hugging Face's window counts the query itself.

    Args:
      fields: config.json.
      kinds: of the layers.
      size: the window where the file does not name it; one that is null is none.
      most: the trained context, within which a window as long as itself hides nothing: there is
        none then. None keeps every window.
    """
    named = "sliding_window" in fields.keys()
    if LOCAL not in kinds or (named and not fields.has("sliding_window")):
        return ()
    if not named and size is None:
        return ()
    window = fields.integer("sliding_window", size, low=2, high=2**31 - 1)
    if most is not None and window >= most:
        return ()
    return tuple(window - 1 if kind == LOCAL else 0 for kind in kinds)


def windows_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `windows_from_hf`, and of `kinds_from_hf`."""
    if not config.windows:
        return {"sliding_window": None, "layer_types": [GLOBAL] * config.num_layers}
    kinds = [LOCAL if window else GLOBAL for window in config.windows]
    return {"sliding_window": max(config.windows) + 1, "layer_types": kinds}
