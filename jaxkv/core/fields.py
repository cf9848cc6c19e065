# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads a stranger's metadata: every value has a name, a type and a range, or it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkv.core.errors import InputError


class Fields:
    """Typed access to the key/value pairs of a `config.json` or of a GGUF header.

    A key that is absent and one that is null mean the same, as in Hugging Face's files. A method
    called without a default requires the key.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values = values
        self.where = where

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def raw(self, key: str) -> Any:
        return self._values.get(key)

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = 2**24) -> int:
        value = self._value(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._refused(key, value, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None, above: float = 0.0) -> float:
        """A finite number: every real-valued field of a decoder is above zero."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refused(key, value, f"a number above {above:g}")
        if not above < value < 1e30:  # also refuses NaN
            raise self._refused(key, value, f"a number above {above:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._refused(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._refused(key, value, "a text")
        return value

    def within(self, key: str) -> Fields:
        """The nested object under `key`; empty where there is none."""
        value = self._values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self._refused(key, value, "an object")
        return Fields(value, f"{key} in {self.where}")

    def values(self) -> dict[str, Any]:
        """All that is there and not null."""
        return {key: value for key, value in self._values.items() if value is not None}

    def keys(self) -> list[str]:
        return [str(key) for key in self._values]

    def refuse(self, key: str, allowed: str) -> InputError:
        """The error that says why the present value of `key` cannot be used."""
        return self._refused(key, self._values.get(key), allowed)

    def _value(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        if value is None:
            value = default
        if value is None:
            raise InputError(f"{key} is missing from {self.where}")
        return value

    def _refused(self, key: str, value: Any, allowed: str) -> InputError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return InputError(f"{key} is {shown} in {self.where}; it must be {allowed}")


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-5, where the header holds 9.9999997e-6."""
    return float(str(np.float32(value)))
