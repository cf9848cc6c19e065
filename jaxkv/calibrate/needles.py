# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions about a few sentences in a haystack, with the tokens of the answer known exactly.

A needle is what HeadKV calls one (arXiv 2410.19258, section 3.1): facts to reason with, a wrong
answer and the right one. All text is ours. The two sentences of a story are each the right answer
to one of its two questions, so that neither being first nor being last gives an answer away. The
start of the answer is given to the model, so that also a small one gets to what is asked, and what
is compared is that and not how it was put.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from jaxkv.core.errors import InputError
from jaxkv.text.prose import bare_words, depth_percents, f1, sentences
from jaxkv.text.tokenizer import Tokenizer

KINDS = ("reasoning", "passkey")

Span = tuple[int, int]  # tokens [begin, end) of a prompt


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence, and the question that it answers.

    Attributes:
      stem: how the sentence begins.
      rest: what is asked for, and ends the sentence.
      question: the question.
      opening: how the answer to it begins; given to the model, whose part is then the rest.
    """

    stem: str
    rest: str
    question: str
    opening: str

    @property
    def sentence(self) -> str:
        """The whole of it."""
        return f"{self.stem} {self.rest}"


@dataclasses.dataclass(frozen=True)
class Needle:
    """Attributes:
    kind: one of `KINDS`.
    facts: what the question takes to be answered; may be empty.
    claims: the wrong answer and the right one, in the order of the text.
    right: which of them is the right one.
    """

    kind: str
    facts: str
    claims: tuple[Claim, Claim]
    right: int

    @property
    def answer(self) -> Claim:
        """The right one."""
        return self.claims[self.right]


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt.

    Attributes:
      needle: what is in it.
      length: tokens of haystack that were asked for.
      ids: of the whole prompt.
      needle_span: facts and both answers.
      answer_span: the right answer.
      most_new: tokens that the model should say.
    """

    needle: Needle
    length: int
    ids: tuple[int, ...]
    needle_span: Span
    answer_span: Span
    most_new: int


# Facts, and two claims that are told apart by them alone: the questions do not name who the
# sentences are about.
_STORIES = (
    (
        "Nadia is a pilot. Tobias is a cook.",
        Claim(
            "Nadia collects",
            "buttons made of bone and amber.",
            "What does the pilot collect?",
            "The pilot collects",
        ),
        Claim(
            "Tobias collects",
            "maps of islands that do not exist.",
            "What does the cook collect?",
            "The cook collects",
        ),
    ),
    (
        "The red box belongs to the doctor. The green box belongs to the teacher.",
        Claim(
            "The red box is full of",
            "letters from a lighthouse keeper.",
            "What is in the doctor's box?",
            "The doctor's box is full of",
        ),
        Claim(
            "The green box is full of",
            "silver spoons wrapped in newspaper.",
            "What is in the teacher's box?",
            "The teacher's box is full of",
        ),
    ),
    (
        "Helga is from Norway. Ruben is from Brazil.",
        Claim(
            "Helga opened",
            "a small bakery beside the railway station.",
            "What did the woman from Norway open?",
            "The woman from Norway opened",
        ),
        Claim(
            "Ruben opened",
            "a school for young violin players.",
            "What did the man from Brazil open?",
            "The man from Brazil opened",
        ),
    ),
    (
        "Anna is 12 years old. Peter is 70 years old.",
        Claim(
            "Anna loves",
            "the observatory above the vineyard.",
            "What does the child love?",
            "The child loves",
        ),
        Claim(
            "Peter loves",
            "the tram depot near the brewery.",
            "What does the old man love?",
            "The old man loves",
        ),
    ),
    (
        "The blue parcel weighs two kilograms. The brown parcel weighs nine kilograms.",
        Claim(
            "The blue parcel contains",
            "a violin bow and a jar of honey.",
            "What does the lighter parcel contain?",
            "The lighter parcel contains",
        ),
        Claim(
            "The brown parcel contains",
            "a stuffed owl and three candles.",
            "What does the heavier parcel contain?",
            "The heavier parcel contains",
        ),
    ),
)
# A stem that is also the opening, a rest, and a question: of two names, with a number each.
_PASSKEYS = (
    ("The locker code of {} is", "{}.", "What is the locker code of {}?"),
    ("The parcel for {} has the number", "{}.", "What is the number of the parcel for {}?"),
    ("The account of {} holds", "{} crowns.", "How many crowns does the account of {} hold?"),
)
_NAMES = ("Amira", "Boris", "Celeste", "Dmitri", "Esther", "Farid", "Greta", "Hugo")

