# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables of head budgets: what each head gets on average where all heads compete for one budget."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.calibrate.pairs import passages
from jaxkv.calibrate.states import capacity, read
from jaxkv.calibrate.task import Calibration, Common
from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive, read_text
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.core.typing import Rotation
from jaxkv.generate.replay import repeat
from jaxkv.layers import draft as drafts
from jaxkv.layers.base import Geometry
from jaxkv.layers.draft import Read
from jaxkv.layers.prompt import Prompt
from jaxkv.models.decoder import geometry
from jaxkv.policies.expected import ExpectedAttention
from jaxkv.policies.kvzip import KVzip
from jaxkv.policies.shares import save_shares
from jaxkv.policies.surrogates import surrogates, worth
from jaxkv.text.repeat import before_text

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SINKS, WINDOW = 4, 8  # tokens at both ends that every head keeps anyhow

# The worth of each token of a prompt: [L, K, T], of layers without a window of their own.
Scores = Callable[[Model, Sequence[int], int, str | None], np.ndarray]

_DESCRIPTION = """Find out how much of a budget each head needs, on average over passages of a text.

The tokens of all KV heads of all layers compete for one budget, as with a policy's allocation
"global"; how many a head gets, as a share of the mean, is its share. With a table of shares heads
have fixed sizes, so that no pool is needed, and what is kept of a prompt is chosen head by head.

  kvzip     by what the model looks at when it repeats the passage: slow, and the best
  expected  by Expected Attention's scores
  kvzap     by networks that tell KVzip+'s score: --gate, or the ones that are shipped

  --out     JSON: a table for each ratio; between two of them shares are interpolated. Any policy
            with a score takes it: python -m jaxkv.decode --policy snapkv
            --policy.allocation table --policy.table FILE. LU-KV's files (.npy) go there too.

examples:
  python -m jaxkv.calibrate budgets --text book.txt --out budgets.json --plot budgets.png
  python -m jaxkv.calibrate budgets --method expected --text book.txt --out budgets.json
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    method: one of `METHODS`.
    gate: a file of KVzap's networks, or None.
    text: to take passages from.
    tokens: of a passage.
    passages: how many.
    ratios: shares of a passage that are kept, rising.
    """

    method: str
    gate: str | None
    text: str
    tokens: int
    passages: int
    ratios: tuple[float, ...]


