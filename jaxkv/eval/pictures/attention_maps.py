# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Where a model looks: attention averaged over a text, and how much of it the first token gets."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxkv.attention import attend_chunk
from jaxkv.checkpoints.model import Model
from jaxkv.cli.arguments import check_positive, read_text
from jaxkv.cli.style import BLUE, MAP, RED
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress
from jaxkv.core.typing import Params, Queries, Tokens
from jaxkv.eval.questions.haystacks import builtin_text
from jaxkv.eval.runner.result import Result
from jaxkv.eval.runner.task import Common, Task
from jaxkv.eval.tasks.ppl import token_stream
from jaxkv.layers.base import Chunk, Facts
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import embed, run_layer
from jaxkv.policies.full import Full
from jaxkv.policies.registry import describe
from jaxkv.policies.streaming import StreamingLLM

FIRST = 4  # first tokens whose share is told; queries count from there on
MOST_TOKENS = 512  # of a sample: a map has as many rows
TOGETHER = 4096  # tokens that go through a layer at once
COLUMNS = 7  # maps side by side

_DESCRIPTION = """Maps of a model's attention, averaged over pieces of a text (figure 2 of StreamingLLM's paper,
arXiv 2309.17453): most heads put most of their attention on the first token, the sink.

It is the model that is looked at, with all that it sees: --policy is to be left out, and the report
says full. No keys are kept, so the cache has 0 bytes. A piece is --tokens long, with the BOS token
first if the model has one.

  score          share of the attention that is on token 0, in percent: the mean over all layers,
                 heads, pieces and queries from position 4 on
  n              pieces
  by             the same by layer, of the layers that are drawn
  uniform_share  what score would be if a query looked at all tokens alike
  first_token    the share of token 0, by layer and head
  first_tokens   the share of tokens 0 to 3 together, by layer and head
  maps           probabilities of the layers that are drawn, the mean over heads unless --heads
                 names some; row i is the query at position i, from token 0 to itself
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    text: to be cut into pieces.
    tokens: of each piece.
    samples: pieces, at most.
    layers: that are drawn; None is the first three and four more.
    heads: that are drawn; None is their mean.
    """

    text: str
    tokens: int
    samples: int
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class MapLayer:
    """A layer that keeps no keys, but the sum over the batch of who looked where.

    Attributes:
      window: past tokens that the layer sees; None is all.
    """

    window: int | None

    def init(self) -> None:
        """Nothing."""

    def take(self, cache: Any, chunk: Chunk) -> tuple[Array, Queries]:
        """Takes whole prompts, all of one length: probabilities [N, T, T] and out [B, T, N, H]."""
        del cache
        v, rope = chunk.v, chunk.rope
        batch, count, _, dim = v.shape
        at = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None], (batch, count))
        q, k = chunk.rotated(at)
        out, _ = chunk.with_sink(*attend_chunk(q, k, v, at, at, rope, window=self.window))
        wide_q, wide_k = q.astype(jnp.float32), k.astype(jnp.float32)

        def looked_at(begin: Array) -> Array:
            # What attention gives for values that are one for one token and zero for the others is
            # that token's probability: by the same op, whatever it does to scores.
            tokens = begin + jnp.arange(dim, dtype=jnp.int32)
            one_hot = (at[0][:, None] == tokens[None]).astype(jnp.float32)
            values = jnp.broadcast_to(one_hot[None, :, None], k.shape)
            got = attend_chunk(wide_q, wide_k, values, at, at, rope, window=self.window)
            return jnp.sum(chunk.with_sink(*got)[0], axis=0)  # [T, N, H]

        found = lax.map(looked_at, jnp.arange(0, count, dim, dtype=jnp.int32))
        found = jnp.moveaxis(found, (2, 1), (0, 1))  # [N, T, pieces, H]
        return found.reshape(*found.shape[:2], -1)[:, :, :count], out

    def facts(self) -> Facts:
        """No keys."""
        return Facts(())


def probabilities(params: Params, config: ModelConfig, tokens: Tokens) -> Iterable[Array]:
    """Layer by layer, attention summed over the rows of `tokens` [B, T]: float32 [N, T, T]."""
    x = embed(params, config, tokens)
    for index, layer in enumerate(params["layers"]):
        mine = MapLayer((config.windows[index] or None) if config.windows else None)
        x, summed = run_layer(layer, config, mine, config.scoring(index), x, None, None)
        yield summed


