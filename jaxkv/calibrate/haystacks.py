# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Texts that keys are hidden in, and that are repeated: on every machine, without a download.

None of them is a haystack of `jaxkv.eval`: what is found in these is judged in those.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Sequence

import numpy as np

from jaxkv.calibrate.needles import split_sentences
from jaxkv.text.tokenizer import Tokenizer

Haystack = tuple[str, ...]  # sentences, taken from the first again after the last

_MADE_UP = 600  # sentences
_REPEATED = 5
# Modules whose documentation is prose more than it is code.
_MANUALS = ("doctest", "unittest", "cmd", "socketserver", "argparse", "timeit")

# A made-up sentence takes one of each.
_PARTS = (
    ("In the morning", "Years later", "Before the rain", "At the old harbour", "Without a word",
     "As everybody knew", "On the way home", "In the north", "After supper", "That winter",
     "Under a pale sky", "For the third time", "Behind the church", "To his surprise"),
    ("the miller", "a tall stranger", "my aunt", "the captain", "an honest clerk", "the widow",
     "their teacher", "a young painter", "the gardener", "nobody", "the youngest brother",
     "a doctor from the city", "the whole village", "an old soldier"),
    ("remembered", "was looking for", "sold", "described", "could not find", "carried away",
     "had forgotten", "laughed at", "repaired", "wrote about", "asked for", "kept", "counted",
     "praised"),
    ("the broken clock", "two letters", "a map of the river", "the red umbrella", "some bread",
     "the key to the cellar", "a song", "seven horses", "the price of salt", "a small lamp",
     "every room of the house", "the road to the mill", "a box of nails", "the last train"),
    ("and went on", "as if it mattered", "with great care", "until the snow melted", "in silence",
     "for no good reason", "while the others slept", "and then the bell rang", "near the bridge",
     "though it was late", "because of the war", "and smiled", "day after day", "by candlelight"),
)  # fmt: skip
_ESSAY = """
Most of what we call experience is the slow discovery of which mistakes are worth making. A beginner
avoids all of them and learns nothing; an expert has made each of the useful ones twice, and can tell
from the sound of a machine or the look of a page that another is on its way. Nobody can hand this
knowledge over. It can be described, and people who have it describe it all the time, but the words
only make sense to somebody who has already been there. This is why good teachers talk so little. They
arrange things so that the right accident happens at the right moment, and then they stand aside.

I once worked in a workshop where instruments were mended. The owner kept a shelf of failures: a neck
that was glued at a wrong angle, a bridge that was cut too low, a plate that had been thinned until it
gave no tone at all. New apprentices took it for a warning. In fact it was a library. Whoever was about
to try something was told to look at the shelf first, not to be frightened, but to see how far the idea
had been carried before. Some of the best work that left the house began as an answer to a failure
that was thirty years old. The owner said that success teaches one lesson only, and teaches it badly.

It follows that an office, a school or a laboratory should be judged by what it does with things that
did not work. If they vanish, people will repeat them. If they are punished, people will hide them,
which comes to the same. If they are kept in the open, with a date and a short account, then after
some years there is something that no competitor can buy. The difficulty is that such a shelf looks
like disorder to a visitor, and most places are run for visitors. Perhaps that is the deeper reason
why small groups so often do what large ones cannot: they are hardly ever visited, and so they have
room for the awkward objects from which everybody learns.
"""  # noqa: E501


def builtin() -> dict[str, Haystack]:
    """Of several kinds: sentences that differ, a few that repeat, an essay, and manuals."""
    return {
        "made-up": made_up(_MADE_UP, seed=0),
        "repeated": made_up(_REPEATED, seed=1),
        "essay": split_sentences(_ESSAY),
        "manuals": split_sentences(manuals()),
    }


def made_up(count: int, seed: int) -> Haystack:
    """So many sentences."""
    draws = np.random.default_rng(seed)
    choices = [draws.choice(parts, count) for parts in _PARTS]
    return tuple(f"{a} {b} {c} {d} {e}." for a, b, c, d, e in zip(*choices, strict=True))


@functools.cache
def manuals() -> str:
    """Natural text that is on every machine: what modules of Python's library say of themselves."""
    # `__about__` is no docstring: it is there too where Python was told to leave those out.
    texts = [importlib.import_module("heapq").__about__]
    texts += [importlib.import_module(name).__doc__ or "" for name in _MANUALS]
    return "\n\n".join(texts)


def hay_ids(tokenizer: Tokenizer, hay: Sequence[str], begin: int, count: int) -> list[int]:
    """Exactly `count` tokens of a haystack from one sentence on, as if it went on for ever."""
    ids: list[int] = []
    for sentence in itertools.islice(itertools.cycle(hay), begin % len(hay), None):
        if len(ids) >= count:
            break
        ids += tokenizer.encode(f" {sentence}")
    return ids[:count]
