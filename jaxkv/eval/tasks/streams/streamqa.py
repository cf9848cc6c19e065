# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Multiple-choice questions one after the other in one stream, or each with an empty cache."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive, read_text
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.core.reading import parse_json
from jaxkv.eval.questions.answers import mean, shared_prefix
from jaxkv.eval.runner.result import Result, policy_label
from jaxkv.eval.runner.task import Common, Task
from jaxkv.eval.tasks.streams.stream import (
    KINDS,
    WHERE_IT_ENDS,
    Asked,
    Found,
    begin,
    check_policies,
    draw,
    found_by,
    has_room,
    make_result,
    once,
)
from jaxkv.generate.session import Session
from jaxkv.layers.base import Policy

HEADER = "Answer each question with the label of the right choice.\n\n"

_DESCRIPTION = f"""Multiple-choice questions in one stream (arXiv 2309.17453, table 5), a re-implementation: the authors'
code and the form of their prompts were never released.

--questions is a JSONL file of ARC, in the official form or that of the Hugging Face hub. The first line
of the stream says what to do, and each question is as it is here, without a chat template:

  Answer each question with the label of the right choice.

  Question: Which of these is a planet?
  A. the Moon
  B. Mars
  Answer: B

At "Answer:" the model says what comes next, greedily. It is right if that is exactly the label of the
right choice. In the stream follows the right label, so that every earlier question is an example;
with --own-answers what the model said itself. The cache is never reset. With --one-shot every question
starts from an empty cache instead, the baseline of the paper.

  score    percentage of right answers
  by       the same for ten parts of the stream
  chance   what a guess among the labels would score, on average

{WHERE_IT_ENDS}
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Question:
    """Attributes:
    text: up to where the answer begins.
    labels: of the choices.
    right: which of them is right.
    """

    text: str
    labels: tuple[str, ...]
    right: int


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    questions: at least one, in their order.
    own_answers: whether the model's answers stay in the stream, and not the right ones.
    one_shot: whether every question starts from an empty cache.
    batch_size: questions at once, if so.
    """

    questions: tuple[Question, ...]
    own_answers: bool
    one_shot: bool
    batch_size: int


def read_questions(path: str) -> tuple[Question, ...]:
    """The questions of a JSONL file of ARC.

    Raises:
      InputError: the file or a line of it cannot be used.
    """
    # Not splitlines: JSON strings may hold other line separators as they are.
    lines = enumerate(read_text("--questions", path).split("\n"), start=1)
    return tuple(
        question_of(line, f"--questions {path} line {n}") for n, line in lines if line.strip()
    )


def question_of(line: str, where: str) -> Question:
    """A question from a line of either form; `where` begins the messages."""
    value = parse_json(line, where)
    try:
        if isinstance(value["question"], Mapping):
            stem = value["question"]["stem"]
            choices = [(choice["label"], choice["text"]) for choice in value["question"]["choices"]]
        else:
            stem, listed = value["question"], value["choices"]
            choices = list(zip(listed["label"], listed["text"], strict=True))
        key = value["answerKey"]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{where} is no ARC question; it must have question (stem, choices with label and "
            "text) or question and choices (label, text), and answerKey"
        ) from None
    if not all(isinstance(text, str) and text for text in (stem, key, *sum(choices, ()))):
        raise InputError(f"{where}: question, labels, choices and answerKey must be texts")
    labels = tuple(label for label, _ in choices)
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise InputError(
            f"{where}: the labels are {', '.join(labels)}; they must be two or more, all different"
        )
    if key not in labels:
        raise InputError(f"{where}: answerKey is {key!r}; it must be one of {', '.join(labels)}")
    listed = "\n".join(f"{label}. {text}" for label, text in choices)
    return Question(f"Question: {stem}\n{listed}\nAnswer:", labels, labels.index(key))


def pieces(model: Model, question: Question) -> tuple[list[int], list[list[int]]]:
    """The ids of a question, and for each label those that follow them.

    A token that spans the boundary is the label's.
    """
    encode = model.tokenizer.encode
    whole = [encode(f"{question.text} {label}") for label in question.labels]
    at = min(shared_prefix(whole[0], other) for other in whole[1:])
    at = min(at, min(map(len, whole)) - 1)  # of labels that begin with another label
    return whole[0][:at], [ids[at:] for ids in whole]


def opening_ids(model: Model) -> list[int]:
    """What is before the first question."""
    return [*model.tokenizer.bos_ids, *model.tokenizer.encode(HEADER)]


def guesses(session: Session) -> list[int]:
    """The likeliest next token of each row."""
    return np.asarray(session.state.logits).argmax(axis=-1).tolist()


