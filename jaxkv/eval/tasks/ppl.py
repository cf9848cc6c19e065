# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Streaming perplexity: one long text, one cache that is never reset."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive, read_text
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.eval.pictures.plot import draw_kind
from jaxkv.eval.questions.haystacks import builtin_text
from jaxkv.eval.runner.journal import key_of
from jaxkv.eval.runner.result import Result, policy_label
from jaxkv.eval.runner.task import Common, Task
from jaxkv.eval.tasks.nll import Scores, bounded_tokens, score_decoded, score_sampled, score_stream
from jaxkv.generate.running import running
from jaxkv.layers.base import Policy
from jaxkv.models.decoder import geometry
from jaxkv.policies.recompute import SlidingRecompute
from jaxkv.policies.registry import describe

_DESCRIPTION = """Streaming perplexity of a text: exp(mean negative log-likelihood) over its tokens.

The text is one stream, batch 1, with a BOS token first if the model has one; the cache is never
reset. The first tokens, which every cache still holds, are part of the score.

  score         perplexity over all tokens that this row predicts; n is how many
  by.all        the same
  by.common     over the positions that every policy of the list predicts, so that rows compare
                (full stops at --max-length; recompute does not count here)
  by.after_cache  over positions after the largest bounded cache of the list is full
                (cache_tokens in the report): what is left without the easy start
  by.sampled    over the sampled positions of recompute; only if recompute is in the list

recompute runs the model over its whole window for each prediction. So it is evaluated at --positions
positions beyond the window, one drawn from each of as many equal stretches; every policy of the list
also reports by.sampled, over the very same positions. null: the row does not reach all positions.

With --prompt-tokens N the first N tokens are one prompt, and what follows is predicted token by token
as decoding does; only that is scored. Policies that choose after a prompt are evaluated so.

curve in the report is the perplexity of all tokens up to each of 200 positions.
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    text: to be predicted.
    tokens: how much of it, at most.
    positions: how many positions a policy that re-computes is evaluated at.
    prompt: how many first tokens are a prompt that is not scored; 0 scores the whole stream.
    """

    text: str
    tokens: int
    positions: int
    prompt: int


def token_stream(model: Model, text: str, tokens: int) -> np.ndarray:
    """BOS, if there is one, and the first `tokens` tokens of a text: int32 [S].

    Raises:
      InputError: the text has too few tokens to predict any.
    """
    cut, tokenizer = 8 * tokens + 64, model.tokenizer
    ids = tokenizer.encode(text[:cut])
    # The last tokens of a text that is cut within a word are not those of the text.
    if len(ids) < tokens + 16 and len(text) > cut:
        ids = tokenizer.encode(text)
    stream = [*tokenizer.bos_ids, *ids[:tokens]]
    if len(stream) < 2:
        raise InputError(f"the text has {len(ids)} tokens; it must have at least 2")
    model.check_ids(stream, "the text's")
    return np.asarray(stream, np.int32)


def stratified(begin: int, end: int, count: int, seed: int) -> np.ndarray:
    """Positions of [begin, end), one drawn from each of `count` equal stretches: int [count]."""
    count = min(count, end - begin)
    edges = begin + (end - begin) * np.arange(count + 1) // count
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def perplexity(scores: Scores, wanted: Callable[[np.ndarray], np.ndarray]) -> float | None:
    """Over the positions that `wanted` marks; None if there is none."""
    nll = scores.nll[wanted(scores.positions)]
    if not nll.size:
        return None
    mean = float(nll.astype(np.float64).mean())
    return math.exp(mean) if mean < 700 else math.inf


def evaluate(model: Model, common: Common, options: Options, progress: Progress) -> list[Result]:
    """One result for each policy."""
    stream = token_stream(model, options.text, options.tokens)
    sampled = _sampled_positions(model, common, options.positions, len(stream))
    _check_policies(model, common, options, len(stream))
    every = []
    for policy in common.policies:
        what = f"ppl {policy_label(policy)}"

        def draw(done: int, total: int, what: str = what) -> None:
            progress(what, done, total)

        limit = common.max_length or model.config.max_positions
        at = sampled.tolist() if isinstance(policy, SlidingRecompute) else options.prompt
        key = key_of(
            *common.loaded, common.kv_dtype, common.prefill_chunk, limit, policy,
            stream.tolist(), at,
        )  # fmt: skip
        scores = _from_plain(common.journal.get(key))
        if scores is None:
            draw(0, 0)
            scores = _score(model, common, policy, stream, sampled, options.prompt, limit, draw)
            common.journal.put(key, _plain(scores))
        every.append(scores)
    return _results(model, common, every, sampled)


def _score(
    model: Model,
    common: Common,
    policy: Policy,
    stream: np.ndarray,
    sampled: np.ndarray,
    prompt: int,
    limit: int,
    draw: Callable[[int, int], None],
) -> Scores:
    """Of one policy, in the way that it can be evaluated in."""
    dtype = common.kv_dtype
    if isinstance(policy, SlidingRecompute):
        return score_sampled(model, policy, stream, sampled, dtype, draw)
    if prompt:
        return score_decoded(model, policy, stream, prompt, limit, dtype, draw)
    return score_stream(model, policy, stream, limit, dtype, common.prefill_chunk, draw)


