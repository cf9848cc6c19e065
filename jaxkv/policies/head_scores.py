# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What was calibrated for a model's heads: DuoAttention's gates and HeadKV's scores, from files."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkv.core.errors import InputError
from jaxkv.core.files import whole_file
from jaxkv.core.reading import read_json, read_text
from jaxkv.layers.base import Geometry

GATES = "jaxkv.duo"
SCORES = "jaxkv.headkv"
_LARGEST = 2**28  # bytes of a file; the official ones take some megabytes
_PACKAGE = Path(__file__).parent.parent
_SHIPPED = (_PACKAGE / "patterns", _PACKAGE.parent / "configs" / "patterns")


@functools.lru_cache(maxsize=8)
def full_heads(
    path: str | None, sparsity: float, geometry: Geometry
) -> tuple[tuple[int, ...], ...]:
    """The KV heads of each layer that keep everything.

    Args:
      path: DuoAttention's folder, our file, or None for the one that is shipped for the model.
      sparsity: share of all KV heads that only stream.
      geometry: the model's; what was made for another shape or model is refused.

    Raises:
      InputError: the file is missing, damaged, or of another model.
    """
    where, content, gates = _gates(path, geometry)
    mask = _stored_mask(content, sparsity, gates.shape, where)
    if mask is None:
        mask = np.zeros(gates.shape, bool)
        ruled = list(geometry.ruled)
        mask[ruled] = sparsify(gates[ruled], sparsity)
    return tuple(tuple(int(head) for head in np.flatnonzero(row)) for row in mask)


def head_gates(path: str | None, geometry: Geometry) -> np.ndarray:
    """The gates [L, K] of a file, or of the one that is shipped for the model.

    Raises:
      InputError: the file is missing, damaged, or of another model.
    """
    return _gates(path, geometry)[2]


def _gates(path: str | None, geometry: Geometry) -> tuple[str, Mapping[str, Any], np.ndarray]:
    where, content = _read(path, GATES, geometry)
    layers, heads = geometry.num_layers, geometry.num_kv_heads
    return where, content, matrix(content["gates"], layers, heads, "KV heads", where)


def sparsify(gates: np.ndarray, sparsity: float) -> np.ndarray:
    """Which heads keep everything: bool, the shape of `gates` [L, K].

    Exactly `round(sparsity * gates.size)` heads stream, those of the lowest gates. Of heads whose
    gates are equal the one in the deeper layer, then of the higher index, streams first, so that
    the same file gives the same heads on every machine (the reference code breaks ties at random).
    Gates are clipped to [0, 1] first, as training leaves some just outside.
    """
    flat = np.clip(gates, 0.0, 1.0).reshape(-1)
    streaming = round(sparsity * flat.size)
    # Stable, from the last head back: of equal gates the last comes first.
    order = flat.size - 1 - np.argsort(flat[::-1], kind="stable")
    mask = np.ones(flat.size, bool)
    mask[order[:streaming]] = False
    return mask.reshape(gates.shape)


@functools.lru_cache(maxsize=8)
def head_scores(path: str | None, geometry: Geometry) -> np.ndarray:
    """Importance of each query head, float64 [L, N], summing to 1 over the model.

    Args:
      path: HeadKV's one-line JSON of "layer-head" keys, our file, or None for the shipped one.
      geometry: the model's.

    Raises:
      InputError: the file is missing, damaged, or of another model.
    """
    where, content = _read(path, SCORES, geometry)
    scores = matrix(content["scores"], geometry.num_layers, geometry.num_heads, "heads", where)
    if scores.min() < 0 or scores.sum() <= 0:
        raise InputError(f"{where} has scores below 0, or none above it")
    return scores / scores.sum()


def save_pattern(
    path: str | Path, kind: str, values: np.ndarray, model: str, about: Mapping[str, Any]
) -> None:
    """Writes gates [L, K] or scores [L, N] as one JSON object, whole or not at all.

    Args:
      path: where to.
      kind: `GATES` or `SCORES`.
      values: the numbers.
      model: `ModelConfig.identity`.
      about: whatever tells how they were made; for gates it may hold `sparsity` and `full_heads`,
        the boolean mask at it, which is then used as it is.
    """
    name = "gates" if kind == GATES else "scores"
    rows = [[round(float(x), 9) for x in row] for row in values]
    content = {"format": kind, "model": model, **about, name: rows}
    with whole_file(path) as part:
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _read(path: str | None, kind: str, geometry: Geometry) -> tuple[str, Mapping[str, Any]]:
    """What the file is called in errors, and its content with its gates or scores."""
    if path is None:
        return _shipped(kind, geometry)
    where = f"{'pattern' if kind == GATES else 'scores'} {path}"
    source = Path(path)
    if kind == GATES and source.is_dir():
        return where, {"gates": _read_tsv(source / "full_attention_heads.tsv", where)}
    content = read_json(source, where, _LARGEST)
    if content.get("format") == kind:
        check_model(content, geometry, where)
        if ("gates" if kind == GATES else "scores") not in content:
            raise InputError(f"{where} holds no {'gates' if kind == GATES else 'scores'}")
        return where, content
    if kind == SCORES:
        return where, {"scores": _by_name(content, geometry, where)}
    raise InputError(f"{where} is not a file of gates; it must be one of ours or a folder")


