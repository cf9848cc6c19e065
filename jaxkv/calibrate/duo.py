# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""DuoAttention's calibration: a gate for each KV head, by one of five methods or several."""

from __future__ import annotations

import argparse
import datetime
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxkv.calibrate.haystacks import Haystack, builtin
from jaxkv.calibrate.methods import METHODS, Options, checkpoints_of, find_gates
from jaxkv.calibrate.needles import split_sentences
from jaxkv.calibrate.passkeys import Recipe
from jaxkv.calibrate.plot import save_heads
from jaxkv.calibrate.task import Calibration, Common
from jaxkv.calibrate.wordings import ORDINALS, WORDINGS, wordings
from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import read_text
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.policies.head_scores import GATES, save_pattern, sparsify

SPARSITY = 0.5  # the file holds the mask for this one; others are made from the gates

_DESCRIPTION = """Find the KV heads that need the whole context (DuoAttention, arXiv 2410.10819).

  --method attention  the attention that a question and its answer pay to the sentence that tells the
                      answer, mean over a KV head's query heads and over --examples prompts: every
                      wording in every haystack, at lengths and depths that are drawn. Heads rank
                      by the question's attention and by the answer's, and the better counts
           closing    all gates are closed together, step by step, in as many as 8 prompts, and what
                      each has to do with the loss of the answer is summed up (integrated gradients)
           train      the paper's: one gate a KV head, from 1 (all that the head sees of the whole
                      context) to 0 (sinks and the recent tokens). The model is frozen. Its final
                      hidden states under gated attention are to stay those under full attention
                      where pass-keys are repeated that are hidden in a long text, while a penalty on
                      the gates' mean (--reg) closes those that nothing depends on. The gates that
                      are kept are those that do best on wordings and a haystack never trained on
           profile    no question is asked: the mean query and the mean key over --examples texts, the
                      key at 500 positions, and how far from the query its attention lies
           replay     KVzip's heads (arXiv 2505.23416): the largest attention that a token of a text
                      gets, far from the query, while the model repeats the text; the softmax is over
                      all that the query sees

of several methods, separated by commas, a head has the mean of its ranks. The default takes two that
miss different heads: what looks at the answer, and what only prepares that it is found.

  --out       JSON: gates, and full_heads, the heads that keep everything at sparsity 0.5.
              python -m jaxkv.decode --policy duo --policy.pattern FILE takes it; another
              --policy.sparsity is chosen there without calibrating again.
  of train    the log tells seconds a step, loss, distill (how far the final hidden states are apart),
              and the gates: their mean, and how many there are in each tenth from 0 to 1. The state
              is kept in OUT.checkpoints. The same command goes on from there, to exactly the gates of
              a run that was never stopped. The folder goes when the run is complete.

Wordings and haystacks are none of those of python -m jaxkv.eval, so what is found here can be judged
there. The defaults are for a model of 135M parameters: attention takes some 2 minutes of two cores,
closing 5, a step of train some 6 s. The paper's training: --method train --steps 2000 --min-length 1000
--max-length 32000 --passkeys 10 --words 32 --sinks 128 --recent 256 --wordings vault --number-share 0,
with BookSum as haystack, on eight A100. There the lengths are those of the haystack, --recent counts
the query itself, and the questions' hidden states count too. Calibrate with the sinks and recent of
deployment, or fewer.

examples:
  python -m jaxkv.calibrate duo --out gates.json --plot gates.png
  python -m jaxkv.calibrate duo --out gates.json --haystack novel.txt --haystack essays.txt
  python -m jaxkv.calibrate duo --method train --steps 400 --out gates.json
  python -m jaxkv.calibrate duo --method profile --model tiny-random --out /tmp/g.json
"""  # noqa: E501


def run(model: Model, common: Common, options: Options, progress: Progress) -> str:
    """Finds the gates and writes them: one line that says what was found."""
    if model.config.windows:
        raise InputError("the model has layers with a window of their own; gates need equal layers")
    gates = find_gates(model, common, options, progress)
    mask = sparsify(gates, SPARSITY)
    about = _about(model, common, options, mask)
    save_pattern(common.out, GATES, gates, model.config.identity, about)
    if common.plot is not None:
        save_heads(common.plot, gates, f"{model.name}: gates of KV heads", "gate")
    if "train" in options.methods:
        checkpoints_of(model, common, options).remove()
    by = " and ".join(options.methods)
    return (
        f"{gates.shape[0]} layers of {gates.shape[1]} KV heads by {by}, mean gate "
        f"{gates.mean():.3f}, {int((gates > 0.5).sum())} of {gates.size} above 0.5; at sparsity "
        f"{SPARSITY} those from {gates[mask].min():.3g} up keep everything"
    )


