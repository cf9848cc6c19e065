# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""DuoAttention's calibration: one gate for each KV head, trained to give up the whole context."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.calibrate.checkpoints import Checkpoints
from jaxkv.calibrate.gated import Gated, losses, stack_layers
from jaxkv.calibrate.passkeys import ORDINALS, Example, Recipe, check_room, make_example
from jaxkv.calibrate.plot import save_heads
from jaxkv.calibrate.task import Calibration, Common
from jaxkv.calibrate.training import (
    Report,
    State,
    make_optimizer,
    make_slope,
    make_step,
    start,
    train,
)
from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import read_text
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.policies.head_scores import GATES, save_pattern, sparsify

SPARSITY = 0.5  # the file holds the mask for this one; others are made from the gates
_CHUNK = 128  # tokens that attend at a time
_PADDED = 256  # examples are padded to multiples of this: one compiled program for each

_DESCRIPTION = """Train DuoAttention's gates (arXiv 2410.10819): which KV heads need the whole context.

One gate a KV head, from 1 (all that the head sees of the whole context) to 0 (sinks and the recent
tokens). The model is frozen. Its final hidden states under gated attention are to stay those under
full attention, at questions for pass-keys that are hidden in a long text, while a penalty on the
gates' mean (--reg) closes those that nothing depends on.

  --out       JSON: gates, and full_heads, the heads that keep everything at sparsity 0.5.
              python -m jaxkv.decode --policy duo --policy.pattern FILE takes it; another
              --policy.sparsity is chosen there without training again.
  the log     seconds a step, loss, distill (how far the final hidden states are apart), and the
              gates: their mean, and how many there are in each tenth from 0 to 1.
  resuming    the state is kept in OUT.checkpoints. The same command goes on from there, to exactly
              the gates of a run that was never stopped. The folder goes when the run is complete.

The defaults are for a model of 135M parameters: 200 steps take some 15 minutes of two cores. The
paper: --steps 2000 --min-length 1000 --max-length 32000 --passkeys 10 --words 32 --sinks 128
--recent 256 --number-share 0, with BookSum as haystack, on eight A100. There the lengths are those
of the haystack, and --recent counts the query itself. Train with the sinks and recent of deployment,
or fewer.

examples:
  python -m jaxkv.calibrate duo --out gates.json --plot gates.png
  python -m jaxkv.calibrate duo --out gates.json --haystack novel.txt --haystack essays.txt
  python -m jaxkv.calibrate duo --model tiny-random --steps 3 --passkeys 1 --words 2 --out /tmp/g.json
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    recipe: of the examples.
    haystacks: the files of its text.
    steps: how many, one example each.
    sinks, recent: of the streaming heads.
    lr: the highest learning rate.
    reg: weight of the gates' mean.
    checkpoint_every: steps.
    restart: whether a kept state is dropped.
    """

    recipe: Recipe
    haystacks: tuple[str, ...]
    steps: int
    sinks: int
    recent: int
    lr: float
    reg: float
    checkpoint_every: int
    restart: bool

    def settings(self) -> dict[str, Any]:
        """What the gates depend on, by the flags that set it; plain values."""
        recipe = self.recipe
        text = recipe.haystack
        return {
            "--steps": self.steps,
            "--min-length": recipe.min_length,
            "--max-length": recipe.max_length,
            "--passkeys": recipe.passkeys,
            "--words": recipe.words,
            "--number-share": recipe.number_share,
            "--haystack": text and hashlib.sha256(text.encode()).hexdigest()[:16],
            "--sinks": self.sinks,
            "--recent": self.recent,
            "--lr": self.lr,
            "--reg": self.reg,
        }


def run(model: Model, common: Common, options: Options, progress: Progress) -> str:
    """Trains the gates and writes them: one line that says what was found."""
    longest = options.recipe.max_length
    if longest > model.config.max_positions:
        raise InputError(
            f"--max-length is {longest}; the model was trained for {model.config.max_positions}"
        )
    checkpoints = _checkpoints(model, common, options)
    check_room(options.recipe, model.tokenizer, common.seed, options.steps)
    gates = train_gates(model, options, common.seed, checkpoints, progress)
    mask = sparsify(gates, SPARSITY)
    about = _about(model, common, options, mask)
    save_pattern(common.out, GATES, gates, model.config.identity, about)
    if common.plot is not None:
        save_heads(common.plot, gates, f"{model.name}: gates of KV heads", "gate")
    checkpoints.remove()
    return (
        f"{gates.shape[0]} layers of {gates.shape[1]} KV heads, mean gate {gates.mean():.3f}, "
        f"{int((gates > 0.5).sum())} of {gates.size} above 0.5; at sparsity {SPARSITY} those from "
        f"{gates[mask].min():.3f} up keep everything"
    )


