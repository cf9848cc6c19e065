# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Which block size is the fastest on this device, written to where the kernels look it up."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxkv.bench.kernels import OPS, Shapes, arguments, one_after_another, seconds_of
from jaxkv.core.errors import InputError
from jaxkv.core.files import write_json
from jaxkv.core.progress import Progress
from pallas_kernels import tuned
from pallas_kernels.dispatch import order

# Slots a block.
CANDIDATES: Mapping[str, Sequence[int]] = {
    "mosaic_tpu": (256, 512, 1024, 2048, 4096),
    "mosaic_gpu": (64, 128),
    "xla": (128, 256, 512, 1024, 2048),
}
BLOCKLESS = {("decode", "xla"), ("decode-mass", "xla"), ("pool", "xla")}
GAIN = 1.05  # how much faster than what is in force a block must be, lest noise decides


def tune(
    shapes: Shapes, names: Sequence[str], contexts: Sequence[int], runs: int, progress: Progress
) -> dict[str, Any]:
    """Rows of every op, implementation of this platform, and length.

    Each has the time with the block in force, kept before or the default, and with the best one,
    which is None where that is the one in force.

    Raises:
      InputError: nothing that was asked for has blocks to choose here.
    """
    cases = [
        (name, implementation, slots)
        for name in names
        for implementation in order()
        if implementation in OPS[name].implementations and (name, implementation) not in BLOCKLESS
        for slots in contexts
    ]
    rows = []
    for index, (name, implementation, slots) in enumerate(cases):
        times = _times(name, implementation, shapes, slots, runs)
        progress(f"{implementation} {name} at {slots}", index + 1, len(cases))
        if not times:
            continue
        best = min(times, key=lambda block: times[block])
        if times[None] < GAIN * times[best]:
            best = None
        rows.append(
            {
                "op": name,
                "implementation": implementation,
                "context": slots,
                "us": times[best] * 1e6,
                "before_us": times[None] * 1e6,
                "block": best,
                "tried_us": {block: s * 1e6 for block, s in times.items() if block},
            }
        )
    if not rows:
        raise InputError(f"--tune: nothing here has blocks to choose for {', '.join(names)}")
    return {**dataclasses.asdict(shapes), "rows": rows}


def _times(
    name: str, implementation: str, shapes: Shapes, slots: int, runs: int
) -> dict[int | None, float]:
    """Median seconds for each block that is served, by turns; None is the one in force.

    Empty where the implementation does not serve the case.
    """
    op = OPS[name]
    args = arguments(op.queries, shapes, slots)
    programs = {}
    for block in (None, *(x for x in CANDIDATES[implementation] if x <= slots)):
        more = {} if block is None else {"max_block": block}
        call = functools.partial(op.implementations[implementation], **more)
        programs[block] = one_after_another(op, call)
    times: dict[int | None, list[float]] = {}
    for _ in range(runs):
        for block, many in programs.items():
            try:
                times.setdefault(block, []).append(seconds_of(many, args, 1))
            except NotImplementedError:
                times.pop(block, None)
    return {block: statistics.median(t) for block, t in times.items()} if None in times else {}


def write(result: Mapping[str, Any]) -> Path:
    """Puts the best blocks into the file of this kind of device; gives its path.

    What it says of other cases stays, and of those in which nothing beat what was in force.
    """
    file = tuned.file_of(tuned.device_kind())
    group = result["heads"] // result["kv_heads"]
    fresh = [
        {
            "op": row["op"],
            "implementation": row["implementation"],
            "dtype": "int8" if result["int8"] else result["dtype"],
            "head_dim": result["head_dim"],
            "group": group,
            "slots": row["context"],
            "block": row["block"],
            "us": round(row["us"], 1),
            "before_us": round(row["before_us"], 1),
            **{name: result[name] for name in ("jax", "date", "command")},
        }
        for row in result["rows"]
        if row["block"]
    ]

    def case(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return *(row[name] for name in tuned.CASE), row["slots"]

    better = {case(row) for row in fresh}
    rows = fresh + [row for row in tuned.read(file) if case(row) not in better]
    file.parent.mkdir(exist_ok=True)
    write_json(file, {"device": tuned.device_kind(), "rows": sorted(rows, key=case)})
    tuned.read.cache_clear()
    return file