def dealt(scores: np.ndarray, ratios: Sequence[float]) -> np.ndarray:
    """How much of a budget each head gets where all compete for it.

    Args:
      scores: [L, K, n]; of equal ones the first are taken.
      ratios: of the L K n tokens, kept.

    Returns:
      float64 [R, L, K]: of the mean.
    """
    layers, heads, count = scores.shape
    order = np.argsort(-scores.reshape(-1), kind="stable")
    found = []
    for ratio in ratios:
        total = max(1, round(ratio * order.size))
        counts = np.bincount(order[:total] // count, minlength=layers * heads)
        found.append(counts.reshape(layers, heads) / counts.mean())
    return np.stack(found)


def run(model: Model, common: Common, options: Options, progress: Progress) -> str:
    """Scores the passages and writes the table; says in one line how uneven and how sure it is."""
    config = model.config
    ruled = list(geometry(config, 1, 1).ruled)
    if not ruled:
        raise InputError("every layer of the model has a window of its own; none has a budget")
    prompts = passages(model, options.text, options.tokens, options.passages)
    slots, found = capacity(prompts), []
    for done, prompt in enumerate(prompts):
        progress("budgets: passages", done, len(prompts))
        scores = METHODS[options.method](model, prompt, slots, options.gate)
        begin = max(before_text(model.tokenizer, prompt), SINKS)
        found.append(dealt(scores[:, :, begin : len(prompt) - WINDOW], options.ratios))
    progress("budgets: passages", len(prompts), len(prompts))
    shares = np.ones((len(options.ratios), config.num_layers, config.num_kv_heads))
    shares[:, ruled] = np.mean(found, axis=0)
    middle = int(np.argmin(np.abs(np.asarray(options.ratios) - 0.25)))
    about = {
        "name": model.name,
        "method": options.method,
        "tokens": options.tokens,
        "passages": options.passages,
        "command": common.command,
        "seed": common.seed,
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
    }
    save_shares(common.out, options.ratios, shares, config.identity, about)
    ratio, mine = options.ratios[middle], shares[middle][ruled]
    if common.plot is not None:
        from jaxkv.calibrate.plot import save_heads

        title = f"{model.name}: head budgets by {options.method}, {ratio:g} kept"
        save_heads(common.plot, shares[middle], title, "share of the mean budget")
    sure = ""
    if len(found) > 1:
        halves = [np.mean([x[middle] for x in found[half::2]], axis=0) for half in (0, 1)]
        alike = np.corrcoef(*(half.reshape(-1) for half in halves))[0, 1]
        sure = f"; every other passage gives the same to r = {alike:.2f}"
    return (
        f"{len(ruled)} layers of {config.num_kv_heads} KV heads by {options.method}, at {ratio:g} "
        f"kept: from {mine.min():.2f} to {mine.max():.2f} of the mean budget{sure}"
    )


def _by_kvzip(model: Model, prompt: Sequence[int], slots: int, gate: str | None) -> np.ndarray:
    del gate
    cache, _ = read(model, prompt, slots)
    scores, _ = repeat(model, cache, [prompt], KVzip().replay)
    return np.stack([np.asarray(mine)[0, :, : len(prompt)] for mine in scores if mine is not None])


def _by_kvzap(model: Model, prompt: Sequence[int], slots: int, gate: str | None) -> np.ndarray:
    cache, states = read(model, prompt, slots, np.arange(len(prompt)))
    networks = surrogates(gate, cache.geometry, model.config.hidden_size)
    found = [
        worth(networks[layer], jnp.asarray(mine)[None])[0]
        for layer, mine in zip(cache.geometry.ruled, states, strict=True)
    ]
    return np.stack(found)


def _by_expected(model: Model, prompt: Sequence[int], slots: int, gate: str | None) -> np.ndarray:
    del gate
    cache, _ = read(model, prompt, slots, moments=True)
    policy, shape, found = ExpectedAttention(), cache.geometry, []
    for index in shape.ruled:
        scores = _scores(policy, shape, model.config.scoring(index), cache.layers[index])
        found.append(np.asarray(scores)[0, :, : len(prompt)])
    return np.stack(found)


def _scores(policy: ExpectedAttention, shape: Geometry, rope: Rotation | None, kept: Read) -> Array:
    draft = drafts.of_full(kept, shape, None, policy.needs, WINDOW, None)
    return policy.score(Prompt(draft, rope, WINDOW, policy.needs))


METHODS: Mapping[str, Scores] = {
    "kvzip": _by_kvzip,
    "expected": _by_expected,
    "kvzap": _by_kvzap,
}


def add_arguments(add: Callable[..., Any]) -> None:
    """The calibration's own flags."""
    names = ", ".join(METHODS)
    add("--method", type=str, default="kvzip", metavar="NAME", help=f"one of {names}")
    add("--gate", type=str | None, metavar="FILE", help="networks for kvzap")
    add("--text", type=str | None, metavar="FILE", help="UTF-8 text; it must be given")
    for flag, default, told in (
        ("--tokens", 1000, "tokens of a passage"),
        ("--passages", 8, "passages, evenly from the text"),
    ):
        add(flag, type=int, default=default, metavar="N", help=f"{told} (default: {default})")
    add(
        "--ratios",
        type=str,
        default=",".join(map(str, RATIOS)),
        metavar="X,X,…",
        help="shares of a passage that are kept, a table for each (default: %(default)s)",
    )


def check(given: argparse.Namespace) -> Options:
    """The calibration's options."""
    if given.method not in METHODS:
        raise InputError(f"--method is {given.method!r}; it must be one of {', '.join(METHODS)}")
    if given.gate is not None and given.method != "kvzap":
        raise InputError(f"--gate is for --method kvzap, and the method is {given.method!r}")
    check_positive(given, "passages")
    if given.tokens <= SINKS + WINDOW:
        raise InputError(f"--tokens is {given.tokens}; it must be above {SINKS + WINDOW}")
    ratios = _ratios(given.ratios)
    if given.text is None:
        raise InputError("--text is missing; it must name a text to take passages from")
    return Options(
        method=given.method,
        gate=given.gate,
        text=read_text("--text", given.text),
        tokens=given.tokens,
        passages=given.passages,
        ratios=ratios,
    )


def _ratios(text: str) -> tuple[float, ...]:
    try:
        ratios = tuple(float(part) for part in text.split(","))
        good = 0 < ratios[0] and ratios[-1] <= 1 and list(ratios) == sorted(set(ratios))
    except ValueError:
        good = False
    if not good:
        raise InputError(f"--ratios is {text!r}; it must be rising numbers, above 0 and at most 1")
    return ratios


CALIBRATION = Calibration(
    name="budgets",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    run=run,
)