_WHO = (
    "The baker", "A young sailor", "The librarian", "An old gardener", "The postman",
    "The night guard", "A travelling painter", "The schoolteacher", "A tired farmer",
    "The clockmaker", "The new doctor", "A quiet student",
)  # fmt: skip
_DID = (
    "counted the coins", "waited for the ferry", "swept the yard", "wrote a long letter",
    "carried water", "mended the fence", "looked for the lost dog", "read the newspaper",
    "bought a loaf of bread", "sang an old song", "painted the wall", "fed the chickens",
    "closed the shutters", "argued with the neighbours", "slept on the bench", "made some tea",
)  # fmt: skip
_WHERE = (
    "near the market", "behind the church", "under the bridge", "at the corner", "by the well",
    "in the old harbour", "on the hill", "beside the mill", "in front of the inn", "by the gate",
)  # fmt: skip
_WHEN = (
    "before sunrise", "in the afternoon", "during the storm", "on a cold morning", "after lunch",
    "late at night", "when the bells rang", "as the rain began",
)  # fmt: skip
_HAYSTACK = 1000  # sentences
_LONG = 40  # words of a sentence


def needles(kinds: Sequence[str], seed: int) -> tuple[Needle, ...]:
    """All needles of the given kinds; the seed draws names and numbers of pass-keys."""
    found: list[Needle] = []
    if "reasoning" in kinds:
        for facts, first, second in _STORIES:
            found += [Needle("reasoning", facts, (first, second), right) for right in (0, 1)]
    if "passkey" in kinds:
        draws = np.random.default_rng([seed, 1])
        for stem, rest, question in _PASSKEYS:
            first, second = (
                Claim(
                    stem.format(_NAMES[i]),
                    rest.format(draws.integers(10**4, 10**5)),
                    question.format(_NAMES[i]),
                    stem.format(_NAMES[i]),
                )
                for i in draws.permutation(len(_NAMES))[:2]
            )
            found += [Needle("passkey", "", (first, second), right) for right in (0, 1)]
    return tuple(found)


@functools.cache
def default_haystack() -> tuple[str, ...]:
    """Varied sentences of small-town life, which answer none of the questions."""
    every = list(itertools.product(_WHO, _DID, _WHERE, _WHEN))
    order = np.random.default_rng(0).permutation(len(every))[:_HAYSTACK]
    return tuple(f"{' '.join(every[i])}." for i in order)


def split_sentences(text: str) -> tuple[str, ...]:
    """A text's sentences, each on one line; long ones in pieces."""
    found: list[str] = []
    for sentence in sentences(text):
        words = sentence.split()
        found += [" ".join(words[i : i + _LONG]) for i in range(0, len(words), _LONG)]
    return tuple(found)