def add_arguments(add: Callable[..., Any]) -> None:
    """The calibration's own flags."""

    def number(flag: str, default: int | float, told: str) -> None:
        add(
            flag,
            type=type(default),
            default=default,
            metavar="N" if isinstance(default, int) else "X",
            help=f"{told} (default: {default})",
        )

    add(
        "--method",
        type=str,
        default="attention,closing",
        metavar="NAMES",
        help=f"of {', '.join(METHODS)}, separated by commas (default: attention,closing)",
    )
    number("--examples", 24, "prompts, or texts of profile and replay")
    number("--min-length", 300, "tokens of the shortest example; of attention, of its haystack")
    number("--max-length", 500, "tokens of the longest, and of every text")
    add(
        "--wordings",
        type=str,
        default=",".join(WORDINGS),
        metavar="NAMES",
        help=f"how keys are told, of {', '.join(WORDINGS)} (default: all; vault is the paper's)",
    )
    add(
        "--haystack",
        action="append",
        metavar="FILE",
        help="UTF-8 text to hide keys in or to repeat; may be repeated (default: made-up "
        "sentences, a few that repeat, an essay, and manuals of Python's library)",
    )
    number("--words", 4, "of a key, from an alphabet of 26")
    number("--number-share", 0.7, "share of keys that are numbers instead")
    number("--sinks", 16, "first tokens that a closed head sees")
    number("--recent", 64, "past tokens that a closed head sees, and itself")
    number("--steps", 200, "of train: examples, one a step")
    number("--passkeys", 4, "of train: hidden in one example")
    number("--lr", 0.02, "of train: highest learning rate of AdamW")
    number("--reg", 0.05, "of train: weight of the gates' mean; more of it closes more of them")
    number("--checkpoint-every", 25, "of train: judge gates and keep the state every so many steps")
    add("--restart", action="store_true", help="of train: drop a kept state and start again")


def check(given: argparse.Namespace) -> Options:
    """The calibration's options, with the texts read."""
    methods = tuple(dict.fromkeys(name.strip() for name in given.method.split(",")))
    for name in methods:
        if name not in METHODS:
            raise InputError(f"--method has {name!r}; each must be one of {', '.join(METHODS)}")
    for name, least in (
        ("steps", 1), ("examples", 1), ("min_length", 1), ("max_length", 1),
        ("passkeys", 1), ("words", 1), ("sinks", 0), ("recent", 1), ("checkpoint_every", 1),
        ("reg", 0),
    ):  # fmt: skip
        if not getattr(given, name) >= least:
            raise InputError(
                f"{_flag(name)} is {getattr(given, name)}; it must be at least {least}"
            )
    for name in ("lr", "reg"):
        if not math.isfinite(getattr(given, name)):
            raise InputError(f"{_flag(name)} is {getattr(given, name)}; it must be finite")
    if given.lr <= 0:
        raise InputError(f"--lr is {given.lr}; it must be above 0")
    if given.passkeys > len(ORDINALS):
        raise InputError(f"--passkeys is {given.passkeys}; it must be at most {len(ORDINALS)}")
    of_lengths = any("--min-length" in METHODS[name].flags for name in methods)
    if of_lengths and given.min_length > given.max_length:
        raise InputError(
            f"--min-length is {given.min_length}; it must be at most --max-length, "
            f"{given.max_length}"
        )
    if not 0 <= given.number_share <= 1:
        raise InputError(f"--number-share is {given.number_share}; it must be from 0 to 1")
    names = tuple(name.strip() for name in given.wordings.split(","))
    hays = _haystacks(given.haystack or ())
    recipe = Recipe(
        given.min_length, given.max_length, given.passkeys, given.words, given.number_share,
        wordings(names), tuple(hays.values()),
    )  # fmt: skip
    same = ("examples", "sinks", "recent", "steps", "lr", "reg")
    return Options(
        methods=methods,
        recipe=recipe,
        wordings=names,
        haystacks=tuple(hays),
        checkpoint_every=given.checkpoint_every,
        restart=given.restart,
        **{name: getattr(given, name) for name in same},
    )


def _haystacks(files: Sequence[str]) -> dict[str, Haystack]:
    """By their names; of files one after the other, if there are any."""
    if not files:
        return builtin()
    found = {name: split_sentences(read_text("--haystack", name)) for name in files}
    for name, hay in found.items():
        if not hay:
            raise InputError(f"--haystack {name} holds no text")
    return found


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _about(model: Model, common: Common, options: Options, mask: np.ndarray) -> dict[str, Any]:
    """What tells how the gates were made, and the mask that goes with them."""
    settings = {
        flag.removeprefix("--").replace("-", "_"): value
        for flag, value in options.settings().items()
    }
    return {
        "name": model.name,
        "weights": model.fingerprint,
        "dtype": common.dtype,
        **settings,
        "haystack": list(options.haystacks),
        "seed": common.seed,
        "command": common.command,
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "sparsity": SPARSITY,
        "full_heads": mask.tolist(),
    }


CALIBRATION = Calibration(
    name="duo",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    run=run,
)
