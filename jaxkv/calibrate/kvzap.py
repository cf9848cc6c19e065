# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""KVzap's calibration: networks that tell from a token's state what KVzip+ found it to be worth."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxkv.calibrate.fitting import Network, explained, mlps, ridge
from jaxkv.calibrate.pairs import gather, passages
from jaxkv.calibrate.task import Calibration, Common
from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive, read_text
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.models.decoder import geometry
from jaxkv.policies.surrogates import save_surrogates

KINDS = ("linear", "mlp")

_DESCRIPTION = """Train KVzap's networks (arXiv 2601.07891): what a token is worth, told from its state.

Passages of a text are read, and the model repeats each: KVzip+ scores every token by what attention
to it moves while it is repeated. For each layer a network is fitted that tells the logarithm of that
from the state which the token's key is projected from. Then one reading of a prompt is enough.

  linear    ridge regression, in closed form
  mlp       D to D / 8 to the KV heads, by AdamW

  --out     safetensors as NVIDIA publishes them, and what is told here in the metadata.
            python -m jaxkv.decode --policy kvzap --policy.gate FILE takes it.
  R2        how much of the scores' variance the networks tell of passages that they were not fitted
            to, mean over layers and heads; published are 0.63 to 0.77, of 1.2 million tokens. An MLP
            needs more text than a linear map: of 18000 tokens it tells no more.

The text should be like what the model will read. All states are held: 4 bytes for each of the
layers, tokens and the model's width. A model of 135M parameters takes half a minute of two busy
cores for a passage.

examples:
  python -m jaxkv.calibrate kvzap --text book.txt --out gate.safetensors
  python -m jaxkv.calibrate kvzap --text book.txt --kind mlp --passages 64 --out gate.safetensors
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    text: to take passages from.
    kind: one of `KINDS`.
    tokens: of a passage.
    passages: how many.
    samples: tokens of a passage that are learned from.
    hold_out: of so many passages one is held out.
    ridge: the penalty of a linear map.
    epochs: of an MLP.
    """

    text: str
    kind: str
    tokens: int
    passages: int
    samples: int
    hold_out: int
    ridge: float
    epochs: int


def fit(
    x: np.ndarray, y: np.ndarray, options: Options, seed: int, progress: Progress
) -> list[Network]:
    """A network for each layer, from states [L, n, D] and what they are worth, [L, n, K]."""
    if options.kind == "mlp":
        return mlps(x, y, options.epochs, seed, lambda *done: progress("kvzap: mlp", *done))
    found = []
    for layer, pair in enumerate(zip(x, y, strict=True)):
        progress("kvzap: linear", layer, len(x))
        found.append(ridge(*pair, options.ridge))
    progress("kvzap: linear", len(x), len(x))
    return found


def run(model: Model, common: Common, options: Options, progress: Progress) -> str:
    """Trains the networks and writes them: one line that says how much they tell."""
    if not geometry(model.config, 1, 1).ruled:
        raise InputError("every layer of the model has a window of its own; none has scores")
    prompts = passages(model, options.text, options.tokens, options.passages)
    pairs = gather(model, prompts, options.samples, common.seed, progress)
    held = [index % options.hold_out == options.hold_out - 1 for index in range(len(prompts))]
    x, y = pairs.part(held, False)
    found = fit(x, y, options, common.seed, progress)
    unseen = pairs.part(held, True)
    told = np.stack([explained(*layer) for layer in zip(found, *unseen, strict=True)])
    about = {
        "name": model.name,
        "kind": options.kind,
        "r2": round(float(told.mean()), 4),
        "r2_of_layers": [round(float(layer), 3) for layer in told.mean(axis=1)],
        "tokens": x.shape[1],
        "held_out": unseen[0].shape[1],
        "command": common.command,
        "seed": common.seed,
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
    }
    # Layers with a window of their own are asked for nothing; a file has a network for each.
    nothing = {"w": np.zeros((x.shape[-1], y.shape[-1])), "b": np.zeros(y.shape[-1])}
    networks = [nothing] * model.config.num_layers
    for layer, network in zip(pairs.layers, found, strict=True):
        networks[layer] = network
    save_surrogates(common.out, tuple(networks), model.config.identity, json.dumps(about))
    if common.plot is not None:
        from jaxkv.calibrate.plot import save_heads

        title = f"{model.name}: KVzap {options.kind}, {x.shape[1]} tokens"
        save_heads(common.plot, told, title, "R2 of held-out passages")
    return (
        f"R2 {told.mean():.3f} of {sum(held)} held-out passages ({options.kind}; layers "
        f"{told.mean(axis=1).min():.3f} to {told.mean(axis=1).max():.3f}), fitted to {x.shape[1]} "
        f"tokens of {len(held) - sum(held)}"
    )


def add_arguments(add: Callable[..., Any]) -> None:
    """The calibration's own flags."""
    add("--text", type=str | None, metavar="FILE", help="UTF-8 text; it must be given")
    add(
        "--kind",
        type=str,
        default="linear",
        metavar="NAME",
        help=f"one of {', '.join(KINDS)} (default: linear)",
    )
    for flag, default, told in (
        ("--tokens", 1000, "tokens of a passage"),
        ("--passages", 16, "passages, evenly from the text"),
        ("--samples", 500, "tokens of a passage that are learned from, at most"),
        ("--hold-out", 4, "of so many passages one is held out, to tell R2"),
        ("--epochs", 15, "of an MLP"),
    ):
        add(flag, type=int, default=default, metavar="N", help=f"{told} (default: {default})")
    add(
        "--ridge",
        type=float,
        default=100.0,
        metavar="X",
        help="penalty of a linear map, above 0 (default: 100)",
    )


def check(given: argparse.Namespace) -> Options:
    """The calibration's options."""
    if given.kind not in KINDS:
        raise InputError(f"--kind is {given.kind!r}; it must be one of {', '.join(KINDS)}")
    check_positive(given, "tokens", "passages", "samples", "epochs")
    if not 2 <= given.hold_out <= given.passages:
        raise InputError(
            f"--hold-out is {given.hold_out}; it must be at least 2, and at most --passages, which "
            f"is {given.passages}"
        )
    if not 0 < given.ridge < math.inf:
        raise InputError(f"--ridge is {given.ridge}; it must be above 0")
    if given.text is None:
        raise InputError("--text is missing; it must name a text to take passages from")
    return Options(
        text=read_text("--text", given.text),
        kind=given.kind,
        tokens=given.tokens,
        passages=given.passages,
        samples=given.samples,
        hold_out=given.hold_out,
        ridge=given.ridge,
        epochs=given.epochs,
    )


CALIBRATION = Calibration(
    name="kvzap",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    run=run,
)