def examples(
    tokenizer: Tokenizer,
    kinds: Sequence[str],
    haystack: Sequence[str],
    lengths: Sequence[int],
    depths: int,
    seed: int,
    chat: bool,
) -> tuple[Example, ...]:
    """Every needle at every length and depth, the shortest first, and no prompt twice.

    Where there is no haystack every depth is the same place, and in a short one several may be:
    HeadKV's own grid holds such prompts ten times (a quarter of what its scores are made of).

    Args:
      tokenizer: the model's.
      kinds: of needles.
      haystack: sentences, taken up to each length, from the first again if they do not reach.
      lengths: tokens of haystack; whole sentences, so a prompt may have less and never more.
      depths: how many, evenly from the start of the haystack to its end.
      seed: draws where in the haystack each one starts, and what `needles` draws.
      chat: within the chat template, which must be there.

    Raises:
      InputError: not one sentence fits in the largest length.
    """
    found: dict[tuple[int, ...], Example] = {}
    longest = 0
    for length in sorted(set(lengths)):
        for index, needle in enumerate(needles(kinds, seed)):
            begin = int(np.random.default_rng([seed, length, index]).integers(len(haystack)))
            straw, ends = straw_of(tokenizer, haystack, begin, length)
            places = [
                bisect.bisect_right(ends, ends[-1] * percent / 100) - 1
                for percent in depth_percents(depths)
            ]
            for at in dict.fromkeys(places):
                example = _example(tokenizer, needle, length, straw, at, chat)
                found.setdefault(example.ids, example)
            longest = max(longest, len(straw))
    if max(lengths) and not longest:
        raise InputError(
            f"--lengths has at most {max(lengths)}; the sentences of the haystack have more tokens"
        )
    return tuple(found.values())


def straw_of(
    tokenizer: Tokenizer, haystack: Sequence[str], begin: int, length: int
) -> tuple[list[str], list[int]]:
    """As many sentences as fit in `length` tokens, and the tokens before each and after all."""
    straw, ends = [], [0]
    for sentence in itertools.islice(itertools.cycle(haystack), begin, begin + length):
        end = ends[-1] + len(tokenizer.encode(" " + sentence))
        if end > length:
            break
        straw.append(sentence)
        ends.append(end)
    return straw, ends


def _example(
    tokenizer: Tokenizer, needle: Needle, length: int, straw: Sequence[str], at: int, chat: bool
) -> Example:
    """The needle before sentence `at` of the straw.

    Every piece is turned into tokens by itself, so where each begins and ends is known.
    """
    before, after = around(tokenizer, chat)
    facts = [needle.facts] if needle.facts else []
    told = [claim.sentence for claim in needle.claims]
    ids = list(before)
    begins = []
    for text in _spaced([*straw[:at], *facts, *told, *straw[at:]]):
        begins.append(len(ids))
        ids += tokenizer.encode(text)
    begins.append(len(ids))
    ids += [*tokenizer.encode(f"\n\nQuestion: {needle.answer.question}"), *after]
    ids += tokenizer.encode(needle.answer.opening if chat else f" {needle.answer.opening}")
    first = at + len(facts)  # of the two sentences
    right = first + needle.right
    return Example(
        needle=needle,
        length=length,
        ids=tuple(ids),
        needle_span=(begins[at], begins[first + 2]),
        answer_span=(begins[right], begins[right + 1]),
        most_new=len(tokenizer.encode(f" {needle.answer.rest}")),
    )


def _spaced(parts: Sequence[str]) -> Iterator[str]:
    for index, part in enumerate(parts):
        yield f" {part}" if index else part


def around(tokenizer: Tokenizer, chat: bool) -> tuple[list[int], list[int]]:
    """The ids before the user's words and after them."""
    if not chat:
        return list(tokenizer.bos_ids), tokenizer.encode("\nAnswer:")
    mark = "\0"  # templates trim what they are given; this they leave alone
    before, _, after = tokenizer.render([{"role": "user", "content": mark}]).partition(mark)
    return tokenizer.encode(before, special=True), tokenizer.encode(after, special=True)


def token_f1(reply: str, answer: str) -> float:
    """F1 of the words, as for SQuAD: without case, punctuation and articles."""
    return f1(bare_words(reply), bare_words(answer))


def unigram_recall(reply: str, answer: str) -> float:
    """ROUGE-1 recall: how many of the answer's words are in the reply."""
    wanted = Counter(_words(answer))
    return (Counter(_words(reply)) & wanted).total() / wanted.total() if wanted else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
