# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How much of a budget each head gets, from a file: what a calibration found, or anybody wrote.

One JSON object:

  {"format": "jaxkv.shares", "model": "layers30-heads9-…", "ratios": [0.1, 0.5],
   "shares": [[[0.4, 1.6], …], [[0.8, 1.2], …]]}

`model` is `ModelConfig.identity`, or empty for any model of this shape. `ratios` are shares of a
prompt that are kept, rising. For each there are shares of the mean budget, a list of a layer's KV
heads for each layer; their mean over the model is 1. What is dealt out by them is the budget less
the sinks and the window, which every head keeps.

LU-KV's files (arXiv 2602.08585) are read too: .npy, [99, L, K], for each percentage of a prompt
that is to go the share that goes of each head.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkv.core.errors import InputError, one_line
from jaxkv.core.files import whole_file
from jaxkv.core.reading import opened, read_json
from jaxkv.layers.base import Geometry
from jaxkv.policies.head_scores import check_model, is_number, matrix

SHARES = "jaxkv.shares"
_PERCENTAGES = 99
_OFF = 1e-3  # by which a mean may differ from 1: files hold rounded numbers


def head_shares(path: str, kept: float, geometry: Geometry) -> np.ndarray:
    """Shares of the mean budget, float64 [L, K], whose mean over the layers that are ruled is 1.

    Args:
      path: of the file.
      kept: the share of a prompt that is kept. Between two ratios shares are interpolated linearly;
        beyond the first and the last they are theirs.
      geometry: the model's.

    Raises:
      InputError: the file is missing, damaged, or of another model.
    """
    ratios, tables = _tables(path, geometry)
    at = float(np.interp(kept, ratios, np.arange(ratios.size)))
    low = int(at)
    high = min(low + 1, ratios.size - 1)
    shares = tables[low] + (at - low) * (tables[high] - tables[low])
    mean = shares[list(geometry.ruled)].mean()
    if not mean > 0:
        raise InputError(f"table {path} gives nothing to the layers without a window of their own")
    return shares / mean


def save_shares(
    path: str | Path,
    ratios: Sequence[float],
    shares: np.ndarray,
    model: str,
    about: Mapping[str, Any],
) -> None:
    """Writes a table, whole or not at all.

    Args:
      path: where to.
      ratios: R, rising.
      shares: [R, L, K]; each table is divided by its mean.
      model: `ModelConfig.identity`, or empty.
      about: whatever tells how they were made.
    """
    shares = np.asarray(shares, np.float64)
    shares = shares / shares.mean(axis=(1, 2), keepdims=True)
    rows = [[[round(float(x), 9) for x in row] for row in table] for table in shares]
    content = {"format": SHARES, "model": model, **about, "ratios": list(ratios), "shares": rows}
    with whole_file(path) as part:
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")


@functools.lru_cache(maxsize=8)
def _tables(path: str, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The file's ratios [R] and its tables [R, L, K], every number checked."""
    where = f"table {path}"
    if path.endswith(".npy"):
        return _from_pruned(path, where, geometry)
    content = read_json(Path(path), where)
    if content.get("format") != SHARES:
        raise InputError(f"{where} is no table of shares: its format is not {SHARES!r}")
    check_model(content, geometry, where)
    ratios, tables = content.get("ratios"), content.get("shares")
    good = isinstance(ratios, list) and all(is_number(x) and 0 < x <= 1 for x in ratios)
    if not good or not ratios or any(a >= b for a, b in zip(ratios, ratios[1:], strict=False)):
        raise InputError(f"{where}: ratios must be rising numbers, above 0 and at most 1")
    if not isinstance(tables, list) or len(tables) != len(ratios):
        raise InputError(f"{where}: shares must be a list with a table for each of the ratios")
    found = []
    for ratio, table in zip(ratios, tables, strict=True):
        here = f"{where}, ratio {ratio},"
        shares = matrix(table, geometry.num_layers, geometry.num_kv_heads, "KV heads", here)
        if shares.min() < 0:
            raise InputError(f"{here} has shares below 0")
        if abs(shares.mean() - 1) > _OFF:
            raise InputError(f"{here} has shares of mean {shares.mean():.6g}; it must be 1")
        found.append(shares)
    return np.asarray(ratios, np.float64), np.stack(found)


def _from_pruned(path: str, where: str, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """LU-KV's curve, by what is kept, rising."""
    try:
        with opened(path, where) as file:
            pruned = np.load(file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{where} is no NumPy array: {one_line(error)}") from None
    shape = (_PERCENTAGES, geometry.num_layers, geometry.num_kv_heads)
    if not isinstance(pruned, np.ndarray) or pruned.shape != shape:
        held = getattr(pruned, "shape", "several arrays")
        raise InputError(f"{where} has shape {held}; for this model LU-KV's files are {shape}")
    if pruned.dtype.kind not in "fiu" or not ((pruned >= 0) & (pruned <= 1)).all():
        raise InputError(f"{where} holds something that is not a share from 0 to 1")
    kept = 1 - pruned[::-1].astype(np.float64)
    means = kept.mean(axis=(1, 2), keepdims=True)
    if not (means > 0).all():
        raise InputError(f"{where} keeps nothing of any head at some percentage")
    return np.arange(1, _PERCENTAGES + 1) / 100, kept / means
