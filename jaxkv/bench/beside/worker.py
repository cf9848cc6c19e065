# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows answered and timed under one press of kvpress, in an environment of its own.

    python worker.py JOB.json RESULT.json

The jobs and results are those of `timed_rows`, beside this file, which must not import it. What is
done to a row is what kvpress' own pipeline does: the context goes through the model under the
press, then the question and the answer, at their true positions, with no press.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def main() -> None:
    """Does one job."""
    source, target = sys.argv[1:]
    job = json.loads(Path(source).read_text(encoding="utf-8"))
    Path(target).write_text(json.dumps(answer_job(job)), encoding="utf-8")


def answer_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Answers the rows, the longest once more before them, which is not counted.

    Args:
      job: as `timed_rows.answer_job`, with `method`, `budget`, `window`, `kernel`,
        `sinks`, `streaming` and `eos` instead of a policy.

    Returns:
      The same, and `same_prompts`: of how many rows kvpress' pipeline makes the same token ids.
    """
    import kvpress  # pyright: ignore[reportMissingImports]  # noqa: F401  patches attention
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if hasattr(os, "sched_setaffinity"):  # the cores of the other side
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    torch.set_num_threads(job["threads"])
    # Observed attention needs all weights; AdaKV and DuoAttention refuse eager attention.
    attention = "eager" if job["method"] == "h2o" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(
        job["folder"], dtype=torch.float32, attn_implementation=attention
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    rows, kept = [], []
    with torch.no_grad():
        for row in (job["rows"][-1], *job["rows"]):
            made, kept = answer_row(model, row, job)
            text = tokenizer.decode(
                made["ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            rows.append(made | {"text": text})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": rows[1:],
        "kept_tokens": kept,
        "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
        "same_prompts": sum(same_prompt(tokenizer, row) for row in job["rows"]),
        "versions": {
            name: importlib.metadata.version(name) for name in ("kvpress", "torch", "transformers")
        },
    }


def answer_row(
    model: Any, row: Mapping[str, Any], job: Mapping[str, Any]
) -> tuple[dict[str, Any], list[list[int]]]:
    """What the answer was and what it took, and the tokens kept before the question."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import DynamicCache

    first, rest = row["ids"]
    if job["query_aware"]:
        first, rest = [*first, *rest], []
    press = make_press(job, len(first))
    cache: Any = DynamicCache()
    seen = len(first)
    began = time.perf_counter()
    with press(model) if press else contextlib.nullcontext():
        # Logits are only of use where no question follows.
        run = model.model if rest else functools.partial(model, logits_to_keep=1)
        out = run(input_ids=torch.tensor([first]), past_key_values=cache)
    prefill_s = time.perf_counter() - began
    kept = kept_tokens(model, cache)
    physical = nbytes(cache)

    def take(ids: Sequence[int]) -> Any:
        nonlocal seen
        at = torch.arange(seen, seen + len(ids))[None]
        seen += len(ids)
        given = {"input_ids": torch.tensor([ids]), "position_ids": at, "logits_to_keep": 1}
        return model(**given, past_key_values=cache)

    began = time.perf_counter()
    if rest:
        out = take(rest)
    ids = [int(out.logits[0, -1].argmax())]
    question_s = time.perf_counter() - began if rest else 0.0
    while len(ids) < row["max_new_tokens"] and ids[-1] not in job["eos"]:
        ids.append(int(take(ids[-1:]).logits[0, -1].argmax()))
    of_token = 2 * cache.layers[0].keys.shape[-1] * cache.layers[0].keys.element_size()
    made = {
        "ids": ids,
        "length": row["length"],
        "kept_bytes": of_token * sum(map(sum, kept)),
        "physical_bytes": physical,
        "end_kept_bytes": of_token * sum(map(sum, kept_tokens(model, cache))),
        "end_physical_bytes": nbytes(cache),
        "prefill_s": prefill_s,
        "question_s": question_s,
    }
    steps, token = [], ids[-1]
    for _ in range(job["tokens"]):
        began = time.perf_counter()
        token = int(take([token]).logits[0, -1].argmax())
        steps.append(time.perf_counter() - began)
    return made | {"step_s": statistics.median(steps)}, kept


