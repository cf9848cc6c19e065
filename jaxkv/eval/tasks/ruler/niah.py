# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""RULER's eight needle tasks: numbers or UUIDs hidden in noise, an essay or other needles."""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxkv.eval.questions.answers import Row
from jaxkv.eval.questions.haystacks import NOISE, cycled
from jaxkv.eval.tasks.ruler.text import different, first_pieces, word_pairs
from jaxkv.text.prose import sentences

MAX_NEW_TOKENS = 128
NOISE_LINE = " ".join(NOISE)
_DEPTHS = np.round(np.linspace(0, 100, 40)).astype(int)  # of an essay, in percent


def numbers(draws: np.random.Generator) -> Iterator[str]:
    """Different numbers of seven digits."""
    return different(lambda: str(draws.integers(10**6, 10**7)))


def uuids(draws: np.random.Generator) -> Iterator[str]:
    """Different UUIDs."""
    return different(lambda: str(uuid.UUID(bytes=draws.bytes(16), version=4)))


@dataclasses.dataclass(frozen=True)
class Form:
    """What one of the tasks hides, and in what.

    Attributes:
      kind: what a value is called.
      keys, values: endless streams, from draws.
      lines: of haystack, from the form, more keys and values, and words; None is an essay.
      hidden: keys that have needles.
      each: values, and so needles, of a key.
      asked: keys that the question asks for.
    """

    kind: str
    keys: Callable[[np.random.Generator], Iterator[str]]
    values: Callable[[np.random.Generator], Iterator[str]]
    lines: Callable[[Form, Iterator[str], Iterator[str], int], list[str]] | None = None
    hidden: int = 1
    each: int = 1
    asked: int = 1


def needle(form: Form, key: str, value: str) -> str:
    """The sentence that says a value."""
    return f"One of the special magic {form.kind}s for {key} is: {value}."


def noise_lines(form: Form, keys: Iterator[str], values: Iterator[str], words: int) -> list[str]:
    """Lines that are all the same."""
    del form, keys, values
    return first_pieces(itertools.repeat(NOISE_LINE), words)


def needle_lines(form: Form, keys: Iterator[str], values: Iterator[str], words: int) -> list[str]:
    """Needles with other keys."""
    lines = (needle(form, key, value) for key, value in zip(keys, values, strict=False))
    return first_pieces(lines, words)


FORMS: Mapping[str, Form] = {
    "niah_single_1": Form("number", word_pairs, numbers, noise_lines),
    "niah_single_2": Form("number", word_pairs, numbers),
    "niah_single_3": Form("uuid", word_pairs, uuids),
    "niah_multikey_1": Form("number", word_pairs, numbers, hidden=4),
    "niah_multikey_2": Form("number", word_pairs, numbers, needle_lines),
    "niah_multikey_3": Form("uuid", uuids, uuids, needle_lines),
    "niah_multivalue": Form("number", word_pairs, numbers, each=4),
    "niah_multiquery": Form("number", word_pairs, numbers, hidden=4, asked=4),
}


def niah(
    draws: np.random.Generator, units: int, filler: str, *, form: Form, essay: Sequence[str]
) -> Row:
    """A row of one of the tasks, with `units` words of haystack."""
    # Each has draws of its own: more haystack adds to the end, and changes nothing before it.
    keys, values = (
        make(own) for make, own in zip((form.keys, form.values), draws.spawn(2), strict=True)
    )
    hidden = list(itertools.islice(keys, form.hidden))
    said = list(itertools.islice(values, form.hidden * form.each))
    pairs = list(zip(np.repeat(hidden, form.each), said, strict=True))
    needles = [needle(form, *pairs[i]) for i in draws.permutation(len(pairs))]
    if form.lines is None:
        parts = list(sentences(" ".join(cycled(essay, units))))
        places = len(parts) * draws.choice(_DEPTHS, len(needles), replace=False) // 100
        between = " "
    else:
        parts = form.lines(form, keys, values, units)
        places = draws.choice(max(len(parts), len(needles)), len(needles), replace=False)
        between = "\n"
    for shift, place in enumerate(sorted(places)):
        parts.insert(place + shift, needles[shift])
    text = between.join(parts) + filler
    asked, answers = hidden[: form.asked], said[: form.asked * form.each]
    some, kind, verb, what = ("A", form.kind, "is", "is")
    if len(answers) > 1:
        some, kind, verb, what = ("Some", f"{form.kind}s", "are", "are all")
    query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    return Row(
        context=f"{some} special magic {kind} {verb} hidden within the following text. Make sure "
        f"to memorize it. I will quiz you about the {kind} afterwards.\n{text}\n",
        question=f"What {what} the special magic {kind} for {query} mentioned in the provided "
        "text?",
        answer_prefix=f" The special magic {kind} for {query} mentioned in the provided text "
        f"{verb}",
        answers=tuple(answers),
        max_new_tokens=MAX_NEW_TOKENS,
    )
