# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Block sizes that were measured to be the fastest: a file of them for each kind of device.

`python -m jaxkv.bench kernels --tune` writes the files; where there is none, or none for a case
like this one, a kernel takes its own default.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pallas_kernels.target import target

FOLDER = Path(__file__).parent / "tuned_blocks"
FACTOR = 4  # by which the length of a case may differ from that which was measured
CASE = ("op", "implementation", "dtype", "head_dim", "group")  # what must be the same


def max_block(
    op: str, implementation: str, dtype: Any, head_dim: int, group: int, slots: int
) -> int | None:
    """Slots a block on this device, at most; None where nothing was measured.

    Args:
      op: "decode", "decode-mass", "pool", "prefill" or "mass".
      implementation: as it is named in the dispatch.
      dtype: of K and V.
      head_dim: H.
      group: G.
      slots: S; of a pool the share of a head.
    """
    case = op, implementation, str(dtype), head_dim, group
    rows = [
        row for row in read(file_of(device_kind())) if tuple(row[name] for name in CASE) == case
    ]
    if not rows:
        return None
    apart, block = min((abs(math.log(row["slots"] / slots)), row["block"]) for row in rows)
    return block if apart <= math.log(FACTOR) else None


def file_of(kind: str) -> Path:
    """Where the block sizes of a kind of device are kept."""
    return FOLDER / (re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-") + ".json")


def device_kind() -> str:
    """The kind of device that programs run on, as jax names it."""
    return target().kind


@functools.cache
def read(file: Path) -> list[Mapping[str, Any]]:
    """The rows of a file, none where there is no file; `cache_clear` once it is written."""
    return json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
