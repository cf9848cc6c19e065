# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Ways to tell a key and to ask for it: what heads are found by, and nothing else.

Heads that are found by one wording are partly heads of that wording. So there are several, and
none of them is one that `jaxkv.eval` asks with: what is found here is judged there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxkv.core.errors import InputError

ALPHABET = (
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett",
    "kilo", "lima", "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango",
    "uniform", "victor", "whiskey", "xray", "yankee", "zulu",
)  # fmt: skip
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth",
    "eighteenth", "nineteenth", "twentieth",
)  # fmt: skip
NAMES = (
    "Amira", "Boris", "Celeste", "Dmitri", "Esther", "Farid", "Greta", "Hugo", "Irma", "Jonas",
    "Katya", "Leander", "Mona", "Nils", "Odette", "Pavel", "Quentin", "Rosa", "Stefan", "Tilda",
)  # fmt: skip
DIGITS = (5, 8)  # of a number: at least, and less than


@dataclasses.dataclass(frozen=True)
class Wording:
    """A sentence that tells somebody's key, with places for {who} and {key}.

    Attributes:
      told: the sentence.
      question: asks for the key of {who}.
      opening: how the answer begins; the key follows.
      owners: who may have a key, told one after the other.
      apart: whether the sentence is a paragraph of its own.
    """

    told: str
    question: str
    opening: str
    owners: tuple[str, ...] = NAMES
    apart: bool = False

    def sentence(self, who: str, key: str) -> str:
        """It, with what parts it from the text before, and after if it is a paragraph."""
        told = self.told.format(who=who, key=key)
        return f"\n\n{told}\n\n" if self.apart else f" {told}"

    def asked(self, who: str) -> tuple[str, str]:
        """The question, and the answer's beginning."""
        return self.question.format(who=who), self.opening.format(who=who)


WORDINGS: Mapping[str, Wording] = {
    # DuoAttention's own (arXiv 2410.10819, section 3.2, and its code).
    "vault": Wording(
        "Remember this, it's the {who} passkey to the vault: {key}",
        "Based on the content of the book, what is the {who} passkey to the vault?",
        "Passkey:",
        ORDINALS,
        apart=True,
    ),
    "door": Wording(
        "The code that opens the door of {who} is {key}.",
        "Which code opens the door of {who}?",
        "The code that opens the door of {who} is",
    ),
    "telephone": Wording(
        "From this week on {who} can be reached under {key} and no longer at home.",
        "Under what can {who} be reached?",
        "{who} can be reached under",
    ),
    "ticket": Wording(
        "Please note that the ticket for {who} is marked {key}, as was agreed.",
        "How is the ticket for {who} marked?",
        "The ticket for {who} is marked",
    ),
    "photograph": Wording(
        "On the back of the photograph {who} had written: {key}",
        "What had {who} written on the back of the photograph?",
        "On the back of the photograph {who} had written:",
        apart=True,
    ),
    "ship": Wording(
        "In the harbour's book {who} appears as {key}, next to the day of arrival.",
        "As what does {who} appear in the harbour's book?",
        "In the harbour's book {who} appears as",
    ),
}
# Never learned from: training stops by them.
HELD_OUT: Mapping[str, Wording] = {
    "order": Wording(
        "Whatever {who} orders goes to shelf {key} in the back of the shop.",
        "To which shelf goes whatever {who} orders?",
        "Whatever {who} orders goes to shelf",
    ),
    "password": Wording(
        "Only those who say {key} are let in by {who} after dark.",
        "What must be said to be let in by {who} after dark?",
        "To be let in by {who} after dark one must say",
        apart=True,
    ),
}


def wordings(names: Sequence[str]) -> tuple[Wording, ...]:
    """The wordings of these names.

    Raises:
      InputError: there is none of a name.
    """
    for name in names:
        if name not in WORDINGS:
            raise InputError(f"--wordings has {name!r}; each must be one of {', '.join(WORDINGS)}")
    return tuple(WORDINGS[name] for name in dict.fromkeys(names))


def draw_key(draws: np.random.Generator, words: int, number_share: float) -> str:
    """A number in a share of all draws, else so many words of the alphabet."""
    if draws.random() < number_share:
        digits = int(draws.integers(*DIGITS))
        return str(draws.integers(10 ** (digits - 1), 10**digits))
    return " ".join(draws.choice(ALPHABET, words))
