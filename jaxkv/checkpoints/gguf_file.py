# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The layout of a GGUF file: a header of key/value pairs, a list of tensors, then their bytes.

The `gguf` package's own reader makes an array object of every string and believes every length;
for a vocabulary of 49,152 it takes two seconds, and a file can make it loop for ever. This one
takes a tenth of a second and never reads a length that the file does not have room for. What a
quantised block means is left to the package.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkv.checkpoints.table import Blocks
from jaxkv.core.errors import InputError
from jaxkv.core.reading import opened

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_BLOCKS = {8: "int8", 2: "int4"}  # the kinds that are whole multiples of a scale and no more
_CHUNK = 2**18  # values decoded at once: many for one NumPy call, few for the processor's cache


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and how it is stored."""

    shape: tuple[int, ...]  # row-major, as NumPy counts
    kind: int  # a GGMLQuantizationType
    offset: int  # in the file
    nbytes: int


class GGUFFile:
    """Header and tensors of one file; implements `table.Tensors`."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.where = self.path.name
        with opened(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(4) != b"GGUF" or size < 24:
                raise InputError(f"{self.path} is not a GGUF file, or it is cut off")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                cursor = _Cursor(data, self.where)
                self.metadata, self.tensors = _header(cursor, self.where)
        self.shapes = {name: info.shape for name, info in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """float32 array of the tensor's shape, de-quantised piece by piece."""
        info = self.tensors[name]
        out = np.empty(math.prod(info.shape), np.float32)
        width = _block(info.kind)[0]
        for start, piece in self._pieces(name):
            values = self._dequantise(piece.reshape(-1), info.kind, name)
            out[start * width : (start + len(piece)) * width] = values
        return out.reshape(info.shape)

    def blocks(self, name: str, form: str) -> Blocks | None:
        """Whole numbers of the tensor's shape and their float16 scales, if it is stored as such.

        Q8_0 is int8, and Q4_0 is int4, both with a scale of 32 of them.
        """
        info = self.tensors[name]
        if _BLOCKS.get(info.kind) != form:
            return None
        width, size = _block(info.kind)
        count = info.nbytes // size
        values = np.empty((count, width), np.int8)
        scale = np.empty((count, 1), np.float16)
        for start, piece in self._pieces(name):
            here = slice(start, start + len(piece))
            scale[here] = piece[:, :2].copy().view("<f2")
            whole = piece[:, 2:]
            if form == "int8":
                values[here] = whole.view(np.int8)
            else:  # the first half in the low four bits, the second in the high ones, 8 more each
                values[here] = np.concatenate([whole & 15, whole >> 4], 1).view(np.int8) - 8
        *outer, inputs = info.shape
        stored = jnp.int4 if form == "int4" else np.int8
        return values.reshape(info.shape).astype(stored), scale.reshape(*outer, inputs // width)

    def _pieces(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Some blocks of a tensor after others: the first one's number, uint8 [blocks, bytes]."""
        info = self.tensors[name]
        width, size = _block(info.kind)
        blocks = info.nbytes // size
        with opened(self.path) as file:
            file.seek(info.offset)
            for start in range(0, blocks, _CHUNK // width):
                count = min(_CHUNK // width, blocks - start)
                piece = np.fromfile(file, np.uint8, count * size)
                if piece.size < count * size:
                    raise InputError(f"{self.path} ended while tensor {name!r} was read")
                yield start, piece.reshape(count, size)

    def _dequantise(self, piece: np.ndarray, kind: int, name: str) -> np.ndarray:
        """uint8 [bytes of whole blocks] -> float32 [values]."""
        from gguf import GGMLQuantizationType, quants

        quantisation = GGMLQuantizationType(kind)
        with np.errstate(all="ignore"):  # a corrupt scale may be NaN
            try:
                return quants.dequantize(piece[None], quantisation).reshape(-1)
            except NotImplementedError:
                raise InputError(
                    f"tensor {name!r} of {self.where} is stored as {quantisation.name}, "
                    "which cannot be de-quantised"
                ) from None


class _Cursor:
    """Reads little-endian values one after the other, within the file.

    Counts need no check of their own: whatever is counted takes bytes, and those come to an end.
    """

    def __init__(self, data: mmap.mmap, where: str):
        self.at = 4
        self.end = len(data)
        self._data = data
        self._where = where

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self.end - self.at:
            raise InputError(f"{self._where} is cut off or corrupt: its header runs past its end")
        self.at += count
        return self._data[self.at - count : self.at]

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise InputError(f"{self._where} is corrupt: its header holds a value of kind {kind}")
        return self._array()

    def _array(self) -> list[str] | np.ndarray:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind in _SCALARS:
            dtype = np.dtype("<" + _SCALARS[kind]) if kind != 7 else np.dtype(bool)
            return np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if kind != _STRING:
            raise InputError(f"{self._where} is corrupt: its header holds an array of kind {kind}")
        return [self.text() for _ in range(count)]


def _header(cursor: _Cursor, where: str) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise InputError(f"{where} is a GGUF file of version {version}; supported are 2 and 3")
    tensor_count, pair_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {}
    for _ in range(pair_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.scalar("I"))
    entries = [_entry(cursor, where) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise InputError(f"general.alignment is {alignment!r:.60} in {where}; at most 2**20")
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise InputError(f"tensor {name!r:.120} is there twice in {where}")
        nbytes = _nbytes(name, shape, kind, where)
        if start + offset + nbytes > cursor.end:
            raise InputError(f"{where} is cut off: tensor {name!r:.120} runs past its end")
        tensors[name] = TensorInfo(shape, kind, start + offset, nbytes)
    return metadata, tensors


def _entry(cursor: _Cursor, where: str) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text()
    rank = cursor.scalar("I")
    if not 1 <= rank <= 4:
        raise InputError(f"{where} is corrupt: tensor {name!r:.120} has {rank} dimensions")
    shape = tuple(cursor.scalar("Q") for _ in range(rank))[::-1]
    return name, shape, cursor.scalar("I"), cursor.scalar("Q")


def _nbytes(name: str, shape: tuple[int, ...], kind: int, where: str) -> int:
    try:
        width, size = _block(kind)
    except ValueError:
        raise InputError(f"tensor {name!r:.120} of {where} has unknown kind {kind}") from None
    if 0 in shape or shape[-1] % width:
        raise InputError(
            f"tensor {name!r:.120} of {where} has shape {shape}; its rows must be "
            f"whole blocks of {width}"
        )
    return math.prod(shape) // width * size


def _block(kind: int) -> tuple[int, int]:
    """Values and bytes of one block of this kind."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
