# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The methods that DuoAttention's gates are found by, behind one signature."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxkv.calibrate.attended import Prompt, attended, make_prompts
from jaxkv.calibrate.closing import MOST_CLOSED, closed
from jaxkv.calibrate.haystacks import hay_ids
from jaxkv.calibrate.onepass import ranked
from jaxkv.calibrate.passkeys import Recipe, check_room
from jaxkv.calibrate.profiles import profile
from jaxkv.calibrate.replays import asked_about, replay
from jaxkv.calibrate.task import Common
from jaxkv.calibrate.trained import HELD_OUT_EXAMPLES, Training, held_out, train_gates
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.text.repeat import parts
from jaxkv.train.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    methods: of `METHODS`; of several, heads have the mean of their ranks.
    recipe: of all that is hidden, and of the texts.
    wordings: names of the recipe's.
    haystacks: names of the recipe's: files, or what is built in.
    examples: prompts or texts; of all methods but training.
    sinks, recent: of the streaming heads.
    steps: of training.
    lr: its highest learning rate.
    reg: its weight of the gates' mean.
    checkpoint_every: steps.
    restart: whether a kept state is dropped.
    """

    methods: tuple[str, ...]
    recipe: Recipe
    wordings: tuple[str, ...]
    haystacks: tuple[str, ...]
    examples: int
    sinks: int
    recent: int
    steps: int
    lr: float
    reg: float
    checkpoint_every: int
    restart: bool

    def settings(self) -> dict[str, Any]:
        """What the gates depend on, by the flags that set it; plain values."""
        recipe = self.recipe
        text = "\n".join(sentence for hay in recipe.haystacks for sentence in hay)
        every = {
            "--steps": self.steps,
            "--examples": self.examples,
            "--min-length": recipe.min_length,
            "--max-length": recipe.max_length,
            "--passkeys": recipe.passkeys,
            "--words": recipe.words,
            "--number-share": recipe.number_share,
            "--wordings": list(self.wordings),
            "--haystack": hashlib.sha256(text.encode()).hexdigest()[:16],
            "--sinks": self.sinks,
            "--recent": self.recent,
            "--lr": self.lr,
            "--reg": self.reg,
        }
        used = {flag for name in self.methods for flag in METHODS[name].flags}
        known = {flag: value for flag, value in every.items() if flag in used}
        return {"--method": ",".join(self.methods), **known}


@dataclasses.dataclass(frozen=True)
class Method:
    """Attributes:
    find: the gates [L, K], in [0, 1].
    flags: those that the gates depend on.
    """

    find: Callable[[Model, Common, Options, Progress], np.ndarray]
    flags: tuple[str, ...]


def find_gates(model: Model, common: Common, options: Options, progress: Progress) -> np.ndarray:
    """By one method as it gives them, or the mean of the ranks by several: [L, K], in [0, 1]."""
    found = [METHODS[name].find(model, common, options, progress) for name in options.methods]
    if len(found) == 1:
        return found[0]
    return np.mean([ranked(gates) for gates in found], axis=0)


def _train(model: Model, common: Common, options: Options, progress: Progress) -> np.ndarray:
    recipe = options.recipe
    _check_longest(model, recipe.max_length)
    checkpoints = checkpoints_of(model, common, options)
    if options.restart:
        checkpoints.remove()
    check_room(recipe, model.tokenizer, common.seed, options.steps)
    check_room(held_out(recipe), model.tokenizer, common.seed, HELD_OUT_EXAMPLES)
    how = Training(
        recipe, options.steps, options.sinks, options.recent, options.lr, options.reg,
        options.checkpoint_every,
    )  # fmt: skip
    return train_gates(model, how, common.seed, checkpoints, progress)


def _attention(model: Model, common: Common, options: Options, progress: Progress) -> np.ndarray:
    return attended(model, _prompts(model, common, options, options.examples), progress)


def _closing(model: Model, common: Common, options: Options, progress: Progress) -> np.ndarray:
    count = min(options.examples, MOST_CLOSED)
    prompts = _prompts(model, common, options, count)
    return closed(model, prompts, options.sinks, options.recent, progress)


def _profile(model: Model, common: Common, options: Options, progress: Progress) -> np.ndarray:
    size = options.recipe.max_length
    _check_longest(model, size)
    return profile(model, _texts(model, common, options, size), progress)


def _replay(model: Model, common: Common, options: Options, progress: Progress) -> np.ndarray:
    # A text is there twice, and the request to repeat it stands between.
    longest = options.recipe.max_length
    again = parts(model.tokenizer, asked_about(model.tokenizer, []), 0, longest)
    size = (longest - len(again[0].ids) - again[0].count) // 2
    if size <= options.recent:
        raise InputError(
            f"--max-length is {longest}, of which a text that is repeated takes {size}; nothing of "
            f"it is farther than --recent, {options.recent}"
        )
    _check_longest(model, longest)
    texts = _texts(model, common, options, size)
    return replay(model, texts, options.sinks, options.recent, progress)


_TEXTS = ("--examples", "--max-length", "--haystack")
_KEYS = ("--min-length", "--max-length", "--words", "--number-share", "--wordings", "--haystack")
METHODS: Mapping[str, Method] = {
    "attention": Method(_attention, ("--examples", *_KEYS)),
    "closing": Method(_closing, ("--examples", "--sinks", "--recent", *_KEYS)),
    "train": Method(
        _train, ("--steps", "--passkeys", "--sinks", "--recent", "--lr", "--reg", *_KEYS)
    ),
    "profile": Method(_profile, _TEXTS),
    "replay": Method(_replay, ("--sinks", "--recent", *_TEXTS)),
}


def _prompts(model: Model, common: Common, options: Options, count: int) -> tuple[Prompt, ...]:
    recipe = options.recipe
    made = make_prompts(
        model.tokenizer, recipe.wordings, recipe.haystacks, count,
        (recipe.min_length, recipe.max_length), recipe.words, recipe.number_share, common.seed,
    )  # fmt: skip
    _check_longest(model, max(len(prompt.ids) for prompt in made))
    return made


def _texts(model: Model, common: Common, options: Options, size: int) -> list[list[int]]:
    """So many texts of `size` tokens, from each haystack in turn, each from a place of its own."""
    hays = options.recipe.haystacks
    texts = []
    for index in range(options.examples):
        begin = int(np.random.default_rng([common.seed, index]).integers(2**31))
        texts.append(hay_ids(model.tokenizer, hays[index % len(hays)], begin, size))
    return texts


def _check_longest(model: Model, longest: int) -> None:
    if longest > model.config.max_positions:
        raise InputError(
            f"--max-length makes examples of up to {longest} tokens; the model was trained for "
            f"{model.config.max_positions}"
        )


def checkpoints_of(model: Model, common: Common, options: Options) -> Checkpoints:
    """Where the states of a training are kept, beside what it writes."""
    folder = Path(f"{common.out}.checkpoints")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {common.out!r} needs the folder {folder}, which is a file")
    identity = {"weights": model.fingerprint, "--dtype": common.dtype, "--seed": common.seed}
    if common.tokenizer is not None:
        identity["--tokenizer"] = common.tokenizer
    return Checkpoints(folder, {**identity, **options.settings()})
