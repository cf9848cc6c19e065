# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Ways to hide a number and to ask for it.

A policy whose heads or scores were found by examples is judged by wordings and texts that it never
saw: none of these is among those of `jaxkv.calibrate`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from jaxkv.eval.questions.answers import Row
from jaxkv.eval.questions.haystacks import NOISE, builtin_text, cycled
from jaxkv.text.prose import sentences

MAX_NEW_TOKENS = 16  # seven digits, for tokenizers that have one token a digit, and some room
_LONGEST = 40  # words of a sentence

_ESSAY = """
A town is easiest to understand from its edges. In the middle everything has been explained already,
by plaques and guides and the habits of people who have something to sell. At the edge, where the
tramlines end and the gardens begin, nobody expects a visitor, and so nothing has been arranged for
one. There you see how wide the streets were meant to be and how wide they became. You see which
plans were given up. I have come to think that plans which were given up say more about a place than
those that were carried out, for the second kind shows what was possible, and the first what was wanted.

My grandfather surveyed land for a living, and he distrusted maps. He said that a map is an argument
between the person who paid for it and the person who walked the ground, and that the one who paid
usually wins. When he was sent to measure a field he would first sit down on its lowest point and wait.
Water, he said, has surveyed every field before you, and it has no reason to lie. He waited until he
could tell where it had run after the last heavy rain, and only then did he unpack his instruments. The
drawings he made were not beautiful. But fifty years later the drains that follow them still work.

There is a lesson in this for anybody who has to describe something large. The temptation is always to
begin with what is easy to count, because numbers look like knowledge, and because they can be gathered
without getting wet. Yet what can be counted from a window was mostly put there to be counted. The
patient way is slower. It begins with low ground, with the corners where things collect that nobody
wanted, and it asks of each how it came to be there. After a while the corners start to agree with one
another, and what they agree on is the shape of the whole.
"""  # noqa: E501


def _noise() -> Sequence[str]:
    return NOISE


@functools.cache
def _essay() -> Sequence[str]:
    return sentences(_ESSAY)


@functools.cache
def _manual() -> Sequence[str]:
    # Tables and programs have no sentences; what they have instead may be longer than a prompt.
    return tuple(x for x in sentences(builtin_text()) if len(x.split()) <= _LONGEST)


@dataclasses.dataclass(frozen=True)
class Wording:
    """Texts with places for a {word} and its {number}.

    Attributes:
      intro: before the haystack.
      key: the sentence that is hidden.
      question: what is asked.
      opening: start of the answer; the number follows.
      digits: of a number, where nothing else is said.
      hay: sentences to hide it between.
    """

    intro: str
    key: str
    question: str
    opening: str
    digits: int
    hay: Callable[[], Sequence[str]]

    def row(
        self,
        word: str,
        number: int,
        count: int,
        depth: float,
        length: int | None = None,
        task: str | None = None,
    ) -> Row:
        """A row with the key after `depth` percent of `count` sentences."""
        hay = self.hay()
        # Noise begins with its first sentence, as in the tests that it is from.
        straw = cycled(hay, count, 0 if hay is NOISE else number)
        straw.insert(round(count * depth / 100), self.key.format(word=word, number=number))
        return Row(
            context=f"{self.intro}\n{' '.join(straw)}\n",
            question=self.question.format(word=word),
            answer_prefix=self.opening.format(word=word),
            answers=(str(number),),
            max_new_tokens=MAX_NEW_TOKENS,
            task=task,
            length=length,
            depth=depth,
        )


_READ = "Read the text below. Afterwards you will be asked about one detail of it."

WORDINGS: Mapping[str, Wording] = {
    # RULER's niah_single_1 (arXiv 2404.06654).
    "ruler": Wording(
        "A special magic number is hidden within the following text. Make sure to memorize it. I "
        "will quiz you about the number afterwards.",
        "One of the special magic numbers for {word} is: {number}.",
        "What is the special magic number for {word} mentioned in the provided text?",
        "The special magic number for {word} mentioned in the provided text is",
        7,
        _noise,
    ),
    # The first pass-key test's (arXiv 2305.16300): the number is said twice.
    "classic": Wording(
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
        "it. I will quiz you about it.",
        "The pass key is {number}. Remember it. {number} is the pass key.",
        "What is the pass key?",
        "The pass key is",
        5,
        _noise,
    ),
    "safe": Wording(
        _READ,
        "The combination of the safe in the {word} room is {number}.",
        "What is the combination of the safe in the {word} room?",
        "The combination of the safe in the {word} room is",
        6,
        _essay,
    ),
    "invoice": Wording(
        _READ,
        "Somebody has added in pencil that the {word} cost {number} dollars in those days.",
        "How many dollars did the {word} cost in those days?",
        "In those days the {word} cost",
        5,
        _manual,
    ),
    "catalogue": Wording(
        _READ,
        "See also the entry about the {word}, which has the catalogue number {number}.",
        "Which catalogue number has the entry about the {word}?",
        "The entry about the {word} has the catalogue number",
        6,
        _manual,
    ),
}  # fmt: skip