@functools.lru_cache(maxsize=8)
def _shipped(kind: str, geometry: Geometry) -> tuple[str, Mapping[str, Any]]:
    """The file that comes with the package for this model."""
    for folder in _SHIPPED:
        for source in sorted(folder.glob("*.json")):
            content = read_json(source, f"shipped {source.name}", _LARGEST)
            if content.get("format") == kind and content.get("model") == geometry.model:
                return f"shipped {source.name}", content
    field, command = ("pattern", "duo") if kind == GATES else ("scores", "headkv")
    raise InputError(
        f"{field} is not given and none is shipped for this model; give a {field} file, or make "
        f"one with python -m jaxkv.calibrate {command}"
    )


def _read_tsv(source: Path, where: str) -> list[list[Any]]:
    """DuoAttention's gates: a row a layer, a column a KV head."""
    text = read_text(source, where, _LARGEST)
    try:
        return [[float(x) for x in line.split("\t")] for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise InputError(f"{where}: {source.name} is damaged: {error}") from None


def _by_name(content: Mapping[str, Any], geometry: Geometry, where: str) -> list[list[float]]:
    """HeadKV's scores, one list of examples for each "layer-head": their means."""
    expected = geometry.num_layers * geometry.num_heads
    if len(content) != expected:
        raise InputError(
            f"{where} has scores of {len(content)} heads; the model has {geometry.num_layers} "
            f"layers of {geometry.num_heads} heads, so it must have {expected}"
        )
    table = []
    for layer in range(geometry.num_layers):
        row = []
        for head in range(geometry.num_heads):
            examples = content.get(f"{layer}-{head}")
            if not isinstance(examples, list) or not examples or not all(map(is_number, examples)):
                raise InputError(f"{where} has no numbers for {layer}-{head}")
            row.append(sum(examples) / len(examples))
        table.append(row)
    return table


def check_model(content: Mapping[str, Any], geometry: Geometry, where: str) -> None:
    """Refuses what was made for another model, where both are known.

    Raises:
      InputError: names both.
    """
    if geometry.model and content.get("model") not in ("", None, geometry.model):
        raise InputError(
            f"{where} was made for a model of {content['model']!r:.120}, this one is "
            f"{geometry.model!r}"
        )


def matrix(values: Any, layers: int, heads: int, what: str, where: str) -> np.ndarray:
    """float64 [layers, heads], all finite.

    Args:
      values: from a file.
      layers: that the model has.
      heads: that a layer of it has.
      what: the heads are called in errors.
      where: the file is called in errors.

    Raises:
      InputError: it is something else.
    """
    if not isinstance(values, Sequence) or not all(isinstance(row, list) for row in values):
        raise InputError(f"{where} must hold a list of numbers for each layer")
    widths = {len(row) for row in values}
    if len(values) != layers or widths != {heads}:
        raise InputError(
            f"{where} is for {len(values)} layers of {sorted(widths)} {what}; the model has "
            f"{layers} layers of {heads}"
        )
    if not all(is_number(x) for row in values for x in row):
        raise InputError(f"{where} holds something that is not a finite number")
    return np.asarray(values, np.float64)


def _stored_mask(
    content: Mapping[str, Any], sparsity: float, shape: tuple[int, ...], where: str
) -> np.ndarray | None:
    """The mask that the file holds for this sparsity, if it does."""
    stored = content.get("full_heads")
    if stored is None or content.get("sparsity") != sparsity:
        return None
    rows = stored if isinstance(stored, list) else []
    good = all(isinstance(row, list) and all(type(x) is bool for x in row) for row in rows)
    if not good or [len(row) for row in rows] != [shape[1]] * shape[0]:
        raise InputError(f"{where}: full_heads must hold true or false for each KV head")
    return np.asarray(rows, bool)


def is_number(x: Any) -> bool:
    """Whether a value of a file is a finite number that float32 can hold, and no bool."""
    return isinstance(x, int | float) and not isinstance(x, bool) and -1e30 < x < 1e30
