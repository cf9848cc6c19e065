# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A needle in a haystack: one sentence in a long text, by length and by depth."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.eval.questions.answers import (
    KINDS_BY_DEPTH,
    QUERY_AWARE,
    Manner,
    Row,
    add_manner,
    check_manner,
    draw,
    evaluate_rows,
)
from jaxkv.eval.questions.haystacks import (
    add_cells,
    add_lengths,
    check_lengths,
    cycled,
    exact_row,
    haystack,
)
from jaxkv.eval.questions.metrics import Metric, contained
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common, Task
from jaxkv.text.prose import depth_percents

NEEDLE = (
    "Remember, the best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on "
    "a sunny day."
)
QUESTION = "what is the best thing to do in San Francisco?"
ANSWER = "eat a sandwich and sit in Dolores Park on a sunny day."
ANSWER_PREFIX = "The best thing to do in San Francisco is"
MAX_NEW_TOKENS = 50
ENDS = (".", "!", "?")  # of a sentence
FARTHEST = 40  # words that a needle may stand before its depth, to be after a sentence

_DESCRIPTION = f"""Find one sentence in a long text: a map of score by length and depth.

The prompt, the needle and the question are those of DuoAttention's script, and so are the 50 new
tokens. The text is not, for its essays may not be passed on: --haystack names another. Each prompt,
with its chat template, question and start of the answer, has exactly as many tokens as its length.
The needle is a paragraph of its own, after a sentence if one ends close before its depth. With --raw
there is no chat template, as in that script.

score is the mean of --metric, in percent:

  overlap    words of the expected answer that the answer has, in lower case, over how many different
             ones there are (the measure that DuoAttention and HeadKV plot; DuoAttention divides by 12
             words of the sandwich, where 11 differ)
  rouge1     ROUGE-1 F of the answer and the whole needle, without the stemming of those scripts
             (which give a tenth of this; an answer that is just right has 71, as it does not repeat
             the whole needle)
  contained  100 if the expected answer is in the answer, whatever the case

{QUERY_AWARE}
"""  # noqa: E501


def overlap(text: str, answers: Sequence[str]) -> float:
    """Percentage of a reference's different words that a text has; the best of the references.

    Words are what blanks separate, in lower case.
    """
    said = set(text.lower().split())
    expected = [set(answer.lower().split()) for answer in answers]
    return 100.0 * max(len(words & said) / len(words) for words in expected)


def rouge1(text: str, answers: Sequence[str]) -> float:
    """ROUGE-1 F of a text and a reference, in percent; the best of the references.

    As the `rouge_score` package gives it without stemming: words are runs of a-z and 0-9 in lower
    case, and with m the sum over words of the smaller of both counts, F = 2 m / (their words and
    ours).
    """
    said = Counter(re.findall(r"[a-z0-9]+", text.lower()))
    scores = []
    for answer in answers:
        expected = Counter(re.findall(r"[a-z0-9]+", answer.lower()))
        common = (said & expected).total()
        scores.append(200.0 * common / (said.total() + expected.total()) if common else 0.0)
    return max(scores)


@dataclasses.dataclass(frozen=True)
class Measure:
    """A metric, and whether it compares with the whole needle or with the expected answer."""

    metric: Metric
    whole_needle: bool


