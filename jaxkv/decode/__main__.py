# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.decode`: text in, text out, with a cache that stays small."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from jaxkv.decode.options import COMMAND, Options, parse_options
from jaxkv.errors import InputError, one_line_errors
from jaxkv.startup import prepare


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with one line on stderr and status 2."""
    began = time.perf_counter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show all characters
    with one_line_errors(COMMAND):
        options = parse_options(arguments)
        prepare()
        try:
            _run(options, began)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            print(f"\n{COMMAND}: interrupted", file=sys.stderr)
            raise SystemExit(130) from None


def _run(options: Options, began: float) -> None:
    from jaxkv.convert.progress import bars
    from jaxkv.convert.sources import load
    from jaxkv.decode.interactive import chat
    from jaxkv.decode.once import answer_once

    with bars() as progress, _model_named(options.model):
        model = load(options.model, options.dtype, progress)
    load_s = time.perf_counter() - began
    if options.interactive:
        chat(options, model, load_s)
        return
    generation = answer_once(options, model, load_s)
    if options.json:
        print(json.dumps(report(generation)))
    else:
        print(summary(generation), file=sys.stderr)


@contextlib.contextmanager
def _model_named(name: str) -> Iterator[None]:
    """A model that cannot be used is reported with the flag that named it."""
    try:
        yield
    except InputError as error:
        known = str(error).startswith(("model ", "dtype "))
        prefix = "--" if known else f"--model {name}: "
        raise InputError(f"{prefix}{error}") from None


def report(generation: Any) -> dict[str, Any]:
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


def summary(generation: Any) -> str:
    """The report in one line."""
    stats = generation.stats
    policy = dict(stats["policy"])
    name = policy.pop("name")
    fields = "".join(f" {key}={value}" for key, value in policy.items())
    timing, cache = stats["timing"], stats["cache"]
    new = sum(len(ids) for ids in generation.token_ids)
    return (
        f"[{name}{fields}] {sum(generation.prompt_tokens)} + {new} tokens, "
        f"{timing['tokens_per_s']:.1f} tokens/s; first after {timing['first_token_s']:.1f} s "
        f"(load {timing['load_s']:.1f}, compile {timing['compile_s']:.1f}, "
        f"prefill {timing['prefill_s']:.1f}); cache {cache['physical_bytes'] / 1e6:.1f} MB, "
        f"nominal {cache['nominal_bytes'] / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
