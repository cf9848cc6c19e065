# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions that are asked on the way, in a stream whose cache is never reset."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.eval.pictures.plot import draw_kind
from jaxkv.eval.questions.answers import mean
from jaxkv.eval.runner.journal import key_of
from jaxkv.eval.runner.result import Result, cache_bytes
from jaxkv.eval.runner.task import Common
from jaxkv.generate.room import ROUND
from jaxkv.generate.running import running
from jaxkv.generate.session import Session, Settings
from jaxkv.layers.base import Policy
from jaxkv.models.decoder import geometry
from jaxkv.policies.registry import describe

PARTS = 10  # of a stream, that the report tells apart
KINDS = ("curve", "tradeoff", "bars")  # of pictures
POINTS = 20  # of a curve, at most,
QUESTIONS = 4  # and how many each is about, at least

WHERE_IT_ENDS = """formed is the percentage of answers that are of the kind that was asked for, right or wrong.

A policy whose cache grows, such as full, is asked until its cache is full: at --max-length, or where
the positions end that the model was trained for. n is how many questions were asked, questions how
many there are, tokens how long the stream had become at the last one."""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Asked:
    """One question that was answered.

    Attributes:
      place: where in the stream, in the unit that the report counts by.
      tokens: of the stream before the answer.
      score: a percentage.
      formed: whether the answer is, right or wrong, of the kind that was asked for.
      group: a further name to report by, or None.
    """

    place: int
    tokens: int
    score: float
    formed: bool
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """What a stream gave.

    Attributes:
      asked: all questions that were answered.
      cache: bytes: nominal, physical, peak.
    """

    asked: list[Asked]
    cache: dict[str, int]


def check_policies(model: Model, common: Common) -> None:
    """Raises:
    InputError: a policy needs a prompt that ends, to choose after it.
    """
    shape = geometry(model.config, 1, 1)
    for policy in common.policies:
        if running(policy, shape).whole_prompt:
            raise InputError(
                f"policy {describe(policy)['name']!r} chooses after a prompt, and a stream has "
                "none; choose one that evicts as it goes, such as streaming or window"
            )


def begin(
    model: Model,
    common: Common,
    policy: Policy,
    batch_size: int,
    longest: int,
    total: int,
    max_new_tokens: int = 1,
    stop: tuple[str, ...] = (),
) -> Session:
    """An empty cache for streams.

    Args:
      model: the model.
      common: what every task is told.
      policy: what the cache keeps.
      batch_size: streams.
      longest: tokens that are taken in before a question, at most.
      total: tokens of a whole stream, at most; a cache that grows has no more room than that.
      max_new_tokens: of an answer.
      stop: texts that end an answer.
    """
    limit = common.max_length or model.config.max_positions
    settings = Settings(
        policy=policy,
        max_new_tokens=max_new_tokens,
        seed=common.seed,
        stop=stop,
        prefill_chunk=common.prefill_chunk,
        max_length=min(limit, -(-total // ROUND) * ROUND),
        kv_dtype=common.kv_dtype,
    )
    return Session.begin(model, settings, batch_size, longest)


def has_room(session: Session, tokens: int) -> bool:
    """Whether every stream can take in so many more tokens."""
    return session.room is None or tokens <= session.room


def found_by(session: Session, asked: list[Asked]) -> Found:
    """The answers, with the bytes of the session's cache."""
    cache = session.state.cache
    return Found(asked, cache_bytes(session.settings.policy, cache, session.peak_bytes))


def once(common: Common, parts: Sequence[Any], work: Callable[[], Found]) -> Found:
    """What `work` gives, or gave in a run that was cut short; it depends on `parts`."""
    key = key_of(common.settings, parts)
    done = common.journal.get(key)
    if done is None:
        done = dataclasses.asdict(work())
        common.journal.put(key, done)
    return Found([Asked(**one) for one in done["asked"]], done["cache"])


def make_result(
    task: str,
    policy: Policy,
    found: Found,
    places: Sequence[int],
    unit: str,
    details: Mapping[str, Any],
) -> Result:
    """One policy's row.

    Args:
      task: its name.
      policy: it.
      found: its answers.
      places: those of all questions that there are.
      unit: what a place is, for the report.
      details: further figures.
    """
    asked = found.asked
    return Result(
        task=task,
        score=mean(one.score for one in asked) if asked else math.nan,
        n=len(asked),
        by={**by_group(asked), **by_part(asked, places, unit)},
        policy=describe(policy),
        cache=found.cache,
        details={
            "questions": len(places),
            "tokens": max((one.tokens for one in asked), default=0),
            "formed": mean(100.0 * one.formed for one in asked) if asked else None,
            **details,
            "curve": curve(asked),
        },
    )


def by_group(asked: Sequence[Asked]) -> dict[str, float | None]:
    """Mean score of each group."""
    groups = dict.fromkeys(one.group for one in asked if one.group is not None)
    return {name: mean(one.score for one in asked if one.group == name) for name in groups}


def by_part(asked: Sequence[Asked], places: Sequence[int], unit: str) -> dict[str, float | None]:
    """Mean score of each of ten parts of the stream; None where nothing was asked.

    `places`, which the parts are made of, are the same for every policy.
    """
    known = np.unique(np.asarray(places))
    parts: dict[str, float | None] = {}
    for part in np.array_split(known, min(PARTS, len(known))):
        first, last = int(part[0]), int(part[-1])
        scores = [one.score for one in asked if first <= one.place <= last]
        name = f"{unit} {first}-{last}" if last > first else f"{unit} {first}"
        parts[name] = mean(scores) if scores else None
    return parts


def curve(asked: Sequence[Asked]) -> dict[str, list[float]]:
    """Mean score over the position: of neighbours, about as many at each point."""
    inorder = sorted(asked, key=lambda one: one.tokens)
    points = min(POINTS, max(1, len(inorder) // QUESTIONS))
    cuts = np.array_split(np.arange(len(inorder)), points)
    bins = [[inorder[i] for i in cut] for cut in cuts if len(cut)]
    return {
        "tokens": [round(mean(one.tokens for one in part)) for part in bins],
        "score": [mean(one.score for one in part) for part in bins],
    }


def draw(figure: Any, results: Sequence[Result]) -> None:
    """Score over the position in the stream."""
    draw_kind(figure, "curve", results)