MEASURES: Mapping[str, Measure] = {
    "overlap": Measure(overlap, whole_needle=False),
    "rouge1": Measure(rouge1, whole_needle=True),
    "contained": Measure(contained, whole_needle=False),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    hay: words of a text.
    needle: the sentence that is hidden.
    question: what is asked.
    answer: what is expected.
    answer_prefix: start of the model's answer.
    lengths: of the prompts, in tokens.
    depths: how many, evenly from the start (0) to the end (100) of the text.
    rows_per_cell: rows of each length and depth.
    measure: what is scored.
    raw: without a chat template.
    manner: how rows are put to the model.
    """

    hay: tuple[str, ...]
    needle: str
    question: str
    answer: str
    answer_prefix: str
    lengths: tuple[int, ...]
    depths: int
    rows_per_cell: int
    measure: Measure
    raw: bool
    manner: Manner


def place(words: Sequence[str], depth: float) -> int:
    """After how many words the needle stands: `depth` percent of them, or a sentence's end before.

    Where no sentence ends for long, as in tables and programs, it stands between two words.
    """
    at = round(len(words) * depth / 100)
    if at < len(words):
        for end in range(at, max(0, at - FARTHEST), -1):
            if words[end - 1].endswith(ENDS):
                return end
    return at


def make_row(
    options: Options, length: int, depth: float, begin: int, count: int, more: str, raw: bool
) -> Row:
    """A row with the needle after `depth` percent of the words.

    Args:
      options: the task's.
      length: what the row is reported by.
      depth: percent.
      begin: which word is the first.
      count: words.
      more: text after the last of them.
      raw: whether the prompt goes in as it is.
    """
    words = cycled(options.hay, count, begin)
    if more:
        words = [*words[:-1], "".join(words[-1:]) + more]
    at = place(words, depth)
    before, after = " ".join(words[:at]), " ".join(words[at:])
    question = f"Question: Based on the content of the book, {options.question}"
    prefix = options.answer_prefix
    if raw:
        # The script writes it so for every model; most read it as plain text.
        opening, question = "<|im_start|> ", f"{question}\n\nAnswer:"
        prefix = f" {prefix}" if prefix else ""
    else:
        opening = ""
    return Row(
        context=f"{opening}This is a very long story book: <book> {before}\n\n{options.needle}\n\n"
        f"{after} </book>.\n\n",
        question=question,
        answer_prefix=prefix,
        answers=(options.needle if options.measure.whole_needle else options.answer,),
        max_new_tokens=MAX_NEW_TOKENS,
        length=length,
        depth=depth,
        metric=options.measure.metric,
        chat=not raw,
    )


def make_rows(model: Model, options: Options, seed: int) -> list[Row]:
    """Rows of every length and depth; each is the same whatever the others are.

    Raises:
      InputError: a length does not even hold the question.
    """
    raw = options.raw or model.tokenizer.chat_template is None
    firsts = [0, *(i for i, word in enumerate(options.hay[:-1], start=1) if word.endswith(ENDS))]
    cells = itertools.product(
        options.lengths, depth_percents(options.depths), range(options.rows_per_cell)
    )
    rows = []
    for length, depth, index in cells:
        draws = np.random.default_rng([seed, length, round(10 * depth), index])
        begin = int(draws.choice(firsts))

        def make(count: int, more: str) -> Row:
            return make_row(options, length, depth, begin, count, more, raw)  # noqa: B023

        rows.append(exact_row(model, make, length))
    return rows


def evaluate(
    model: Model, common: Common, options: Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    rows = make_rows(model, options, common.seed)
    return evaluate_rows(TASK.name, model, common, options.manner, rows, progress)


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    add_lengths(add, "512,1024")
    add_cells(add, 10)
    add(
        "--haystack",
        default="help",
        metavar="NAME",
        help="noise, help (the help texts that come with Python) or a file (default: help)",
    )
    add("--needle", default=NEEDLE, metavar="TEXT", help="the sentence that is hidden")
    add("--question", default=QUESTION, metavar="TEXT", help="what is asked about it")
    add("--answer", default=ANSWER, metavar="TEXT", help="what is expected")
    add("--answer-prefix", default=ANSWER_PREFIX, metavar="TEXT", help="start of the answer")
    add(
        "--metric",
        default="overlap",
        metavar="NAME",
        help=f"{', '.join(MEASURES)} (default: overlap)",
    )
    add("--raw", action="store_true", help="without the model's chat template")
    add_manner(add)


def check(given: argparse.Namespace) -> Options:
    """The task's options, with the haystack read."""
    check_positive(given, "depths", "rows_per_cell")
    for name in ("needle", "question", "answer"):
        if not getattr(given, name).strip():
            raise InputError(f"--{name} is empty; it must hold some text")
    if given.metric not in MEASURES:
        raise InputError(f"--metric is {given.metric!r}; it must be one of {', '.join(MEASURES)}")
    return Options(
        tuple(" ".join(haystack(given.haystack)).split()),
        given.needle,
        given.question,
        given.answer,
        given.answer_prefix,
        check_lengths(given),
        given.depths,
        given.rows_per_cell,
        MEASURES[given.metric],
        given.raw,
        check_manner(given),
    )


TASK = Task(
    name="niah",
    summary="a needle in a haystack: a sentence in a long text, by length and depth",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=KINDS_BY_DEPTH,
)
