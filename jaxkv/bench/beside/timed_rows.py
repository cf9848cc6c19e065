# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows answered and timed in a process of their own: jaxkv's side of a comparison.

    python -m jaxkv.bench.beside.timed_rows JOB.json RESULT.json

Another library's side cannot read our rows or load our models: one job gives the rows as token ids
and the model as a Hugging Face folder. Another answers such rows, under one policy only, so that
the peak of the process' memory is that policy's. The last scores the answers of either side.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxkv.cache.bytes import kept_tokens, nbytes
from jaxkv.checkpoints.export import export_hf
from jaxkv.checkpoints.model import Model
from jaxkv.checkpoints.sources import load
from jaxkv.cli.edge import as_process, one_line_errors
from jaxkv.cli.interrupts import raises
from jaxkv.cli.startup import prepare
from jaxkv.core.errors import InputError
from jaxkv.core.files import write_json
from jaxkv.core.machine import where
from jaxkv.core.progress import bars
from jaxkv.eval.questions.answers import pieces
from jaxkv.eval.questions.rows import METRICS, read_rows
from jaxkv.eval.tasks.passkey import make_rows
from jaxkv.generate.api import answer
from jaxkv.generate.loop import DISPATCH
from jaxkv.generate.room import ROUND
from jaxkv.generate.session import Session, Settings
from jaxkv.models.decoder import geometry
from jaxkv.policies.duo import DuoAttention
from jaxkv.policies.head_scores import full_heads
from jaxkv.policies.registry import make_policy

COMMAND = "jaxkv.bench.beside.timed_rows"


def main(words: Sequence[str] | None = None) -> None:
    """Does one job; wrong input ends it with one line on stderr and status 2."""
    words = sys.argv[1:] if words is None else words
    with one_line_errors(COMMAND):
        if len(words) != 2:
            raise InputError(f"{len(words)} words are given; they must be JOB.json RESULT.json")
        source, target = words
        job = json.loads(Path(source).read_text(encoding="utf-8"))
        prepare()
        with raises():
            made = JOBS[job["do"]](job)
        write_json(target, made)


