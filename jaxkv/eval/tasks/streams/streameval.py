# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""StreamEval: an endless record of lines, and again and again a question about a recent one."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive
from jaxkv.cli.style import dress, line_of, name_lines
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.eval.pictures.plot import draw_kind, draw_on
from jaxkv.eval.runner.result import Result, policy_label
from jaxkv.eval.runner.task import Common, Task
from jaxkv.eval.tasks.ruler.text import word_pairs
from jaxkv.eval.tasks.streams.stream import (
    KINDS,
    WHERE_IT_ENDS,
    Asked,
    Found,
    begin,
    check_policies,
    found_by,
    has_room,
    make_result,
    once,
)
from jaxkv.generate.api import answer
from jaxkv.generate.session import Session
from jaxkv.layers.base import Policy

HEADER = "Below is a record of lines I want you to remember.\n"
LINE = "The REGISTER_CONTENT in line {} is"
LARGEST = 50000  # number of a line, as in LongEval
FEWEST = 8  # tokens of a line, by any tokenizer
STOP = ("\n",)
LINES = 1000
BACK = " back"  # after the distance, in the report

_DESCRIPTION = f"""StreamEval (arXiv 2309.17453), a re-implementation: the authors' code was never released.

A record of lines goes on and on, in the words of the paper's figure 8:

  The REGISTER_CONTENT in line 20 is <45603>

After every --every lines the model is asked for the number of the line that is --back lines before
the last one. It answers in the stream, greedily and up to the end of the line; its answer, right or
wrong, stays there. The prompts are raw, without a chat template. The cache is never reset. With --named
lines have names of two words, as in LongEval: a small model does not tell numbers of lines apart.

  score    percentage of answers whose first number is the right one
  by       the same for ten parts of the stream, by the last line before the question, and for every
           distance of --distances (table 7 of the paper: 20 to 1000), each a stream of its own
  tokens_per_line  with questions and answers included

{WHERE_IT_ENDS}
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    lines: of a stream, or None.
    tokens: of a stream, at most, or None; one of the two is given.
    distances: how many lines back the answers are; each is asked for in streams of its own.
    every: lines between questions.
    streams: at once, each with numbers of its own.
    named: whether lines have names of two words, and not numbers.
    max_new_tokens: of an answer.
    """

    lines: int | None
    tokens: int | None
    distances: tuple[int, ...]
    every: int
    streams: int
    named: bool
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Turn:
    """What is new in the stream up to a question, that included.

    Attributes:
      text: lines, and the question's last line, which the answer completes.
      answer: the number.
      line: the last one before the question.
    """

    text: str
    answer: str
    line: int


def make_turns(
    lines: int, back: int, every: int, seed: int, stream: int, named: bool = False
) -> list[Turn]:
    """A stream of lines 0 to `lines - 1`; its lines do not depend on `back` and `every`."""
    draws = np.random.default_rng([seed, stream])
    numbers = draws.integers(1, LARGEST + 1, lines)
    names = list(itertools.islice(word_pairs(draws) if named else map(str, range(lines)), lines))
    said = [f"The REGISTER_CONTENT in line {name} is" for name in names]
    record = [f"{line} <{number}>\n" for line, number in zip(said, numbers, strict=True)]
    turns, begin = [], 0
    for line in range(0, lines, every):
        if line >= back:
            new = "".join(record[begin : line + 1])
            text = f"{'' if turns else HEADER}{new}Query: {said[line - back]}"
            turns.append(Turn(text, str(numbers[line - back]), line))
            begin = line + 1
    return turns


def first_number(text: str) -> str | None:
    """The digits that a text has first."""
    found = re.search(r"[0-9]+", text)
    return found[0] if found else None


def within(model: Model, turns: Sequence[Turn], tokens: int) -> int:
    """How many first turns have at most so many tokens, with right answers."""
    encode = model.tokenizer.encode
    sizes = (len(encode(f"{turn.text} <{turn.answer}>\n")) for turn in turns)
    ends = itertools.accumulate(sizes, initial=len(model.tokenizer.bos_ids))
    return sum(1 for _ in itertools.takewhile(lambda end: end <= tokens, ends)) - 1


