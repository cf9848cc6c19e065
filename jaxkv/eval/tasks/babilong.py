# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""BABILong: facts about people and places between the sentences of books."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.eval.questions import documents
from jaxkv.eval.questions.answers import KINDS, QUERY_AWARE, Row, draw
from jaxkv.eval.questions.metrics import only_label
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common, Task

MAX_NEW_TOKENS = 15

_PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_THINGS = ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk")
_CARRIED = (
    "If a person got an item in the first location and travelled to the second location "
    "the item is also in the second location. "
    "If a person dropped an item in the first location and moved to the second location "
    "the item remains in the first location."
)
_FACTS_ONLY = "You need to answer the question based only on the information from the facts."

_DESCRIPTION = f"""Ask BABILong's tasks qa1 to qa5 with the official few-shot prompts and metric.

--data has the published files, FOLDER/qa1/4k.json (or under FOLDER/data), or FOLDER/4k/qa1.json; a
JSON list, or .jsonl, of input, question and target. Answers have {MAX_NEW_TOKENS} tokens. An answer is right if its
first sentence names the target and no other of the task's labels, not counting those that the
question names. score is the mean of the tasks; by has every task and every length (4k is 4000).

{documents.CUT}

{QUERY_AWARE}
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A task's own part of the prompt.

    Attributes:
      instruction: what is asked.
      examples: with their answers.
      form: how answers look.
      labels: all that can be an answer.
    """

    instruction: str
    examples: str
    form: str
    labels: tuple[str, ...]


PROMPTS: Mapping[str, Prompt] = {
    "qa1": Prompt(
        "I will give you context with the facts about positions of different persons hidden in "
        f"some random text and a question. {_FACTS_ONLY} "
        "If a person was in different locations, use the latest location to answer the question.",
        "<example>\n"
        "Charlie went to the hallway. Judith come back to the kitchen. Charlie travelled to "
        "balcony. Where is Charlie?\n"
        "Answer: The most recent location of Charlie is balcony.\n"
        "</example>\n\n"
        "<example>\n"
        "Alan moved to the garage. Charlie went to the beach. Alan went to the shop. Rouse "
        "travelled to balcony. Where is Alan?\n"
        "Answer: The most recent location of Alan is shop.\n"
        "</example>",
        "Always return your answer in the following format: The most recent location of ’person’ "
        "is ’location’. Do not write anything else after that.",
        _PLACES,
    ),
    "qa2": Prompt(
        "I give you context with the facts about locations and actions of different persons "
        # No space after the full stop: so it is in the official prompt.
        f"hidden in some random text and a question.{_FACTS_ONLY}\n{_CARRIED}",
        "<example>\n"
        "Charlie went to the kitchen. Charlie got a bottle. Charlie moved to the balcony. "
        "Where is the bottle?\n"
        "Answer: The bottle is in the balcony.\n"
        "</example>\n"
        "<example>\n"
        "Alan moved to the garage. Alan got a screw driver. Alan moved to the kitchen. Where is "
        "the screw driver?\n"
        "Answer: The screw driver is in the kitchen.\n"
        "</example>",
        "Always return your answer in the following format: The ’item’ is in ’location’. "
        "Do not write anything else after that.",
        _PLACES,
    ),
    "qa3": Prompt(
        "I give you context with the facts about locations and actions of different persons "
        f"hidden in some random text and a question. {_FACTS_ONLY}\n{_CARRIED}",
        "<example>\n"
        "John journeyed to the bedroom. Mary grabbed the apple. Mary went back to the bathroom. "
        "Daniel journeyed to the bedroom. Daniel moved to the garden. Mary travelled to the "
        "kitchen. Where was the apple before the kitchen?\n"
        "Answer: Before the kitchen the apple was in the bathroom.\n"
        "</example>\n"
        "<example>\n"
        "John went back to the bedroom. John went back to the garden. John went back to the "
        "kitchen. Sandra took the football. Sandra travelled to the garden. Sandra journeyed to "
        "the bedroom. Where was the football before the bedroom?\n"
        "Answer: Before the bedroom the football was in the garden.\n"
        "</example>",
        "Always return your answer in the following format: Before the $location_1$ the $item$ "
        "was in the $location_2$. Do not write anything else after that.",
        _PLACES,
    ),
    "qa4": Prompt(
        "I will give you context with the facts about different people, their location and "
        f"actions, hidden in some random text and a question. {_FACTS_ONLY}",
        "<example>\n"
        "The hallway is south of the kitchen. The bedroom is north of the kitchen. "
        "What is the kitchen south of?\n"
        "Answer: bedroom\n"
        "</example>\n"
        "<example>\n"
        "The garden is west of the bedroom. The bedroom is west of the kitchen. What is west of "
        "the bedroom?\n"
        "Answer: garden\n"
        "</example>",
        "Your answer should contain only one word - location. Do not write anything else after "
        "that.",
        _PLACES,
    ),
    "qa5": Prompt(
        "I will give you context with the facts about locations and their relations hidden in "
        f"some random text and a question. {_FACTS_ONLY}",
        "<example>\n"
        "Mary picked up the apple there. Mary gave the apple to Fred. Mary moved to the bedroom. "
        "Bill took the milk there. Who did Mary give the apple to?\n"
        "Answer: Fred\n"
        "</example>\n"
        "<example>\n"
        "Jeff took the football there. Jeff passed the football to Fred. Jeff got the milk there. "
        "Bill travelled to the bedroom. Who gave the football?\n"
        "Answer: Jeff\n"
        "</example>\n"
        "<example>\n"
        "Fred picked up the apple there. Fred handed the apple to Bill. Bill journeyed to the "
        "bedroom. Jeff went back to the garden. What did Fred give to Bill?\n"
        "Answer: apple\n"
        "</example>",
        "Your answer should contain only one word. Do not write anything else after that. Do not "
        "explain your answer.",
        _THINGS,
    ),
}


