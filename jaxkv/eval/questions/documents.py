# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions about long documents in local files: reading, drawing, and cutting in the middle."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive, read_text
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.core.reading import parse_json
from jaxkv.eval.questions.answers import (
    Manner,
    Row,
    add_manner,
    check_manner,
    evaluate_rows,
    over_tasks,
)
from jaxkv.eval.questions.rows import add_save_rows, check_save_rows, save_rows
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common
from jaxkv.generate.prompts import prompt_ids

CUT = """A prompt that is too long is cut in the middle: of its tokens (with the one that begins a text, and
without the chat template's) the first half and the last half of --max-prompt-tokens stay. The two
are decoded, joined, and only then put into the chat template."""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    rows: all that were read, whole.
    most: rows of each dataset and length, or None for all.
    max_prompt_tokens: beyond which a prompt is cut, or None for what the model was trained for.
    save_rows: where to keep the rows, or None.
    manner: how they are put to the model.
    """

    rows: tuple[Row, ...]
    most: int | None
    max_prompt_tokens: int | None
    save_rows: str | None
    manner: Manner


def read_records(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The objects of a JSON list or of a file with one a line, each with its place for messages.

    Raises:
      InputError: something in the file is not an object, or there is none.
    """
    where = f"--data {path}"
    text = read_text("--data", str(path))
    if text.lstrip().startswith("["):
        values = [
            (f"{where} row {n}", value) for n, value in enumerate(parse_json(text, where), start=1)
        ]
    else:
        # Not splitlines: JSON strings may hold other line separators as they are.
        places = [(f"{where} line {n}", line) for n, line in enumerate(text.split("\n"), start=1)]
        values = [(place, parse_json(line, place)) for place, line in places if line.strip()]
    for place, value in values:
        if not isinstance(value, Mapping):
            raise InputError(f"{place} must be an object with names and values")
    if not values:
        raise InputError(f"{where} holds no rows; it must have at least one")
    return values


def text_of(record: Mapping[str, Any], name: str, where: str) -> str:
    """A field that must be text."""
    if name not in record:
        raise InputError(f"{where} has no {name!r}; it has {', '.join(record) or 'nothing'}")
    if not isinstance(record[name], str):
        raise InputError(f"{where}: {name} is {record[name]!r:.40}; it must be a text")
    return record[name]


def texts_of(record: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """A field that must be a list of texts, with at least one."""
    values = record.get(name)
    if not isinstance(values, list) or not values or not all(isinstance(x, str) for x in values):
        raise InputError(f"{where}: {name} is {values!r:.40}; it must be a list of texts")
    return tuple(values)


def drawn(rows: Sequence[Row], most: int | None, seed: int) -> tuple[Row, ...]:
    """At most so many rows of each task and length, in their order.

    Groups of one size give the same places, so that lengths are compared on the same questions.
    """
    if most is None:
        return tuple(rows)
    groups: dict[tuple, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((row.task, row.length), []).append(index)
    kept: set[int] = set()
    for group in groups.values():
        kept.update(np.random.default_rng(seed).permutation(group)[:most].tolist())
    return tuple(rows[index] for index in sorted(kept))


def prompt_limit(model: Model, row: Row) -> int:
    """Tokens of a prompt that leave room for its template and answer in the trained context.

    Raises:
      InputError: there is no room for any.
    """
    framed, bare = (len(prompt_ids(model, "a", chat=chat)) for chat in (row.chat, False))
    limit = model.config.max_positions - row.max_new_tokens - (framed - bare)
    if limit < 2:
        raise InputError(
            f"{row.task} takes {row.max_new_tokens} tokens for an answer, and the model was "
            f"trained for {model.config.max_positions} in all; give --max-prompt-tokens"
        )
    return limit


def cut_middle(model: Model, row: Row, limit: int) -> Row:
    """A row whose prompt is cut as LongBench's code does it; the row itself if it is short enough.

    The cut is made in the whole prompt, as `CUT` says. Then the prompt is parted again, counting
    characters: what followed the context is still the question if the cut left it whole, and
    else the question is what is left of it.

    Args:
      model: whose tokens.
      row: a whole prompt.
      limit: tokens, at least 2.
    """
    tokenizer = model.tokenizer
    ids = [*tokenizer.bos_ids, *tokenizer.encode(row.context + row.question)]
    if len(ids) <= limit:
        return row
    half = limit // 2
    head, tail = tokenizer.decode(ids[:half]), tokenizer.decode(ids[-half:])
    text = head + tail
    at = max(len(text) - len(row.question), min(len(head), len(row.context)))
    return dataclasses.replace(row, context=text[:at], question=text[at:])


def evaluate(
    task: str, model: Model, common: Common, options: Options, progress: Progress
) -> Iterator[Result]:
    """One result for each policy; the score is the mean of the tasks' means."""
    whole = drawn(options.rows, options.most, common.seed)
    rows = []
    for row in whole:
        limit = options.max_prompt_tokens or prompt_limit(model, row)
        rows.append(cut_middle(model, row, limit))
        progress(f"{task} prompts", len(rows), len(whole))
    if options.save_rows is not None:
        save_rows(options.save_rows, rows)
    cut = sum(row is not before for row, before in zip(rows, whole, strict=True))
    results = evaluate_rows(task, model, common, options.manner, rows, progress, over_tasks)
    for result in results:
        yield dataclasses.replace(result, details={**result.details, "cut_prompts": cut})


def add_arguments(add: Callable[..., Any], data: str) -> None:
    """The flags that these tasks have in common; `data` says what --data is."""
    add("--data", type=str | None, metavar="PATH", help=f"{data} (needed)")
    add(
        "--rows",
        type=int | None,
        metavar="N",
        help="at most so many of each dataset and length, drawn by --seed (default: all)",
    )
    add(
        "--max-prompt-tokens",
        type=int | None,
        metavar="N",
        help="cut longer prompts in the middle (default: the context that the model was trained "
        "for, less the answer and the chat template)",
    )
    add_save_rows(add)
    add_manner(add)


def data_path(given: argparse.Namespace) -> Path:
    """What --data names, which is there."""
    if given.data is None:
        raise InputError("there is no data; give --data PATH")
    if not Path(given.data).exists():
        raise InputError(f"--data {given.data} does not exist")
    return Path(given.data)


def check(given: argparse.Namespace, rows: Iterable[Row]) -> Options:
    """The common flags, and the rows, which are read last."""
    check_positive(given, "rows")
    if given.max_prompt_tokens is not None and given.max_prompt_tokens < 2:
        raise InputError(f"--max-prompt-tokens is {given.max_prompt_tokens}; it must be at least 2")
    check_save_rows(given)
    manner = check_manner(given)
    every = tuple(rows)
    if not every:
        raise InputError(f"--data {given.data} holds no questions")
    return Options(every, given.rows, given.max_prompt_tokens, given.save_rows, manner)


def chosen(flag: str, given: str | None, known: Sequence[str], found: Sequence[str]) -> list[str]:
    """The names of a list with commas, or all that were found.

    Raises:
      InputError: a name is not known, or was not found.
    """
    if given is None:
        return list(found)
    names = list(dict.fromkeys(name.strip() for name in given.split(",")))
    for name in names:
        if name not in known:
            raise InputError(f"{flag} has {name!r}; it may have {', '.join(known)}")
        if name not in found:
            raise InputError(f"{flag} has {name!r}; --data has {', '.join(found) or 'none'}")
    return names
