# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Packages that are not installed with jaxkv, and what asks for them."""

from __future__ import annotations

import importlib.util

from jaxkv.core.errors import InputError


def require(package: str, extra: str, what: str) -> None:
    """Before a package is imported that not everybody has.

    Args:
      package: as it is imported.
      extra: of jaxkv that brings it.
      what: needs it; the message begins with it.

    Raises:
      InputError: it is not there; the message says how it comes.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{what} needs {package}: pip install 'jaxkv[{extra}]'")
