# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""RULER's 13 tasks (arXiv 2404.06654), with rows of exact lengths that are made here."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.eval.questions.answers import (
    KINDS,
    QUERY_AWARE,
    Manner,
    Row,
    add_manner,
    check_manner,
    draw,
    evaluate_rows,
    over_tasks,
    row_ids,
)
from jaxkv.eval.questions.haystacks import check_lengths, exact_row, haystack
from jaxkv.eval.questions.rows import add_save_rows, check_save_rows, save_rows
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common, Task
from jaxkv.eval.tasks.ruler.niah import FORMS, niah
from jaxkv.eval.tasks.ruler.qa import Corpus, qa, read_hotpotqa, read_squad
from jaxkv.eval.tasks.ruler.tracking import example_lines, vt
from jaxkv.eval.tasks.ruler.words import cwe, fwe

Maker = Callable[[np.random.Generator, int, str], Row]  # from draws, units of haystack, filler

FLAGS: Mapping[str, str] = {"qa_1": "squad", "qa_2": "hotpotqa"}
NAMES = (*FORMS, "vt", "cwe", "fwe", *FLAGS)  # rows depend on this order

_DESCRIPTION = f"""RULER's 13 tasks: what a policy still finds, follows, counts and answers in long prompts.

  niah_single_1    a number in repeated sentences   niah_multikey_2  a needle among needles
  niah_single_2    a number in an essay             niah_multikey_3  the same, with UUIDs
  niah_single_3    a UUID in an essay               niah_multivalue  four numbers of one key
  niah_multikey_1  one of four keys in an essay     niah_multiquery  four keys at once
  vt    variables that hand a value on              cwe   the ten most common words of a list
  fwe   the three most frequent coded words         qa_1  a question of SQuAD (--squad)
                                                    qa_2  a question of HotpotQA (--hotpotqa)

Prompts, numbers of needles, repetitions and metrics are RULER's. The words of keys and lists are
our own, and instead of Paul Graham's essays --haystack gives the text. A length counts the prompt
with its chat template and the start of the answer, and the tokens of the answer (niah 128, vt 30,
cwe 120, fwe 50, qa 32); every row has exactly that many.

score is the mean over the tasks; by has it for every task and every length. An answer's score is the
percentage of references that it contains; for qa it is 100 if it contains any.

{QUERY_AWARE}
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    tasks: by name.
    lengths: of a prompt and its answer, in tokens.
    rows: of each task and length.
    essay: words of the text that needles are hidden in.
    corpora: of the tasks that have a file.
    save_rows: where to keep the rows, or None.
    manner: how they are put to the model.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    rows: int
    essay: tuple[str, ...]
    corpora: Mapping[str, Corpus]
    save_rows: str | None
    manner: Manner


def makers(options: Options, lines: int, length: int, seed: int, index: int) -> dict[str, Maker]:
    """What makes row `index` of each task; `lines` are those of vt's example."""
    found: dict[str, Maker] = {
        name: functools.partial(niah, form=form, essay=options.essay)
        for name, form in FORMS.items()
    }
    found["vt"] = functools.partial(vt, lines=lines)
    found["cwe"] = functools.partial(cwe, length=length)
    found["fwe"] = functools.partial(fwe, length=length)
    for name, corpus in options.corpora.items():
        order = np.random.default_rng([seed, NAMES.index(name)])
        question = corpus.questions[order.permutation(len(corpus.questions))[index]]
        found[name] = functools.partial(qa, corpus=corpus, question=question)
    return found


def make_row(model: Model, task: str, maker: Maker, length: int, seed: int, index: int) -> Row:
    """A row of exactly `length` tokens with its answer.

    Raises:
      InputError: the task does not fit in.
    """

    def make(units: int, filler: str) -> Row:
        # The same draws for every number of units: the row depends on its place alone.
        draws = np.random.default_rng([seed, NAMES.index(task), length, index])
        return maker(draws, units, filler)

    bare = make(0, "")
    least = len(row_ids(model, bare)) + bare.max_new_tokens
    if least > length:
        raise InputError(
            f"--lengths has {length}; a row of {task} takes at least {least} tokens, of which "
            f"{bare.max_new_tokens} are for the answer"
        )
    row = exact_row(model, make, length - bare.max_new_tokens)
    return dataclasses.replace(row, task=task, length=length)


def make_rows(model: Model, options: Options, seed: int, progress: Progress) -> tuple[Row, ...]:
    """Rows of every task and length; each is the same whatever the others are."""
    lines = example_lines(model)
    places = list(itertools.product(options.tasks, options.lengths, range(options.rows)))
    rows = []
    for task, length, index in places:
        maker = makers(options, lines, length, seed, index)[task]
        rows.append(make_row(model, task, maker, length, seed, index))
        progress("making rows", len(rows), len(places))
    return tuple(rows)


def evaluate(
    model: Model, common: Common, options: Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    rows = make_rows(model, options, common.seed, progress)
    if options.save_rows is not None:
        save_rows(options.save_rows, rows)
    return evaluate_rows(
        TASK.name, model, common, options.manner, rows, progress, overall=over_tasks
    )


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    add(
        "--tasks",
        type=str | None,
        metavar="NAME,NAME",
        help="separated by commas (default: all, of qa those whose file is given)",
    )
    add(
        "--lengths",
        type=str,
        default="1024",
        metavar="N,N",
        help="tokens of prompt and answer together, separated by commas (default: 1024)",
    )
    add(
        "--rows",
        type=int,
        default=10,
        metavar="N",
        help="rows of each task and length (default: 10; RULER has 500)",
    )
    add(
        "--haystack",
        type=str,
        default="help",
        metavar="NAME",
        help="the essay: help (texts that come with Python), noise, or a file (default: help)",
    )
    add("--squad", type=str | None, metavar="FILE", help="SQuAD's JSON file, for qa_1")
    add(
        "--hotpotqa",
        type=str | None,
        metavar="FILE",
        help="HotpotQA's JSON file of the distractor setting, for qa_2",
    )
    add_save_rows(add)
    add_manner(add)


def check(given: argparse.Namespace) -> Options:
    """The task's options, with the files read."""
    check_positive(given, "rows")
    lengths = check_lengths(given)
    manner = check_manner(given)
    check_save_rows(given)
    tasks = _check_tasks(given)
    readers = {"qa_1": read_squad, "qa_2": read_hotpotqa}
    corpora = {
        name: read(getattr(given, FLAGS[name])) for name, read in readers.items() if name in tasks
    }
    for name, corpus in corpora.items():
        if given.rows > (count := len(corpus.questions)):
            raise InputError(
                f"--rows is {given.rows}; --{FLAGS[name]} has {count} questions, so it must be "
                f"at most {count}"
            )
    essay = tuple(" ".join(haystack(given.haystack)).split(" "))
    return Options(tasks, lengths, given.rows, essay, corpora, given.save_rows, manner)


def _check_tasks(given: argparse.Namespace) -> tuple[str, ...]:
    have = [name for name in NAMES if name not in FLAGS or getattr(given, FLAGS[name]) is not None]
    names = have if given.tasks is None else [name.strip() for name in given.tasks.split(",")]
    for name in names:
        if name not in NAMES:
            raise InputError(f"--tasks has {name!r}; it may have {', '.join(NAMES)}")
        if name not in have:
            raise InputError(f"--tasks has {name}; give its file with --{FLAGS[name]} FILE")
    return tuple(dict.fromkeys(names))


TASK = Task(
    name="ruler",
    summary="RULER's 13 tasks: needles, variables, word counts, questions",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=KINDS,
)