def asked_of(number: int, tokens: int, token: int, right: int, labels: list[list[int]]) -> Asked:
    """How an answer counts, from the token that was said and the ids of every label."""
    firsts = [ids[0] for ids in labels]
    return Asked(number, tokens, 100.0 * (token == firsts[right]), token in firsts)


def ask_stream(
    model: Model,
    session: Session,
    questions: Sequence[Question],
    own_answers: bool,
    progress: Callable[[int, int], None],
) -> list[Asked]:
    """Asks one after the other, as far as the cache has room."""
    between = model.tokenizer.encode("\n\n")
    opening = opening_ids(model)
    asked, tokens = [], 0
    for number, question in enumerate(questions, start=1):
        text, labels = pieces(model, question)
        if not has_room(session, len(opening) + len(text) + 1):
            break
        session.feed([[*opening, *text]])
        tokens += len(opening) + len(text)
        (token,) = guesses(session)
        asked.append(asked_of(number, tokens, token, question.right, labels))
        opening = [*([token] if own_answers else labels[question.right]), *between]
        progress(number, len(questions))
    return asked


def ask_each(
    model: Model,
    begun: Callable[[], Session],
    questions: Sequence[Question],
    batch_size: int,
    progress: Callable[[int, int], None],
) -> Found:
    """Asks each with an empty cache of its own."""
    asked = []
    for first in range(0, len(questions), batch_size):
        batch = questions[first : first + batch_size]
        parts = [pieces(model, question) for question in batch]
        prompts = [[*opening_ids(model), *text] for text, _ in parts]
        session = begun()
        # A last batch that is short is filled up: another shape would be another program.
        session.feed(prompts + prompts[-1:] * (batch_size - len(batch)))
        for i, token in enumerate(guesses(session)[: len(batch)]):
            tokens, right = len(prompts[i]), batch[i].right
            asked.append(asked_of(first + i + 1, tokens, token, right, parts[i][1]))
        progress(first + len(batch), len(questions))
    return found_by(session, asked)


def evaluate(
    model: Model, common: Common, options: Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    if not options.one_shot:
        check_policies(model, common)
    for policy in common.policies:
        yield evaluate_policy(model, common, options, policy, progress)


def evaluate_policy(
    model: Model, common: Common, options: Options, policy: Policy, progress: Progress
) -> Result:
    """All questions under a policy."""

    def advance(done: int, total: int) -> None:
        progress(f"{TASK.name} {policy_label(policy)}", done, total)

    questions, opening = options.questions, len(opening_ids(model))
    # Each with an answer and what is between questions; cut elsewhere they may be a token more.
    texts = [f"{one.text} {max(one.labels, key=len)}\n\n" for one in questions]
    sizes = [len(model.tokenizer.encode(text)) + 2 for text in texts]
    size = min(options.batch_size, len(questions))

    def begun() -> Session:
        total = opening + (max(sizes) if options.one_shot else sum(sizes))
        return begin(model, common, policy, size, opening + max(sizes), total)

    def work() -> Found:
        advance(0, 0)
        if options.one_shot:
            return ask_each(model, begun, questions, size, advance)
        session = begun()
        return found_by(
            session, ask_stream(model, session, questions, options.own_answers, advance)
        )

    return make_result(
        TASK.name,
        policy,
        once(common, (TASK.name, options, policy), work),
        range(1, len(questions) + 1),
        "questions",
        {
            "one_shot": options.one_shot,
            "own_answers": options.own_answers,
            "chance": mean(100.0 / len(question.labels) for question in questions),
        },
    )


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    add("--questions", type=str | None, metavar="FILE", help="JSONL in a form of ARC (needed)")
    add("--limit", type=int | None, metavar="N", help="ask the first N questions (default: all)")
    add(
        "--own-answers",
        action="store_true",
        help="the model's answers stay in the stream, not the right ones",
    )
    add("--one-shot", action="store_true", help="start every question from an empty cache")
    add(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="with --one-shot, questions at once (default: 1)",
    )


def check(given: argparse.Namespace) -> Options:
    """The task's options, with the questions read."""
    check_positive(given, "limit", "batch_size")
    if given.one_shot and given.own_answers:
        raise InputError("--own-answers and --one-shot are both given; one question has no others")
    if given.batch_size > 1 and not given.one_shot:
        raise InputError(
            f"--batch-size is {given.batch_size}; in a stream it must be 1, or give --one-shot"
        )
    if given.questions is None:
        raise InputError("there are no questions; give --questions FILE")
    questions = read_questions(given.questions)[: given.limit]
    return Options(questions, given.own_answers, given.one_shot, given.batch_size)


TASK = Task(
    name="streamqa",
    summary="multiple-choice questions in one endless stream",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=KINDS,
)
