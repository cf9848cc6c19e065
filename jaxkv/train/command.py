# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line of `python -m jaxkv.train`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxkv.cli.arguments import check_positive, make_parser, parse
from jaxkv.cli.devices import devices_of
from jaxkv.cli.figures import check_picture
from jaxkv.cli.flags import add_plot, add_policy
from jaxkv.cli.interrupts import raises
from jaxkv.cli.startup import prepare
from jaxkv.core.errors import InputError
from jaxkv.core.files import check_target
from jaxkv.core.settings import flags_named
from jaxkv.layers.base import Policy
from jaxkv.policies.registry import POLICIES, fields_of, make_policy
from jaxkv.train.arms import ARMS, FAMILIES, SINKS, Shape
from jaxkv.train.loop import Rhythm
from jaxkv.train.recipe import Recipe
from jaxkv.train.run import Options, Source, train
from jaxkv.train.text import LEAST_VOCABULARY

COMMAND = "jaxkv.train"
_VOCABULARY = 2046
_DESCRIPTION = """Train a decoder on local text: from random weights, or from a model's own.

A sample is a piece of the text. Its tokens go into an empty cache under a policy, and each is
predicted from what that kept; the gradient goes through what was evicted. With --chunk a sample goes
through the model in parts, and policies evict, or choose, between them.

From random weights, --attention decides what a first token is (StreamingLLM, arXiv 2309.17453,
section 3.3):

  vanilla     nothing special: a sample is text alone
  zero-sink   the softmax has one term more, exp(0), which is no token; with --learn-sinks exp(s),
              with an s that each head learns
  sink-token  one token, or with --sink-tokens 2 two, before every sample, which are learnt. They are
              the model's BOS: decode and eval put them first by themselves

--model NAME begins with a model's weights, its tokenizer, and the BOS that it has.

The text is tokenised once, into a file in the cache folder. States are kept in OUT.checkpoints, the
last two of them: the same command goes on from there, on a CPU to the same weights bit by bit. The
folder goes when the run is complete. OUT is a checkpoint that every command takes as --model; its
training.json tells loss, held-out loss, tokens, seconds, settings, device and versions.

configs/train has 5m (two cores, hours), 20m (one GPU) and pythia-160m (the paper's).

examples:
  python -m jaxkv.train --config configs/train/5m.yaml --text book.txt --out ./vanilla --plot loss.png
  python -m jaxkv.train --config configs/train/5m.yaml --text book.txt --attention sink-token --out ./sink
  python -m jaxkv.decode --model ./sink --raw --prompt "It was"
  python -m jaxkv.eval ppl --model ./sink --text-file other.txt --policy streaming:sinks=1:window=127
  python -m jaxkv.train --model smollm2-135m-instruct --text notes/ --context 512 --batch 4 --steps 200 \\
      --lr 1e-5 --policy streaming --policy.sinks 4 --policy.window 252 --out ./tuned
"""  # noqa: E501


def run(arguments: Sequence[str]) -> None:
    """Trains what a command line asks for.

    Args:
      arguments: without the program's name.

    Raises:
      InputError: in one line, what is wrong and what is allowed.
    """
    options, given = parse_options(arguments)
    prepare()
    from jaxkv.core.progress import bars

    with raises(), bars() as progress:
        report = train(options, progress)
    if given.json:
        print(json.dumps(report))
    else:
        print(
            f"{options.out}: {report['parameters'] / 1e6:.2f}M parameters, {report['tokens']:,} "
            f"tokens in {report['seconds']:.0f} s ({report['tokens_per_s']:,.0f} tokens/s), loss "
            f"{report['loss']:.4f}, held out {report['held_out']:.4f}"
        )
    if given.plot is not None:
        from jaxkv.train.plot import save_losses

        save_losses(given.plot, report)