def _plain(scores: Scores) -> dict[str, Any]:
    values = {field.name: getattr(scores, field.name) for field in dataclasses.fields(scores)}
    return values | {"positions": scores.positions.tolist(), "nll": scores.nll.tolist()}


def _from_plain(value: dict[str, Any] | None) -> Scores | None:
    if value is None:
        return None
    nll = np.asarray(value["nll"], np.float32)
    return Scores(**value | {"positions": np.asarray(value["positions"]), "nll": nll})


def running_mean(scores: Scores, points: int = 200) -> dict[str, list[float]]:
    """Perplexity of all that was predicted up to some positions, evenly among them."""
    mean = np.cumsum(scores.nll, dtype=np.float64) / np.arange(1, len(scores.nll) + 1)
    at = np.unique(np.linspace(0, len(mean) - 1, points).round().astype(int))
    values = np.exp(np.minimum(mean[at], 700.0))
    return {
        "positions": scores.positions[at].tolist(),
        "perplexity": [float(f"{value:.6g}") for value in values],
    }


def _check_policies(model: Model, common: Common, options: Options, length: int) -> None:
    limit = min(length, common.max_length or model.config.max_positions)
    if options.prompt >= limit:
        raise InputError(
            f"--prompt-tokens is {options.prompt}; it must be below {limit}, the tokens of the "
            "stream that every policy reaches"
        )
    shape = geometry(model.config, 1, 1)
    for policy in common.policies:
        if not options.prompt and running(policy, shape).whole_prompt:
            raise InputError(
                f"policy {describe(policy)['name']!r} chooses after a prompt, and a stream has "
                "none; give --prompt-tokens"
            )


def _sampled_positions(model: Model, common: Common, count: int, length: int) -> np.ndarray:
    """Where policies that re-compute are evaluated: beyond the largest of their windows."""
    spans = [p.window + 1 for p in common.policies if isinstance(p, SlidingRecompute)]
    if not spans:
        return np.zeros(0, np.int64)
    if max(spans) >= length:
        raise InputError(
            f"the stream has {length} tokens and re-computation with window {max(spans) - 1} is "
            f"evaluated beyond its window; give --tokens above {max(spans)} or a smaller window"
        )
    return stratified(max(spans), length, count, common.seed)


def _results(
    model: Model, common: Common, every: Sequence[Scores], sampled: np.ndarray
) -> list[Result]:
    policies = common.policies
    ends = [
        int(scores.positions[-1])
        for scores, policy in zip(every, policies, strict=True)
        if not isinstance(policy, SlidingRecompute)
    ]
    common_end = min(ends, default=0)
    caches = [bounded_tokens(model, policy) for policy in policies]
    cache_tokens = max((tokens for tokens in caches if tokens is not None), default=0)
    results = []
    for policy, scores in zip(policies, every, strict=True):
        whole = not isinstance(policy, SlidingRecompute)
        everything = perplexity(scores, lambda at: at > 0)
        by: dict[str, float | None] = {"all": everything if whole else None}
        by["common"] = perplexity(scores, lambda at: at <= common_end) if whole else None
        by["after_cache"] = perplexity(scores, lambda at: at > cache_tokens) if whole else None
        if sampled.size:
            reached = np.isin(sampled, scores.positions).all()
            by["sampled"] = perplexity(scores, lambda at: np.isin(at, sampled)) if reached else None
        n = len(scores.nll)
        results.append(
            Result(
                task=TASK.name,
                score=math.nan if everything is None else everything,
                n=n,
                by=by,
                policy=describe(policy),
                cache=scores.cache,
                details={
                    "tokens": n,
                    "common_tokens": common_end,
                    "cache_tokens": cache_tokens,
                    "first_tokens_included": bool(scores.positions[0] == 1),
                    "sampled_positions": len(sampled),
                    "compile_s": scores.compile_s,
                    "run_s": scores.run_s,
                    **({"steps": scores.steps} if scores.steps else {}),
                    "curve": running_mean(scores),
                },
            )
        )
    return results


def draw(figure: Any, results: Sequence[Result]) -> None:
    """Running perplexity over the position, one line a policy."""
    draw_kind(figure, "curve", results)


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    add(
        "--text-file",
        type=str | None,
        metavar="FILE",
        help="UTF-8 text (default: the help texts that come with Python)",
    )
    add(
        "--tokens",
        type=int,
        default=20000,
        metavar="N",
        help="evaluate the first N tokens of the text, or all if it has fewer (default: 20000)",
    )
    add(
        "--prompt-tokens",
        type=int,
        default=0,
        metavar="N",
        help="the first N tokens are a prompt; score what is decoded after it (default: 0)",
    )
    add(
        "--positions",
        type=int,
        default=200,
        metavar="N",
        help="positions at which recompute is evaluated (default: 200)",
    )


def check(given: argparse.Namespace) -> Options:
    """The task's options, with the text read."""
    if given.tokens < 2:
        raise InputError(f"--tokens is {given.tokens}; it must be at least 2")
    if given.prompt_tokens < 0:
        raise InputError(f"--prompt-tokens is {given.prompt_tokens}; it must be at least 0")
    check_positive(given, "positions")
    if given.text_file is None:
        text = builtin_text()
    else:
        text = read_text("--text-file", given.text_file)
    return Options(text, given.tokens, given.positions, given.prompt_tokens)


TASK = Task(
    name="ppl",
    summary="streaming perplexity of a text",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=("curve", "tradeoff"),
    compared=True,
)
