# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run came to: as plain data, and in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkv.generate.api import Generation


def report_of(generation: Generation) -> dict[str, Any]:
    """The JSON object of a run: one answer's fields, or `results` for a batch."""
    rows = [
        {
            "text": text,
            "token_ids": ids,
            "prompt_tokens": prompt,
            "new_tokens": len(ids),
            "finish_reason": reason,
        }
        for text, ids, prompt, reason in zip(
            generation.texts,
            generation.token_ids,
            generation.prompt_tokens,
            generation.finish_reasons,
            strict=True,
        )
    ]
    stats = dict(generation.stats)
    kept = stats["cache"]["kept_tokens"]
    if len(rows) == 1:
        return {**rows[0], **stats, "cache": {**stats["cache"], "kept_tokens": kept[0]}}
    shared = {**stats, "cache": {k: v for k, v in stats["cache"].items() if k != "kept_tokens"}}
    results = [{**row, "kept_tokens": kept[i]} for i, row in enumerate(rows)]
    return {"results": results, **shared}


def summary(report: Mapping[str, Any]) -> str:
    """A report in one line."""
    policy = dict(report["policy"])
    name = policy.pop("name")
    fields = "".join(f" {key}={value}" for key, value in policy.items())
    timing, cache = report["timing"], report["cache"]
    rows = report.get("results", [report])
    prompt, new = (sum(row[name] for row in rows) for name in ("prompt_tokens", "new_tokens"))
    return (
        f"[{name}{fields}] {prompt} + {new} tokens, "
        f"{timing['tokens_per_s']:.1f} tokens/s; first after {timing['first_token_s']:.1f} s "
        f"(load {timing['load_s']:.1f}, compile {timing['compile_s']:.1f}, "
        f"prefill {timing['prefill_s']:.1f}); cache {cache['physical_bytes'] / 1e6:.1f} MB, "
        f"nominal {cache['nominal_bytes'] / 1e6:.1f} MB"
    )
