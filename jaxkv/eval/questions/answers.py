# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions about contexts, answered under a policy and scored: what most tasks are made of."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxkv.cache.bytes import bytes_read, kept_tokens
from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive
from jaxkv.core.progress import Progress
from jaxkv.eval.pictures.plot import draw_kind, usual
from jaxkv.eval.questions.contexts import Contexts
from jaxkv.eval.questions.metrics import Metric, contained
from jaxkv.eval.runner.journal import key_of
from jaxkv.eval.runner.result import Result, cache_bytes, policy_label
from jaxkv.eval.runner.task import Common
from jaxkv.generate.api import answer
from jaxkv.generate.prompts import prompt_ids
from jaxkv.generate.room import ROUND
from jaxkv.generate.session import Session, Settings
from jaxkv.layers.base import Policy
from jaxkv.policies.registry import describe

KINDS = ("tradeoff", "kept", "bars")  # of pictures that every task of questions gives
KINDS_BY_DEPTH = (*KINDS, "heat")

QUERY_AWARE = """Without --query-aware the context alone is read first, so that whatever the policy evicts, it evicts
without knowing the question; then follow the question and the start of the answer. With it, all of
them are one prompt."""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Row:
    """One question; the fields of kvpress' rows.

    Attributes:
      context: what the answer is in.
      question: follows the context directly.
      answer_prefix: start of the assistant's answer, given to the model.
      answers: references, all of which a right answer contains.
      max_new_tokens: of the answer.
      task, length, depth: what results are grouped by, or None.
      metric: a percentage, from the answer's text and the references.
      chat: within the model's chat template; None if it has one.
    """

    context: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    max_new_tokens: int
    task: str | None = None
    length: int | None = None
    depth: float | None = None
    metric: Metric = contained
    chat: bool | None = None


@dataclasses.dataclass(frozen=True)
class Manner:
    """How rows are put to the model.

    Attributes:
      query_aware: whether the question is seen before anything is evicted.
      batch_size: rows at once.
      each_reads: whether every policy reads the contexts itself, although one prefill would do.
    """

    query_aware: bool
    batch_size: int
    each_reads: bool = False


def pieces(model: Model, row: Row) -> tuple[list[int], list[int]]:
    """A row's prompt in two: up to the end of the context, and the rest.

    Together they are exactly the ids of the whole prompt. A token that spans the boundary, or that
    only the question makes what it is, belongs to the second.
    """
    tokenizer = model.tokenizer
    whole = row_ids(model, row)
    if row.chat is False or tokenizer.chat_template is None:
        first = [*tokenizer.bos_ids, *tokenizer.encode(row.context)]
    else:
        # Templates trim and wrap what they are given. Two conversations that differ only after the
        # context show where in the rendered text it ends.
        ours, other = (
            tokenizer.render([{"role": "user", "content": row.context + rest}])
            for rest in (row.question, "\0")
        )
        first = tokenizer.encode(ours[: shared_prefix(ours, other)], special=True)
    at = shared_prefix(first, whole)
    return whole[:at], whole[at:]


def row_ids(model: Model, row: Row) -> list[int]:
    """The ids of a row's whole prompt."""
    prompt = row.context + row.question
    return prompt_ids(model, prompt, chat=row.chat, answer_prefix=row.answer_prefix)


