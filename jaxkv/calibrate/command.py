# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line of `python -m jaxkv.calibrate`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkv.calibrate import budgets, duo, headkv, kvzap
from jaxkv.calibrate.task import Calibration, Common
from jaxkv.cli.arguments import make_parser, model_named, parse
from jaxkv.cli.figures import check_picture
from jaxkv.cli.flags import WEIGHTS, add_config, add_model, add_plot, check_dtype
from jaxkv.cli.interrupts import raises
from jaxkv.cli.startup import prepare
from jaxkv.core.errors import InputError
from jaxkv.core.files import check_target

COMMAND = "jaxkv.calibrate"
KINDS: Mapping[str, Calibration] = {
    calibration.name: calibration
    for calibration in (duo.CALIBRATION, headkv.CALIBRATION, kvzap.CALIBRATION, budgets.CALIBRATION)
}

_DESCRIPTION = """Find out what a model's heads need of the context, once for every model.

kinds (python -m jaxkv.calibrate KIND --help has each one's flags):
{kinds}

The result is one file, and a policy takes it as it is.

examples:
  python -m jaxkv.calibrate duo --model ./my-model --out gates.json --plot gates.png
  python -m jaxkv.decode --model ./my-model --policy duo --policy.pattern gates.json --prompt "Hello"
  python -m jaxkv.calibrate headkv --model ./my-model --out scores.json
  python -m jaxkv.calibrate kvzap --model ./my-model --text book.txt --out gate.safetensors
  python -m jaxkv.calibrate budgets --model ./my-model --text book.txt --out budgets.json
"""  # noqa: E501


def run(arguments: Sequence[str]) -> None:
    """Calibrates what a command line asks for.

    Args:
      arguments: without the program's name.

    Raises:
      InputError: in one line, what is wrong and what is allowed.
    """
    calibration, common, own = parse_options(arguments)
    prepare()
    print(f"{common.out}: {_run(calibration, common, own)}")


def parse_options(arguments: Sequence[str]) -> tuple[Calibration, Common, Any]:
    """Reads the command line, and the config file it names.

    Args:
      arguments: without the program's name; the kind comes first.

    Returns:
      The calibration, what every calibration is told, and its own options.

    Raises:
      InputError: in one line, what is wrong and what is allowed.
    """
    allowed = f"choose one of {', '.join(KINDS)}"
    if not arguments:
        raise InputError(f"there is nothing to calibrate; {allowed}")
    name = arguments[0]
    if name in ("-h", "--help", "--version"):
        _overview().parse_args([name])
    if name.startswith("-"):
        raise InputError(f"the kind comes first, before {name}; {allowed}")
    if name not in KINDS:
        raise InputError(f"kind {name!r} is unknown; {allowed}")
    calibration = KINDS[name]
    given, _ = parse(_parser(calibration), arguments[1:])
    command = shlex.join(["python", "-m", COMMAND, *arguments])
    return calibration, _common(given, command), calibration.check(given)


def _run(calibration: Calibration, common: Common, own: Any) -> str:
    from jaxkv.checkpoints.sources import load
    from jaxkv.core.progress import bars

    with raises(), bars() as progress:
        with model_named(common.model):
            model = load(
                common.model, common.dtype, progress, common.weights,
                revision=common.revision, tokenizer=common.tokenizer,
            )  # fmt: skip
        return calibration.run(model, common, own, progress)


def _common(given: argparse.Namespace, command: str) -> Common:
    if given.out is None:
        raise InputError("--out is missing; it must name the file to write")
    if given.seed < 0:
        raise InputError(f"--seed is {given.seed}; it must be at least 0")
    check_target("--out", given.out)
    if given.plot is not None:
        check_picture("--plot", given.plot)
    check_dtype("--weights", given.weights, WEIGHTS)
    return Common(
        model=given.model,
        dtype=given.dtype,
        weights=given.weights,
        out=given.out,
        plot=given.plot,
        seed=given.seed,
        command=command,
        revision=given.revision,
        tokenizer=given.tokenizer,
    )


def _overview() -> Any:
    lines = "\n".join(
        f"  {name:8}{kind.description.splitlines()[0]}" for name, kind in KINDS.items()
    )
    parser = make_parser(COMMAND, _DESCRIPTION.format(kinds=lines))
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    return parser


def _parser(calibration: Calibration) -> Any:
    parser = make_parser(f"{COMMAND} {calibration.name}", calibration.description)
    add_model(parser.add_argument_group("model").add_argument)
    add = parser.add_argument_group(calibration.name).add_argument
    calibration.add_arguments(add)
    add("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: 0)")
    add_config(add)
    add = parser.add_argument_group("output").add_argument
    add("--out", type=str | None, metavar="FILE", help="the file to write; it must be given")
    add_plot(add, "layers by heads")
    return parser