def parse_options(arguments: Sequence[str]) -> tuple[Options, argparse.Namespace]:
    """Reads the command line, and the config file it names.

    Args:
      arguments: without the program's name.

    Returns:
      What to train, and the flags.

    Raises:
      InputError: in one line, what is wrong and what is allowed.
    """
    given, fields = parse(_parser(), arguments)
    if not given.text:
        raise InputError("--text is missing; it must name files or folders of text")
    if given.out is None:
        raise InputError("--out is missing; it must name the folder to write")
    out = str(Path(given.out).expanduser())  # without a slash at its end: states lie beside it
    _check_out(out, given.overwrite)
    check_positive(given, "checkpoint_every", "validate_every")
    if given.plot is not None:
        check_picture("--plot", given.plot)
    with flags_named():
        recipe = Recipe(**{name: getattr(given, name) for name in _names(Recipe)})
    devices = devices_of(given)
    if devices.model > 1:
        raise InputError(f"--mesh is {given.mesh!r}; a batch is shared out over data alone")
    if recipe.at_once % devices.data:
        raise InputError(
            f"--mesh is {given.mesh!r}, and {recipe.at_once} samples are computed at once; it must "
            "divide them"
        )
    options = Options(
        text=tuple(given.text),
        source=_source(given),
        recipe=recipe,
        policy=_policy(given.policy, fields),
        rhythm=Rhythm(recipe.steps, given.validate_every, given.checkpoint_every),
        devices=devices,
        out=out,
        restart=given.restart,
        command=shlex.join(["python", "-m", COMMAND, *arguments]),
    )
    return options, given


def _source(given: argparse.Namespace) -> Source:
    mine = {name: getattr(given, name) for name in _names(Shape)}
    if given.model is not None:
        own = ("attention", "sink_tokens", "tokenizer", "vocab_size")
        for name in (*own, *mine):
            if getattr(given, name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')} is for random weights; --model has its own"
                )
    attention = given.attention or ARMS[0]
    if attention not in ARMS:
        raise InputError(f"--attention is {attention!r:.80}; it must be {', '.join(ARMS)}")
    if given.sink_tokens is not None and attention != "sink-token":
        raise InputError(f"--sink-tokens is for --attention sink-token, and that is {attention}")
    sinks = 1 if given.sink_tokens is None else given.sink_tokens
    if not 1 <= sinks <= len(SINKS):
        raise InputError(f"--sink-tokens is {sinks}; it must be 1 or {len(SINKS)}")
    if given.tokenizer is not None and given.vocab_size is not None:
        raise InputError("--vocab-size is of a tokenizer that is trained; give no --tokenizer")
    size = _VOCABULARY if given.vocab_size is None else given.vocab_size
    if not LEAST_VOCABULARY <= size <= 2**20:
        raise InputError(
            f"--vocab-size is {size}; it must be from {LEAST_VOCABULARY}, the bytes and an end, to "
            f"{2**20}"
        )
    with flags_named():
        shape = Shape(**{name: value for name, value in mine.items() if value is not None})
    return Source(
        given.model, shape, attention, sinks if attention == "sink-token" else 0, given.tokenizer,
        size,
    )  # fmt: skip


def _policy(name: str | None, fields: Mapping[str, Any]) -> Policy:
    name = name or "full"
    with flags_named(["policy"]), flags_named(fields_of(name), "--policy."):
        return make_policy(name, fields)