def make_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the model to `job["folder"]`, and gives the rows.

    Args:
      job: `model`, `folder`, and either `rows`, a file, or what makes pass-key rows: `lengths`,
        `depths`, `rows_per_cell`, `seed`.

    Returns:
      `rows`, longest last, with the two parts of each prompt as token ids; `eos`, ids that end an
      answer; `streaming`, which KV heads of each layer stream under DuoAttention, or None if no
      pattern is shipped for the model; and `where`.
    """
    with bars() as progress:
        model = load(job["model"], "float32", progress)
        if job["rows"] is not None:
            rows = read_rows(job["rows"])
        else:
            names = ("lengths", "depths", "rows_per_cell", "seed")
            rows = make_rows(model, *(job[name] for name in names))
        texts = ("context", "question", "answer_prefix", "answers", "max_new_tokens", "length")
        made = []
        for row in rows:
            first, rest = pieces(model, row)
            metric = next(name for name, metric in METRICS.items() if metric is row.metric)
            told = {name: getattr(row, name) for name in texts}
            made.append(told | {"metric": metric, "ids": [first, rest]})
        export_hf(job["folder"], model, progress)
    return {
        "rows": sorted(made, key=lambda row: sum(map(len, row["ids"]))),
        "eos": model.tokenizer.eos_ids,
        "streaming": _streaming(model),
        "where": where(),
    }


def _streaming(model: Model) -> list[list[bool]] | None:
    shapes, duo = geometry(model.config, 1, 1), DuoAttention()
    try:
        kept = full_heads(duo.pattern, duo.sparsity, shapes)
    except InputError:
        return None
    return [[head not in heads for head in range(shapes.num_kv_heads)] for heads in kept]


def answer_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Answers the rows under one policy, the longest once more before them, which is not counted.

    Args:
      job: `folder` and `rows` of `make_job`; `policy`, a name and fields; `query_aware`; `tokens`,
        how many are decoded for the time alone, after each answer; `threads`.

    Returns:
      `rows`, an object for each row; `kept_tokens` of each layer and head after the longest
      prompt's context; `peak_rss_bytes` of the process, compiling included;
      `program_peak_bytes`, the most that one of the programs holds, weights included; `compile_s`.
    """
    import resource

    if hasattr(os, "sched_setaffinity"):  # XLA takes a thread for each core that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    model = load(job["folder"])
    fields = dict(job["policy"])
    policy = make_policy(fields.pop("name"), fields)
    longest = max(sum(map(len, row["ids"])) for row in job["rows"])
    most_new = max(row["max_new_tokens"] for row in job["rows"]) + job["tokens"] + 1
    # The same for every row, so that all share two programs.
    settings = Settings(policy=policy, max_length=-(-(longest + most_new) // ROUND) * ROUND)
    rows, kept, programs = [], [], None
    for row in (job["rows"][-1], *job["rows"]):
        session = Session.begin(model, settings, 1, longest)
        if programs is None:
            programs = {
                "compile_s": session.timing.compile_s,
                "program_peak_bytes": session.peak_bytes,
            }
        made, kept = _answer_row(session, row, job)
        rows.append(made)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": rows[1:],
        "kept_tokens": kept,
        "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
        **(programs or {}),
    }


def _answer_row(
    session: Session, row: Mapping[str, Any], job: Mapping[str, Any]
) -> tuple[dict[str, Any], list[list[int]]]:
    """What the answer was and what it took, and the tokens kept before the question."""
    first, rest = row["ids"]
    parts = [[*first, *rest]] if job["query_aware"] else [first, rest]
    seconds, kept = [], []
    for part in parts:
        began = time.perf_counter()
        session.feed([part])
        seconds.append(time.perf_counter() - began)
        kept = kept or kept_tokens(session.state.cache.layers)
    session.settings = dataclasses.replace(session.settings, max_new_tokens=row["max_new_tokens"])
    generation = answer(session, [len(first) + len(rest)])
    cache = session.state.cache
    of_token, physical = cache.geometry.bytes_per_token(), nbytes(cache)
    after = kept_tokens(cache.layers)
    return {
        "ids": generation.token_ids[0],
        "text": generation.texts[0],
        "length": row["length"],
        "kept_bytes": of_token * sum(map(sum, kept)),
        "physical_bytes": physical,
        "end_kept_bytes": of_token * sum(map(sum, after)),
        "end_physical_bytes": physical,
        "prefill_s": seconds[0],
        "question_s": sum(seconds[1:]),
        "step_s": _step_seconds(session, job["tokens"]),
    }, kept


def _step_seconds(session: Session, tokens: int) -> float:
    """The median step of a further `tokens`, none of which ends the stream."""
    session.eos = jnp.full_like(session.eos, -2)
    session.state = dataclasses.replace(session.state, done=jnp.zeros_like(session.state.done))
    steps, began = [], time.perf_counter()
    for ids in session.run(tokens + 1):  # the first comes alone
        now = time.perf_counter()
        if ids.shape[1] == DISPATCH:
            steps.append((now - began) / DISPATCH)
        began = time.perf_counter()
    return statistics.median(steps)


def score_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of answers by the metrics of the rows.

    Args:
      job: `rows` of `make_job`, and `texts`, lists of an answer to each.

    Returns:
      `scores`, the shape of `texts`.
    """
    rows = [(METRICS[row["metric"]], row["answers"]) for row in job["rows"]]
    scores = [
        [metric(text, answers) for text, (metric, answers) in zip(texts, rows, strict=True)]
        for texts in job["texts"]
    ]
    return {"scores": scores}


JOBS = {"make": make_job, "answer": answer_job, "score": score_job}

if __name__ == "__main__":
    as_process(main)