def read(path: Path, task: str, length: str) -> Iterator[Row]:
    """The questions of one of BABILong's files.

    Raises:
      InputError: a row is not in BABILong's format.
    """
    prompt = PROMPTS[task]
    for where, record in documents.read_records(path):
        context, question, target = (
            documents.text_of(record, name, where) for name in ("input", "question", "target")
        )
        if target.lower() not in map(str.lower, prompt.labels):
            raise InputError(
                f"{where}: target is {target!r:.40}; for {task} it must be "
                f"{', '.join(prompt.labels)}"
            )
        yield Row(
            context=f"{prompt.instruction}\n\n{prompt.examples}\n\n{prompt.form}\n\n"
            f"<context>\n{context.strip()}",
            question=f"\n</context>\n\nQuestion: {question}".rstrip(),
            answer_prefix="",
            answers=(target,),
            max_new_tokens=MAX_NEW_TOKENS,
            task=task,
            length=tokens_of(length),
            metric=functools.partial(only_label, question=question, labels=prompt.labels),
        )


def tokens_of(length: str) -> int:
    """What a name such as 4k or 1M stands for."""
    return int(length[:-1]) * {"k": 1000, "M": 1_000_000}[length[-1]]


def files(folder: Path) -> dict[tuple[str, str], Path]:
    """The files of a folder by task and length, in both orders of the folders' names."""
    found = {}
    for root in (folder / "data", folder):
        for path in sorted((*root.glob("*/*.json"), *root.glob("*/*.jsonl"))):
            for task, length in ((path.parent.name, path.stem), (path.stem, path.parent.name)):
                if task in PROMPTS and re.fullmatch(r"\d+[kM]", length):
                    found[task, length] = path
    return found


def evaluate(
    model: Model, common: Common, options: documents.Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    return documents.evaluate(TASK.name, model, common, options, progress)


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    documents.add_arguments(add, "a folder with BABILong's files")
    add("--tasks", type=str | None, metavar="qa1,qa2", help="of qa1 to qa5 (default: those found)")
    add("--lengths", type=str | None, metavar="0k,4k", help="default: those found")


def check(given: argparse.Namespace) -> documents.Options:
    """The task's options, with the files read."""
    folder = documents.data_path(given)
    found = files(folder)
    if not found:
        raise InputError(f"--data {folder} has no files of BABILong, such as qa1/4k.json")
    by_size = sorted({length for _, length in found}, key=tokens_of)
    tasks = documents.chosen("--tasks", given.tasks, list(PROMPTS), sorted({t for t, _ in found}))
    lengths = documents.chosen("--lengths", given.lengths, by_size, by_size)
    cells = [(task, length) for task in tasks for length in lengths]
    missing = [f"{task} at {length}" for task, length in cells if (task, length) not in found]
    if missing:
        # A mean over other lengths for one task than for another would say nothing.
        raise InputError(f"--data {folder} has no {', '.join(missing)}; choose --tasks, --lengths")
    return documents.check(given, (row for cell in cells for row in read(found[cell], *cell)))


TASK = Task(
    name="babilong",
    summary="facts between the sentences of books, of BABILong's files",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=KINDS,
)