def _check_out(name: str, overwrite: bool) -> None:
    from jaxkv.checkpoints.orbax import MARK

    out = Path(name)
    if not out.name:
        raise InputError(f"--out {name!r} is no name of a folder to write")
    states = Path(f"{name}.checkpoints")
    if states.exists() and not states.is_dir():
        raise InputError(f"--out {name!r} needs the folder {states}, which is a file")
    if not out.exists():
        return check_target("--out", name)
    if not overwrite:
        raise InputError(f"--out {name} exists; give --overwrite to replace it")
    if not (out / MARK).is_file():
        raise InputError(f"--out {name} is not a checkpoint of jaxkv; --overwrite replaces those")


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _parser() -> Any:
    parser = make_parser(COMMAND, _DESCRIPTION)
    add = parser.add_argument_group("text").add_argument
    add(
        "--text",
        action="append",
        metavar="FILE",
        help="UTF-8 text, or a folder whose .txt files are taken; may be repeated",
    )
    _add_source(parser.add_argument_group("model").add_argument)
    _add_recipe(parser.add_argument_group("recipe").add_argument)
    add_policy(
        parser.add_argument_group("policy").add_argument,
        "full",
        f"what the loss goes through: {', '.join(POLICIES)}, or module:Class (default: full)",
        "the policy",
    )
    add = parser.add_argument_group("devices").add_argument
    add(
        "--mesh",
        type=str | None,
        metavar="data=N",
        help="so many devices share out each batch (default: one device)",
    )
    add = parser.add_argument_group("output").add_argument
    add("--out", type=str | None, metavar="DIR", help="the checkpoint to write; it must be given")
    add(
        "--validate-every",
        type=int,
        default=100,
        metavar="N",
        help="steps from one held-out loss to the next (default: 100)",
    )
    add(
        "--checkpoint-every",
        type=int,
        default=100,
        metavar="N",
        help="steps from one state that is kept to the next (default: 100)",
    )
    add("--restart", action="store_true", help="drop kept states and start again")
    add("--overwrite", action="store_true", help="replace a checkpoint at --out")
    add("--json", action="store_true", help="the report as one JSON object on stdout")
    add_plot(add, "the loss over the steps")
    return parser


def _add_source(add: Callable[..., Any]) -> None:
    usual = Shape()

    def number(flag: str, told: str) -> None:
        add(flag, type=int | None, metavar="N", help=told)

    add(
        "--model",
        type=str | None,
        metavar="NAME",
        help="begin with this model: alias, hub id, folder, .gguf or our checkpoint (default: "
        "random weights of the shape below)",
    )
    add(
        "--attention",
        type=str | None,
        metavar="NAME",
        help=f"{', '.join(ARMS)} (default: vanilla)",
    )
    number("--sink-tokens", "1 or 2, of sink-token (default: 1)")
    add(
        "--tokenizer",
        type=str | None,
        metavar="NAME",
        help="that of a model, or a folder's (default: one is trained on the text)",
    )
    number("--vocab-size", f"tokens of the one that is trained (default: {_VOCABULARY})")
    add(
        "--family",
        type=str | None,
        metavar="NAME",
        help=f"what is built: {' or '.join(FAMILIES)} (default: {usual.family})",
    )
    number("--layers", f"how many (default: {usual.layers})")
    number("--width", f"of the residual stream (default: {usual.width})")
    number("--heads", f"of queries (default: {usual.heads})")
    number("--kv-heads", "of keys and values (default: as many)")
    number("--mlp-width", "of the MLP (default: four times the width)")


def _add_recipe(add: Callable[..., Any]) -> None:
    usual = Recipe()

    def number(flag: str, told: str, default: str | None = None) -> None:
        value = getattr(usual, flag.removeprefix("--").replace("-", "_"))
        kind = int | None if value is None else type(value)
        shown = f"{value:g}" if default is None else default
        add(
            flag, type=kind, default=value, metavar="X" if kind is float else "N",
            help=f"{told} (default: {shown})",
        )  # fmt: skip

    number("--context", "tokens of a sample")
    number("--batch", "samples of a step")
    number("--micro-batch", "samples that are computed at once; gradients are added up", "all")
    number("--chunk", "tokens of a sample that go through the model at once", "all")
    number("--steps", "how many")
    number("--lr", "highest learning rate of AdamW")
    number("--lr-end", "share of it that is left at the end, by a cosine")
    number("--warmup", "share of the steps in which it grows")
    number("--weight-decay", "of matrices")
    number("--clip", "length that gradients are clipped to")
    number("--validation", "share of the text, its end, that is held out")
    number("--seed", "of first weights and of the order of samples")
    add(
        "--dtype",
        type=str,
        default=usual.dtype,
        metavar="TYPE",
        help="float32 or bfloat16, of what is computed; weights are kept in float32 (default: "
        f"{usual.dtype})",
    )
    add(
        "--remat",
        action="store_true",
        help="compute layers again on the way back: less memory of an accelerator, more time",
    )
    add(
        "--learn-sinks",
        action="store_true",
        help="learn the sink logits of a model that has them; else they stay as they are",
    )