def make_press(job: Mapping[str, Any], tokens: int) -> Any:
    """The press of a method for a context of so many tokens; None for the full cache."""
    import kvpress  # pyright: ignore[reportMissingImports]

    method = job["method"]
    if method == "full":
        return None
    if method == "duo":
        return make_duo(job)
    ratio = {"compression_ratio": compression_ratio(job["budget"], tokens)}
    snap = {**ratio, "window_size": job["window"], "kernel_size": job["kernel"]}
    if method == "snapkv":
        return kvpress.SnapKVPress(**snap)
    if method == "pyramidkv":
        return kvpress.PyramidKVPress(**snap)
    if method == "adakv":
        return kvpress.AdaKVPress(kvpress.SnapKVPress(**snap))
    if method == "streaming":
        return kvpress.StreamingLLMPress(**ratio, n_sink=job["sinks"])
    if method == "tova":
        return kvpress.TOVAPress(**ratio)
    if method == "h2o":
        return kvpress.ObservedAttentionPress(**ratio)
    if method == "compactor":
        return kvpress.AdaKVPress(kvpress.CompactorPress(**ratio))
    if method == "chunkkv":
        return kvpress.ChunkKVPress(kvpress.SnapKVPress(**snap))
    if method == "expected":
        return kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(**ratio, epsilon=0.01))
    if method in (plain := plain_presses(kvpress)):
        return plain[method](**ratio)
    raise ValueError(f"method is {method!r}")


def plain_presses(kvpress: Any) -> Mapping[str, Any]:
    """The presses that are told nothing but the ratio."""
    return {
        "random": kvpress.RandomPress,
        "knorm": kvpress.KnormPress,
        "keydiff": kvpress.KeyDiffPress,
        "lagkv": kvpress.LagKVPress,
        "cur": kvpress.CURPress,
        "kvzip": kvpress.KVzipPress,
    }


def make_duo(job: Mapping[str, Any]) -> Any:
    """kvpress' DuoAttention with the heads that we give it, instead of a download for the model."""
    import kvpress  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    if job["streaming"] is None:
        raise ValueError("jaxkv ships no pattern of heads for this model")
    press = kvpress.DuoAttentionPress()
    press.post_init_from_model = lambda model: None
    press.sink_size, press.recent_size = job["sinks"], job["budget"] - job["sinks"]
    press.streaming_mask = torch.tensor(job["streaming"])
    return press


def compression_ratio(budget: int, tokens: int) -> float:
    """The ratio at which kvpress keeps exactly `budget` of a context's tokens.

    kvpress keeps the whole part of tokens * (1 - ratio), which is one too few at 1 - budget /
    tokens wherever the product comes out just below. A quarter of a token is nothing to its whole
    part, nor to PyramidKV, which rounds.
    """
    return 0.0 if budget >= tokens else 1 - (budget + 0.25) / tokens


def kept_tokens(model: Any, cache: Any) -> list[list[int]]:
    """Tokens that the KV heads of each layer still see; AdaKV and DuoAttention mask the others."""
    counts = []
    for layer, block in zip(cache.layers, model.model.layers, strict=True):
        heads = [layer.keys.shape[2]] * layer.keys.shape[1]
        if (masked := getattr(block.self_attn, "masked_key_indices", None)) is not None:
            for head in masked[1].tolist():
                heads[head] -= 1
        counts.append(heads)
    return counts


def nbytes(cache: Any) -> int:
    """Bytes of memory behind the tensors of a cache."""
    tensors = (tensor for layer in cache.layers for tensor in (layer.keys, layer.values))
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def same_prompt(tokenizer: Any, row: Mapping[str, Any]) -> bool:
    """Whether kvpress' pipeline would have made the same two parts of the prompt."""
    from kvpress import (  # pyright: ignore[reportMissingImports]
        KVPressTextGenerationPipeline,
    )

    pipeline: Any = types.SimpleNamespace(tokenizer=tokenizer)
    try:
        made = KVPressTextGenerationPipeline.preprocess(
            pipeline, row["context"], [row["question"]], row["answer_prefix"], 10**9
        )
    except TypeError:  # no chat template, and no token for the start of a text
        return False
    parts = [made["context_ids"], made["questions_ids"][0]]
    return [part[0].tolist() for part in parts] == row["ids"]


if __name__ == "__main__":
    main()