def shared_prefix(a: Sequence, b: Sequence) -> int:
    """How many first items two sequences have in common."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))


def mean(values: Iterable[float]) -> float:
    """Of at least one value."""
    values = list(values)
    return sum(values) / len(values)


def over_rows(rows: Sequence[Row], scores: Sequence[float]) -> float:
    """Every row counts as much."""
    return mean(scores)


def over_tasks(rows: Sequence[Row], scores: Sequence[float]) -> float:
    """Every task counts as much, however many rows it has."""
    return mean(
        mean(score for row, score in zip(rows, scores, strict=True) if row.task == task)
        for task in dict.fromkeys(row.task for row in rows)
    )


def group_scores(rows: Sequence[Row], scores: Sequence[float]) -> dict[str, float | None]:
    """Mean score by task, by length, and by depth, for those that the rows have."""
    groups: dict[str, list[float]] = {}
    names: tuple[Callable[[Row], str | None], ...] = (
        lambda row: row.task,
        lambda row: None if row.length is None else str(row.length),
        lambda row: None if row.depth is None else f"depth {row.depth:g}",
    )
    for name in names:
        for row, score in zip(rows, scores, strict=True):
            if (key := name(row)) is not None:
                groups.setdefault(key, []).append(score)
    return {key: mean(values) for key, values in groups.items()}


def cells(rows: Sequence[Row], scores: Sequence[float]) -> dict[str, dict[str, float]]:
    """Mean score by length and depth: {length: {depth: score}}, of the rows that have both."""
    found: dict[tuple[int, float], list[float]] = {}
    for row, score in zip(rows, scores, strict=True):
        if row.length is not None and row.depth is not None:
            found.setdefault((row.length, row.depth), []).append(score)
    table: dict[str, dict[str, float]] = {}
    for length, depth in sorted(found):
        table.setdefault(str(length), {})[f"{depth:g}"] = mean(found[length, depth])
    return table


def evaluate_rows(
    task: str,
    model: Model,
    common: Common,
    manner: Manner,
    rows: Sequence[Row],
    progress: Progress,
    overall: Callable[[Sequence[Row], Sequence[float]], float] = over_rows,
) -> Iterator[Result]:
    """Puts the rows to the model under each policy; `overall` makes the score of the rows'."""
    prompts = [pieces(model, row) for row in rows]
    alone = manner.query_aware or manner.each_reads
    contexts = Contexts.of(model, () if alone else common.policies)
    for policy in common.policies:
        what = f"{task} {policy_label(policy)}"

        def draw(done: int, total: int, what: str = what) -> None:
            progress(what, done, total)

        found = answer_rows(model, common, policy, manner, rows, prompts, draw, contexts)
        scores = [
            row.metric(text, row.answers) for text, row in zip(found.texts, rows, strict=True)
        ]
        details: dict[str, Any] = {"query_aware": manner.query_aware, **found.figures()}
        if policy in contexts.serves:
            details["shared_prefill"] = True
        if table := cells(rows, scores):
            details["cells"] = table
        yield Result(
            task=task,
            score=overall(rows, scores),
            n=len(rows),
            by=group_scores(rows, scores),
            policy=describe(policy),
            cache=found.cache,
            details=details,
        )


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a policy made of rows.

    Attributes:
      texts: one a row.
      cache: bytes, of the last and longest batch: nominal, physical, peak.
      kept_tokens: per layer and head, of the longest prompt after its answer.
      bytes_read_per_token: of keys and values, by the last step of that answer.
      tokens_per_s: made in all batches, over the seconds of their decode steps.
      prefill_s: seconds that the prompts of all batches took.
    """

    texts: list[str]
    cache: Mapping[str, int]
    kept_tokens: list[list[int]]
    bytes_read_per_token: int
    tokens_per_s: float
    prefill_s: float

    def figures(self) -> dict[str, Any]:
        """All but the texts and the cache."""
        names = ("kept_tokens", "bytes_read_per_token", "tokens_per_s", "prefill_s")
        return {name: getattr(self, name) for name in names}


def answer_rows(
    model: Model,
    common: Common,
    policy: Policy,
    manner: Manner,
    rows: Sequence[Row],
    prompts: Sequence[tuple[list[int], list[int]]],
    progress: Callable[[int, int], None],
    contexts: Contexts | None = None,
) -> Answers:
    """Answers rows in batches.

    Every batch starts from an empty cache of the same shape, so all of them share two programs; or
    from what the policy chooses of `contexts`, if it is one of those that they serve.
    Rows of similar length go together. A batch that is in the journal is not run again.
    """
    shared = contexts if contexts and policy in contexts.serves else None
    longest = max(len(first) + len(rest) for first, rest in prompts)
    most_new = max(row.max_new_tokens for row in rows)
    settings = Settings(
        policy=policy,
        max_new_tokens=most_new,
        seed=common.seed,
        prefill_chunk=common.prefill_chunk,
        max_length=common.max_length or -(-(longest + most_new) // ROUND) * ROUND,
        kv_dtype=common.kv_dtype,
    )
    size = min(manner.batch_size, len(rows))
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, prompts[i])))
    texts = [""] * len(rows)
    batches: list[dict[str, Any]] = []
    for begin in range(0, len(order), size):
        batch = order[begin : begin + size]
        new = max(rows[i].max_new_tokens for i in batch)
        mine = dataclasses.replace(settings, max_new_tokens=new)
        asked = [prompts[i] for i in batch]
        # A last batch that is short is filled up: another shape would be another program.
        asked += asked[-1:] * (size - len(batch))
        how = manner.query_aware, shared is not None
        key = key_of(*common.loaded, mine, how, longest, asked)
        done = common.journal.get(key)
        if done is None:
            if not batches:
                progress(0, 0)
            if shared:
                done = _answer_shared(shared, mine, asked, len(batch) - 1)
            else:
                session = Session.begin(model, mine, size, longest)
                done = _answer_batch(session, _parts(asked, manner.query_aware), len(batch) - 1)
            common.journal.put(key, done)
        for i, ids in zip(batch, done["token_ids"], strict=False):
            texts[i] = model.tokenizer.decode(ids[: rows[i].max_new_tokens])
        batches.append(done)
        progress(begin + len(batch), len(order))
    last, decode_s = batches[-1], sum(done["decode_s"] for done in batches)
    made = sum(len(ids) for done in batches for ids in done["token_ids"])
    return Answers(
        texts,
        last["cache"],
        last["kept_tokens"],
        last["bytes_read_per_token"],
        tokens_per_s=made / decode_s if decode_s else 0.0,
        prefill_s=sum(done["prefill_s"] for done in batches),
    )


def _parts(prompts: list[tuple[list[int], list[int]]], query_aware: bool) -> list[list[list[int]]]:
    """What is fed after one another, each of all rows."""
    if query_aware:
        return [[[*first, *rest] for first, rest in prompts]]
    return [[prompt[part] for prompt in prompts] for part in (0, 1)]


def _answer_shared(
    contexts: Contexts, settings: Settings, prompts: list[tuple[list[int], list[int]]], longest: int
) -> dict[str, Any]:
    """As `_answer_batch`, of contexts that are read once for several policies."""
    first, rest = _parts(prompts, query_aware=False)
    reading = contexts.read(key_of(first, settings.max_length, settings.kv_dtype), settings, first)
    state, seconds, chosen = contexts.choose(reading, settings.policy, settings.seed)
    most = max(map(len, rest))
    session = Session.begin(contexts.model, settings, len(prompts), most, state)
    done = _answer_batch(session, [rest], longest)
    peak = max(done["cache"]["peak_bytes"], reading.peak_bytes, chosen)
    taken = done["prefill_s"] + reading.seconds + seconds
    return done | {"prefill_s": taken, "cache": done["cache"] | {"peak_bytes": peak}}


def _answer_batch(session: Session, parts: list[list[list[int]]], longest: int) -> dict[str, Any]:
    """Answers to prompts that come in parts, and what they took, as plain data.

    `longest` is the row whose cache is reported.
    """
    for part in parts:
        session.feed(part)
    generation = answer(session, [sum(map(len, row)) for row in zip(*parts, strict=True)])
    cache = generation.state.cache
    return {
        "token_ids": [[int(i) for i in ids] for ids in generation.token_ids],
        "cache": cache_bytes(session.settings.policy, cache, session.peak_bytes),
        "kept_tokens": kept_tokens(cache.layers, longest),
        "bytes_read_per_token": bytes_read(cache.layers, longest),
        "decode_s": session.timing.decode_s,
        "prefill_s": session.timing.prefill_s,
    }


def draw(figure: Any, results: Sequence[Result]) -> None:
    """Scores: of several settings of a policy over bytes, else maps of length by depth, or bars."""
    draw_kind(figure, usual(results), results)


def add_manner(add: Callable[..., Any]) -> None:
    """The flags of `Manner`."""
    add(
        "--query-aware",
        action="store_true",
        help="the question is read with the context, before anything is evicted",
    )
    add("--batch-size", type=int, default=1, metavar="N", help="rows at once (default: 1)")
    add(
        "--each-reads",
        action="store_true",
        help="every policy reads the contexts itself. By default one prefill, with everything "
        "kept, serves all of the list that choose after a prompt: scores are the same, and peak "
        "memory is that of the full cache",
    )


def check_manner(given: argparse.Namespace) -> Manner:
    """The flags of `Manner`, checked."""
    check_positive(given, "batch_size")
    return Manner(given.query_aware, given.batch_size, given.each_reads)
