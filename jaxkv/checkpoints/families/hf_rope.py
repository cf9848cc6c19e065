# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The rotary embedding of a Hugging Face config.json, in the spellings of transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkv.checkpoints.families.windows import GLOBAL, LOCAL
from jaxkv.core.errors import InputError
from jaxkv.core.fields import Fields
from jaxkv.core.rope import (
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)

_ALLOWED = "default, linear, llama3, yarn or longrope"
_LENGTH = 2**31 - 1


def rope_from_hf(
    fields: Fields, head_dim: int, max_positions: int,
    *, theta: str = "rope_theta", part: str = "partial_rotary_factor", default_part: float = 1.0,
) -> Rope:  # fmt: skip
    """Reads `rope_parameters`, or `rope_theta` beside `rope_scaling`; see `_one_set` for both.

    Args:
      fields: the whole config.json.
      head_dim: H.
      max_positions: the trained length, which yarn and llama3 fall back to.
      theta: how the family calls the base, outside `rope_parameters`.
      part: how it calls the share of a head that is rotated.
      default_part: that share where the file does not tell.
    """
    nested = _one_set(fields, {"rope_theta": theta, "partial_rotary_factor": part})
    if any(isinstance(nested.raw(key), dict) for key in nested.keys()):
        raise fields.refuse("rope_parameters", "one set of numbers for all layers")
    base = nested.number("rope_theta", fields.number(theta, 10000.0, above=1), above=1)
    share = nested.number("partial_rotary_factor", fields.number(part, default_part))
    if share > 1:
        inside = nested.has("partial_rotary_factor")
        holder, key = (nested, "partial_rotary_factor") if inside else (fields, part)
        raise holder.refuse(key, "at most 1")
    original = fields.integer("original_max_position_embeddings", max_positions, high=_LENGTH)
    rotary = int(head_dim * share)
    return Rope(rotary, base, _scaling(nested, original, max_positions, rotary))


def _one_set(fields: Fields, outside: Mapping[str, str]) -> Fields:
    """`rope_scaling` where it says anything: it takes all of `rope_parameters`' place.

    So does transformers 5, which then takes what is in neither it nor the file's top from the
    family's defaults. Where `rope_parameters` says something else, that is not what is meant.

    Args:
      fields: the whole config.json.
      outside: of what may be in either, the name at the file's top.
    """
    new, old = fields.within("rope_parameters"), fields.within("rope_scaling")
    if not old.keys():
        return new
    for key, name in outside.items():
        said, elsewhere = new.raw(key), old.raw(key) if old.has(key) else fields.raw(name)
        default = 10000.0 if key == "rope_theta" else None
        if said is not None and said != (default if elsewhere is None else elsewhere):
            raise InputError(
                f"rope_parameters has {key} {said!r:.30} in {fields.where} and rope_scaling, which "
                "stands in its place, has not; it must be in rope_scaling too"
            )
    return old


def ropes_from_hf(
    fields: Fields, head_dim: int, max_positions: int, local_theta: float
) -> tuple[Rope, Rope]:
    """The rotary embeddings of layers that see all, and of those with a window.

    Args:
      fields: the whole config.json.
      head_dim: H.
      max_positions: the trained length.
      local_theta: the second's base where the file does not tell.
    """
    both, scaling = fields.within("rope_parameters"), fields.within("rope_scaling")
    if both.keys() and not {*both.keys()} <= {GLOBAL, LOCAL}:
        raise fields.refuse("rope_parameters", f"{GLOBAL} and {LOCAL}, each with its numbers")
    # transformers writes `rope_scaling` over the numbers of the layers that see all.
    wide = Fields(both.within(GLOBAL).values() | scaling.values(), scaling.where)
    local = both.within(LOCAL)
    base = wide.number("rope_theta", fields.number("rope_theta", 1e6, above=1), above=1)
    near = fields.number("rope_local_base_freq", local_theta, above=1)
    near = local.number("rope_theta", near, above=1)
    scalings = (_scaling(x, max_positions, max_positions, head_dim) for x in (wide, local))
    return Rope(head_dim, base, next(scalings)), Rope(head_dim, near, next(scalings))


def rope_to_hf(rope: Rope | None) -> dict[str, Any]:
    """The inverse of `rope_from_hf`, but for the share of a head: `rope_theta`, `rope_scaling`."""
    assert rope is not None
    return {"rope_theta": rope.theta, "rope_scaling": _scaling_to_hf(rope.scaling)}


def _scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    names: dict[type, dict[str, str]] = {
        LinearScaling: {"rope_type": "linear"},
        Llama3Scaling: {"rope_type": "llama3"},
        YarnScaling: {"rope_type": "yarn"},
        LongScaling: {"rope_type": "longrope"},
    }
    if type(scaling) not in names:
        raise InputError(
            f"the rope scaling {type(scaling).__name__} has no name in Hugging Face's config.json"
        )
    renamed = {
        "original_max_positions": "original_max_position_embeddings",
        "short_factors": "short_factor",
        "long_factors": "long_factor",
    }
    made: dict[str, Any] = dict(names[type(scaling)])
    for name, value in vars(scaling).items():
        if value is not None and name != "max_positions":
            made[renamed.get(name, name)] = list(value) if isinstance(value, tuple) else value
    return made


def _scaling(fields: Fields, original: int, max_positions: int, rotary: int) -> RopeScaling | None:
    key = "rope_type" if fields.has("rope_type") else "type"
    kind = fields.text(key, "default")
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(fields.number("factor"))
    # Phi-3's first files say su or yarn of it.
    if kind in ("longrope", "su") or kind == "yarn" and fields.has("long_factor"):
        key = "original_max_position_embeddings"
        original = fields.integer(key, original, low=2, high=_LENGTH)
        return LongScaling(
            short_factors=_factors(fields, "short_factor", rotary // 2),
            long_factors=_factors(fields, "long_factor", rotary // 2),
            original_max_positions=original,
            max_positions=max_positions,
            attention_factor=_optional(fields, "attention_factor"),
        )
    if kind == "dynamic":
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


def _factors(fields: Fields, key: str, count: int) -> tuple[float, ...]:
    value = fields.raw(key)
    numbers = isinstance(value, list) and all(
        isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1e30 for x in value
    )
    if not numbers or len(value) != count:
        raise fields.refuse(key, f"{count} numbers above 0")
    return tuple(float(x) for x in value)