def train_gates(
    model: Model, options: Options, seed: int, checkpoints: Checkpoints, progress: Progress
) -> np.ndarray:
    """Float32 [L, K], in [0, 1]."""
    config = model.config
    policy = Gated(options.sinks, options.recent, _CHUNK)

    def loss(gates: Array, params: Any, *example: Array) -> tuple[Array, Array]:
        return losses(params, config, gates, policy, *example)

    def batch(index: int) -> tuple[Any, ...]:
        example = make_example(options.recipe, model.tokenizer, seed, index)
        model.check_ids(example.tokens.tolist(), "an example's")
        return padded(example, _PADDED)

    optimizer = make_optimizer(options.lr, options.steps)
    update = make_step(make_slope(loss), optimizer, options.reg)
    gates = jnp.ones((config.num_layers, config.num_kv_heads), jnp.float32)
    params = stack_layers(model.params)

    def step(state: State, *example: Array) -> tuple[State, Report]:
        return update(state, params, *example)

    return train(
        step, start(gates, optimizer), batch, options.steps, checkpoints,
        options.checkpoint_every, progress,
    )  # fmt: skip


def padded(example: Example, multiple: int) -> tuple[Array, Array, Array]:
    """A batch of one: tokens [1, T], lengths [1] and labels [1, T], T a multiple."""
    size = len(example.tokens)
    room = [(0, 0), (0, -size % multiple)]
    return (
        jnp.asarray(np.pad(example.tokens[None], room)),
        jnp.asarray([size], jnp.int32),
        jnp.asarray(np.pad(example.labels[None], room)),
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

    number("--steps", 200, "examples to train on, one a step")
    number("--min-length", 500, "tokens of the shortest example, all in all")
    number("--max-length", 1024, "tokens of the longest")
    number("--passkeys", 5, "hidden in one example")
    number("--words", 8, "of one pass-key, from an alphabet of 26")
    number("--number-share", 0.25, "share of examples that hide numbers in sentences that repeat")
    number("--sinks", 16, "first tokens that a closed head sees")
    number("--recent", 64, "past tokens that a closed head sees, and itself")
    number("--lr", 0.02, "highest learning rate of AdamW")
    number("--reg", 0.05, "weight of the gates' mean; more of it closes more of them")
    add(
        "--haystack",
        action="append",
        metavar="FILE",
        help="UTF-8 text to hide pass-keys in; may be repeated (default: made-up sentences)",
    )
    number("--checkpoint-every", 25, "keep the state every so many steps")
    add("--restart", action="store_true", help="drop a kept state and start again")


def check(given: argparse.Namespace) -> Options:
    """The calibration's options, with the texts read."""
    for name, least in (
        ("steps", 1), ("min_length", 1), ("max_length", 1), ("passkeys", 1), ("words", 1),
        ("sinks", 0), ("recent", 1), ("checkpoint_every", 1), ("reg", 0),
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
    if given.min_length > given.max_length:
        raise InputError(
            f"--min-length is {given.min_length}; it must be at most --max-length, "
            f"{given.max_length}"
        )
    if not 0 <= given.number_share <= 1:
        raise InputError(f"--number-share is {given.number_share}; it must be from 0 to 1")
    files: tuple[str, ...] = tuple(given.haystack or ())
    text = "\n\n".join(read_text("--haystack", name) for name in files) if files else None
    return Options(
        recipe=Recipe(
            given.min_length,
            given.max_length,
            given.passkeys,
            given.words,
            given.number_share,
            text,
        ),
        haystacks=files,
        steps=given.steps,
        sinks=given.sinks,
        recent=given.recent,
        lr=given.lr,
        reg=given.reg,
        checkpoint_every=given.checkpoint_every,
        restart=given.restart,
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _checkpoints(model: Model, common: Common, options: Options) -> Checkpoints:
    folder = Path(f"{common.out}.checkpoints")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {common.out!r} needs the folder {folder}, which is a file")
    identity = {"weights": model.fingerprint, "--dtype": common.dtype, "--seed": common.seed}
    checkpoints = Checkpoints(folder, {**identity, **options.settings()})
    if options.restart:
        checkpoints.remove()
    return checkpoints


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
        "haystack": list(options.haystacks) or "made-up sentences",
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