def pieces(model: Model, options: Options) -> np.ndarray:
    """The text's samples, int32 [samples, tokens]; fewer if the text is too short for as many."""
    bos = list(model.tokenizer.bos_ids)
    size = options.tokens - len(bos)
    stream = token_stream(model, options.text, options.samples * size)[len(bos) :]
    count = len(stream) // size
    if not count:
        raise InputError(
            f"--tokens is {options.tokens}; the text has {len(stream)} tokens, which is not one "
            "piece of that length"
        )
    cut = stream[: count * size].reshape(count, size)
    return np.concatenate([np.tile(np.asarray(bos, np.int32), (count, 1)), cut], axis=1)


def drawn_layers(count: int) -> tuple[int, ...]:
    """The first three layers, and four more up to the last: the paper's choice."""
    last = count - 1
    spread = [2 + (last - 2) * part // 4 for part in range(1, 5)]
    return tuple(sorted({layer for layer in (0, 1, 2, *spread) if 0 <= layer <= last}))


def evaluate(
    model: Model, common: Common, options: Options, progress: Progress
) -> Iterable[Result]:
    """One result: the model's."""
    # The default of --policy is StreamingLLM's: whoever did not name a policy did not mean it.
    if common.policies not in ((StreamingLLM(),), (Full(),)):
        raise InputError("--policy is not for attention: maps are of the model, which sees all")
    config = model.config
    layers = options.layers or drawn_layers(config.num_layers)
    for flag, listed, count in (
        ("--layers", layers, config.num_layers),
        ("--heads", options.heads or (), config.num_heads),
    ):
        if listed and max(listed) >= count:
            raise InputError(f"{flag} has {max(listed)}; the model has 0 to {count - 1}")
    if options.tokens > config.max_positions:
        raise InputError(
            f"--tokens is {options.tokens}; the model was trained for {config.max_positions}"
        )
    samples = pieces(model, options)
    rows = max(1, TOGETHER // options.tokens)
    count = options.tokens
    first = np.zeros((config.num_layers, config.num_heads, FIRST))
    maps = {layer: np.zeros((len(options.heads or (0,)), count, count)) for layer in layers}
    for begin in range(0, len(samples), rows):
        batch = jnp.asarray(samples[begin : begin + rows])
        for layer, found in enumerate(probabilities(model.params, config, batch)):
            mass = np.asarray(found, np.float64)
            first[layer] += mass[:, FIRST:, :FIRST].mean(axis=1)
            if layer in maps:
                maps[layer] += mass[list(options.heads)] if options.heads else mass.mean(axis=0)
        progress("attention", min(begin + rows, len(samples)), len(samples))
    first *= 100 / len(samples)
    by_layer = first[:, :, 0].mean(axis=1)
    yield Result(
        task=TASK.name,
        score=float(by_layer.mean()),
        n=len(samples),
        by={f"layer {layer}": float(by_layer[layer]) for layer in layers},
        policy=describe(Full()),
        cache=dict.fromkeys(("nominal_bytes", "physical_bytes", "peak_bytes"), 0),
        details={
            "tokens": count,
            "uniform_share": float(100 * np.mean(1 / np.arange(FIRST + 1, count + 1))),
            "first_token": _rounded(first[:, :, 0]),
            "first_tokens": _rounded(first.sum(axis=-1)),
            "maps": [
                {"layer": layer, "head": head, "rows": _triangle(summed / len(samples))}
                for layer, every in maps.items()
                for head, summed in zip(options.heads or (None,), every, strict=True)
            ],
        },
    )


def _rounded(values: np.ndarray) -> list[list[float]]:
    return [[round(float(x), 4) for x in row] for row in values]


def _triangle(values: np.ndarray) -> list[list[float]]:
    """What is not after the query."""
    return [[float(f"{x:.4g}") for x in row[: i + 1]] for i, row in enumerate(values)]


def draw(figure: Any, results: Sequence[Result]) -> None:
    """Maps on top; below them the share of the first token by layer."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    (result,) = results
    maps, count = result.details["maps"], result.details["tokens"]
    maps = sorted(maps, key=lambda one: (-1 if one["head"] is None else one["head"], one["layer"]))
    columns = min(COLUMNS, len({one["layer"] for one in maps}))
    rows = -(-len(maps) // columns)
    figure.set_size_inches(max(6.0, 1.6 * columns + 1.0), 1.85 * rows + 2.9)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.85 * rows + 0.5, 2.4))
    axes = top.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for index, axis in enumerate(axes.flat):
        if index >= len(maps):
            axis.set_visible(False)
            continue
        one = maps[index]
        values = np.full((count, count), np.nan)
        for query, row in enumerate(one["rows"]):
            values[query, : query + 1] = row
        image = axis.imshow(
            np.maximum(values, 1e-9), norm=LogNorm(1e-3, 1.0), cmap=MAP,
            interpolation="nearest",
        )  # fmt: skip
        head = "" if one["head"] is None else f", head {one['head']}"
        axis.set_title(f"layer {one['layer']}{head}", fontsize=9)
        for marks in (axis.xaxis, axis.yaxis):
            marks.set_major_locator(MaxNLocator(4, integer=True))
        axis.tick_params(labelsize=7)
    mean = ", mean over heads" if maps[0]["head"] is None else ""
    top.suptitle(f"attention over {result.n} pieces of {count} tokens{mean}", fontsize=10)
    top.supxlabel("token looked at", fontsize=8)
    top.supylabel("query", fontsize=8)
    top.colorbar(image, ax=axes, label="probability", extend="min", format="%g")
    _draw_shares(bottom.subplots(), result)


def _draw_shares(axis: Any, result: Result) -> None:
    """A bar a layer, a point a head."""
    from matplotlib.ticker import MaxNLocator

    heads = np.array(result.details["first_token"])
    layers = np.arange(len(heads))
    axis.bar(layers, heads.mean(axis=1), color=BLUE, label="mean over heads")
    axis.plot(
        np.repeat(layers, heads.shape[1]), heads.reshape(-1), "k.", markersize=2, label="a head"
    )
    uniform = result.details["uniform_share"]
    axis.axhline(uniform, color=RED, linestyle="--", label="if all tokens were alike")
    # There is room for the legend above 100.
    axis.set(xlabel="layer", ylabel="on token 0 (%)", ylim=(0, 122), yticks=range(0, 101, 20))
    axis.set_xlim(-0.6, len(layers) - 0.4)
    axis.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    axis.set_title(
        f"attention on token 0 by queries from position {FIRST} on: {result.score:.1f} %",
        fontsize=9,
    )
    axis.legend(fontsize=7, ncols=3, loc="upper left", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def add_arguments(add: Callable[..., Any]) -> None:
    """The task's own flags."""
    add(
        "--text-file",
        type=str | None,
        metavar="FILE",
        help="UTF-8 text (default: the help texts that come with Python)",
    )
    add("--tokens", type=int, default=16, metavar="N", help="of a piece (default: 16)")
    add("--samples", type=int, default=256, metavar="N", help="pieces, at most (default: 256)")
    add(
        "--layers",
        type=str | int | None,
        metavar="N,N",
        help="maps of these layers (default: the first three and four more)",
    )
    add(
        "--heads",
        type=str | int | None,
        metavar="N,N",
        help="maps of these query heads, each for itself (default: the mean over all)",
    )


def check(given: argparse.Namespace) -> Options:
    """The task's options, with the text read."""
    if not FIRST < given.tokens <= MOST_TOKENS:
        raise InputError(
            f"--tokens is {given.tokens}; it must be from {FIRST + 1} to {MOST_TOKENS}"
        )
    check_positive(given, "samples")
    for name in ("kv_dtype", "prefill_chunk", "max_length"):
        if getattr(given, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is not for attention: no keys are kept")
    layers, heads = (_numbers(flag, getattr(given, flag)) for flag in ("layers", "heads"))
    path = given.text_file
    text = builtin_text() if path is None else read_text("--text-file", path)
    return Options(text, given.tokens, given.samples, layers, heads)


def _numbers(flag: str, text: str | int | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    words = [word.strip() for word in str(text).split(",")]
    if not all(word.isdecimal() for word in words):
        raise InputError(f"--{flag} is {text!r}; it must be numbers from 0 on such as 0,1,5")
    return tuple(sorted({int(word) for word in words}))


TASK = Task(
    name="attention",
    summary="maps of the model's own attention, and its sinks",
    description=_DESCRIPTION,
    add_arguments=add_arguments,
    check=check,
    evaluate=evaluate,
    draw=draw,
)