def ask(
    session: Session,
    streams: Sequence[Sequence[Turn]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Asked]:
    """Puts streams to the model, turn by turn, as far as its cache has room.

    Args:
      session: with nothing in its cache; afterwards it holds what is left of the streams.
      streams: one for each row of the session, all with the same number of turns.
      progress: called with (turns done, all of them).
    """
    tokenizer, most_new = session.model.tokenizer, session.settings.max_new_tokens
    opening = [list(tokenizer.bos_ids) for _ in streams]
    tokens = [0] * len(streams)
    asked: list[Asked] = []
    for done, turns in enumerate(zip(*streams, strict=True), start=1):
        texts = [tokenizer.encode(turn.text) for turn in turns]
        parts = [[*first, *text] for first, text in zip(opening, texts, strict=True)]
        if not has_room(session, max(map(len, parts)) + most_new):
            break
        session.feed(parts)
        said = answer(session, [len(part) for part in parts])
        for row, turn in enumerate(turns):
            tokens[row] += len(parts[row])
            number = first_number(said.texts[row])
            score = 100.0 * (number == turn.answer)
            asked.append(Asked(turn.line, tokens[row], score, number is not None))
            tokens[row] += len(said.token_ids[row])
            # What ended the line is in the stream; an answer that did not end gets it now.
            ended = "\n" in tokenizer.decode(said.token_ids[row])
            opening[row] = [] if ended else tokenizer.encode("\n")
        progress(done, len(streams[0]))
    return asked


def make_streams(model: Model, options: Options, back: int, seed: int) -> list[list[Turn]]:
    """The streams of one distance, all with the same number of turns.

    Raises:
      InputError: there is no question in so many tokens.
    """
    lines = options.lines or (options.tokens or 0) // FEWEST
    streams = [
        make_turns(lines, back, options.every, seed, i, options.named)
        for i in range(options.streams)
    ]
    if options.tokens is None:
        return streams
    count = min(within(model, turns, options.tokens) for turns in streams)
    if not count:
        raise InputError(
            f"--tokens is {options.tokens}; it must be larger: the first question about {back} "
            "lines back comes later"
        )
    return [turns[:count] for turns in streams]


def evaluate(
    model: Model, common: Common, options: Options, progress: Progress
) -> Iterable[Result]:
    """One result for each policy."""
    check_policies(model, common)
    streams = {b: make_streams(model, options, b, common.seed) for b in options.distances}
    for policy in common.policies:
        yield evaluate_policy(model, common, options, policy, streams, progress)


def evaluate_policy(
    model: Model,
    common: Common,
    options: Options,
    policy: Policy,
    streams: Mapping[int, Sequence[Sequence[Turn]]],
    progress: Progress,
) -> Result:
    """The streams of every distance under a policy, one distance after the other."""
    every = [turns for rows in streams.values() for turns in rows]
    sizes = [[len(model.tokenizer.encode(turn.text)) for turn in turns] for turns in every]
    extra = 1 + len(model.tokenizer.bos_ids)  # that, and the end of a line
    longest = max(map(max, sizes)) + extra
    total = max(sum(row) + (options.max_new_tokens + extra) * len(row) for row in sizes)
    asked, cache = [], {}
    for back, rows in streams.items():
        what = f"{TASK.name} {policy_label(policy)}, {back} back"

        def advance(done: int, turns: int, what: str = what) -> None:
            progress(what, done, turns)

        def work(rows: Sequence[Sequence[Turn]] = rows, advance: Any = advance) -> Found:
            advance(0, 0)
            session = begin(
                model, common, policy, len(rows), longest, total, options.max_new_tokens, STOP
            )
            return found_by(session, ask(session, rows, advance))

        found = once(common, (TASK.name, options, policy, back), work)
        group = f"{back}{BACK}" if len(streams) > 1 else None
        asked += [dataclasses.replace(one, group=group) for one in found.asked]
        cache = found.cache
    places = [turn.line for turns in every for turn in turns]
    details: dict[str, Any] = {"streams": options.streams}
    if asked:
        details["tokens_per_line"] = asked[-1].tokens / (asked[-1].place + 1)
    return make_result(TASK.name, policy, Found(asked, cache), places, "lines", details)


def draw(figure: Any, results: Sequence[Result]) -> None:
    """Right answers over the position in the stream, and over the distance if there are several."""
    names = dict.fromkeys(name for result in results for name in result.by)
    distances = [name for name in names if name.endswith(BACK)]
    if not distances:
        draw_kind(figure, "curve", results)
        return
    figure.set_size_inches(14.0, 4.5)
    over_stream, over_distance = figure.subplots(1, 2)
    draw_on([over_stream], "curve", results)
    lines = [int(name.removesuffix(BACK)) for name in distances]
    for result, look in zip(results, line_of([r.policy for r in results]), strict=True):
        values = np.array([result.by.get(name) for name in distances], float)
        over_distance.plot(lines, values, **look)
    over_distance.set(
        xlabel="distance of the answer (lines)", ylim=(-4, 112), xticks=lines,
        yticks=range(0, 101, 20), title="by the distance of the answer",
    )  # fmt: skip
    dress(over_distance)
    name_lines(over_distance)


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    add(
        "--lines",
        type=int | None,
        metavar="N",
        help=f"of a stream (default: {LINES}, the questions not counted)",
    )
    add(
        "--tokens",
        type=int | None,
        metavar="N",
        help="of a stream, instead of --lines: as many turns as N tokens hold",
    )
    add("--every", type=int, default=10, metavar="N", help="lines between questions (default: 10)")
    add(
        "--back",
        type=int | None,
        metavar="N",
        help="the line that is asked for is N lines before the last (default: 20)",
    )
    add(
        "--distances",
        type=str | int | None,
        metavar="N,N",
        help="several of them, instead of --back, such as 20,40,60,80,100",
    )
    add(
        "--streams",
        type=int,
        default=1,
        metavar="N",
        help="streams at once, each with numbers of its own (default: 1)",
    )
    add(
        "--named",
        action="store_true",
        help="lines have names of two words, as in LongEval, and not numbers",
    )
    add(
        "--max-new-tokens",
        type=int,
        default=16,
        metavar="N",
        help="of an answer, which ends with its line (default: 16)",
    )


def check(given: argparse.Namespace) -> Options:
    """The task's options."""
    for one, other in (("lines", "tokens"), ("back", "distances")):
        if getattr(given, one) is not None and getattr(given, other) is not None:
            raise InputError(f"--{one} and --{other} are both given; give one of them")
    check_positive(given, "lines", "tokens", "every", "back", "streams", "max_new_tokens")
    distances = _distances(given)
    lines = given.lines or (LINES if given.tokens is None else None)
    if lines is not None:
        last = (lines - 1) // given.every * given.every
        if max(distances) > last:
            flag = "--distances" if given.distances is not None else "--back"
            raise InputError(
                f"{flag} has {max(distances)}; with --lines {lines} and --every {given.every} it "
                f"must be at most {last}"
            )
    return Options(
        lines,
        given.tokens,
        distances,
        given.every,
        given.streams,
        given.named,
        given.max_new_tokens,
    )


def _distances(given: argparse.Namespace) -> tuple[int, ...]:
    if given.distances is None:
        return (20 if given.back is None else given.back,)
    parts = [part.strip() for part in str(given.distances).split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(
            f"--distances is {given.distances!r}; it must be numbers of lines such as 20,40,60"
        )
    return tuple(dict.fromkeys(map(int, parts)))


TASK = Task(
    name="streameval",
    summary="an endless record of lines, with questions about recent ones",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
    kinds=KINDS,
)
