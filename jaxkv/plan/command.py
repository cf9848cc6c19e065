# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The planner's command line."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shlex
from collections.abc import Sequence
from typing import Any

from jaxkv.cli.arguments import check_positive, make_parser, parse
from jaxkv.cli.devices import add_mesh, devices_of
from jaxkv.cli.figures import check_picture, save_picture
from jaxkv.cli.flags import (
    KV_DTYPES,
    WEIGHTS,
    add_kv_dtype,
    add_plot,
    add_policy,
    add_prefill_chunk,
    add_weights,
    check_dtype,
)
from jaxkv.core.errors import InputError
from jaxkv.core.files import check_target, write_json
from jaxkv.plan.chips import CHIPS, SLICES, Chip, chips_named
from jaxkv.policies.registry import POLICIES, describe, label, make_policies

COMMAND = "jaxkv.plan"
_DESCRIPTION = """What a model and its cache take of a chip's memory, and how fast a step can be.

Bytes are counted from shapes, in a second: no weights are needed, and no chip. They are exact. The
time of a step is what it reads at the bandwidth that is published of the chip, and nothing runs
faster than that; `longest` leaves 3 % of the memory for programs and what they compute, which is
assumed. With --compile the programs are compiled for the chip, which tells that too.

Over many chips all of it is told of each: --chip v5e-8 shares out the weights over eight of them,
and the caches as suits the policy. What a collective takes is assumed: 3 us on a TPU, 8 on a GPU.

examples:
  python -m jaxkv.plan --model llama-3.1-8b --policy full,duo,streaming --tokens 131072 --chip h100
  python -m jaxkv.plan --model llama-3.2-1b --policy full,snapkv:budget=4096 --chip v5e,v6e
  python -m jaxkv.plan --model llama-3.1-8b --policy duo --tokens 3300000 --chip h100 \\
      --kv-dtype int4 --weights int8 --compile
  python -m jaxkv.plan --model llama-3.1-8b --policy full,duo --tokens 1048576 --chip v5e-8,v5p-8
"""


def run(words: Sequence[str]) -> None:
    """Plans what a command line asks for.

    Args:
      words: without the program's name.

    Raises:
      InputError: in one line, what is wrong and what is allowed.
    """
    given, fields = parse(_parser(), words)
    chips = [chips_named(name) for name in str(given.chip).split(",")]
    lengths = _check(given)
    policies = make_policies(given.policy, fields)
    report = _plan(given, policies, lengths, chips)
    report["command"] = f"python -m {COMMAND} {shlex.join(words)}"
    print(json.dumps(report)) if given.json else _show(report)
    if given.out:
        write_json(given.out, report)
    if given.plot:
        from jaxkv.plan.plot import draw

        save_picture(given.plot, functools.partial(draw, report=report))


def _plan(
    given: argparse.Namespace, policies: Sequence[Any], lengths: Sequence[int],
    chips: Sequence[tuple[Chip, int | None]],
) -> dict[str, Any]:  # fmt: skip
    from jaxkv.core.machine import where
    from jaxkv.plan.aot import check_compiler
    from jaxkv.plan.assumed import even_where_unknown
    from jaxkv.plan.estimate import ENDLESS, Setting, estimate
    from jaxkv.plan.plot import memory_over_context

    for platform in {chip.target.platform for chip, _ in chips} if given.compile else ():
        check_compiler(platform)
    config = _config(given.model)
    setting = Setting(
        config, given.batch, given.dtype, given.kv_dtype or given.dtype, given.weights,
        layout=devices_of(given).layout,
    )  # fmt: skip
    settings = [
        dataclasses.replace(setting, data=data, model=model)
        for data, model in (_shape(given, *chip) for chip in chips)
    ]
    if given.plot and len({(x.data, x.model) for x in settings}) > 1:
        raise InputError("--plot draws one number of chips; give each of --chip the same")
    setting, kinds = settings[0], [chip for chip, _ in chips]
    rows, curves = [], []
    with even_where_unknown(policies, config) as planned:
        for policy, (mine, note) in zip(policies, planned, strict=True):
            for chip, setting in zip(kinds, settings, strict=True):
                for tokens in lengths:
                    found = dataclasses.asdict(estimate(setting, mine, tokens, chip))
                    if found["longest"] == ENDLESS:
                        found["longest"] = None
                    told = {"policy": describe(policy), "label": label(describe(policy))}
                    mesh = {"data": setting.data, "model": setting.model}
                    row = {**told, "chip": chip.name, "mesh": mesh, **found}
                    if note:
                        row["assumed"] = note
                    if given.compile:
                        row["compiled"] = made = _compiled(setting, mine, tokens, chip, given)
                        most = max(program["peak_bytes"] for program in made.values())
                        row["fits"] = most <= chip.memory
                    rows.append(row)
            if given.plot:
                curve = memory_over_context(settings[0], mine, kinds)
                curves.append({"label": label(describe(policy)), "points": curve})
    made = {
        "model": given.model, "batch": given.batch, "dtype": setting.dtype,
        "kv_dtype": setting.kv_dtype, "weights": setting.weights or setting.dtype,
        "chips": {chip.name: {"memory_bytes": chip.memory, "bytes_per_s": chip.bandwidth}
                  for chip in kinds},
        "rows": rows,
    }  # fmt: skip
    if given.compile:
        made |= {name: where()[name] for name in ("jax", "date")}
    return made | ({"curves": curves} if curves else {})


def _shape(given: argparse.Namespace, chip: Chip, count: int | None) -> tuple[int, int]:
    """Sizes of the mesh's axes, (data, model)."""
    asked = devices_of(given)
    total = asked.data * asked.model
    if given.mesh is None:
        return 1, count or 1
    if count not in (None, total):
        raise InputError(f"--chip has {chip.name}-{count}, and --mesh {given.mesh} takes {total}")
    if given.compile and total not in SLICES:
        raise InputError(
            f"--mesh {given.mesh} takes {total} chips; to compile, it must be one of "
            f"{', '.join(map(str, SLICES))}"
        )
    return asked.data, asked.model


def _compiled(
    setting: Any, policy: Any, tokens: int, chip: Chip, given: argparse.Namespace
) -> dict[str, Any]:
    """The decode step, and the reading of a chunk of a prompt: see `aot.measured`."""
    from jaxkv.core.progress import bars
    from jaxkv.plan.programs import decode_step, prompt_chunk

    with bars() as progress:
        progress(f"compiling for {chip.name}", 0, 2)
        decode = decode_step(setting, policy, tokens, chip)
        progress(f"compiling for {chip.name}", 1, 2)
        prefill = prompt_chunk(setting, policy, tokens, given.prefill_chunk, chip)
    return {"decode": decode, "prefill": prefill}


def _config(name: str) -> Any:
    """The configuration of a published shape, or of a Hugging Face folder."""
    from pathlib import Path

    from jaxkv.checkpoints import named
    from jaxkv.checkpoints.families import by_hf_type
    from jaxkv.core.fields import Fields
    from jaxkv.core.reading import read_json

    path = Path(name).expanduser() / "config.json"
    if path.is_file():
        fields = Fields(read_json(path), "config.json")
        return by_hf_type(fields.text("model_type")).hf_config(fields)
    short = name.removesuffix(named.SUFFIX).removesuffix("-instruct")
    if short not in named.names():
        raise InputError(
            f"--model is {name!r:.80}; it must be a folder with config.json, or one of "
            f"{', '.join(named.names())}"
        )
    return named.named_config(short)


def _check(given: argparse.Namespace) -> list[int]:
    """Refuses what cannot be planned; the lengths."""
    check_dtype("--dtype", given.dtype)
    check_dtype("--weights", given.weights, WEIGHTS)
    check_dtype("--kv-dtype", given.kv_dtype, KV_DTYPES)
    check_positive(given, "batch", "prefill_chunk")
    if given.out:
        check_target("--out", given.out)
    if given.plot:
        check_picture("--plot", given.plot)
    words = str(given.tokens).split(",")
    if not all(word.strip().isdigit() and 0 < int(word) <= 2**30 for word in words):
        raise InputError(
            f"--tokens is {given.tokens!r:.80}; it must be lengths such as 8192,131072, up to "
            f"{2**30:,}"
        )
    return [int(word) for word in words]


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{report['model']}, batch {report['batch']}: GB of {report['weights']} weights and "
    table = Table(title=f"{title}{report['kv_dtype']} cache")
    compiled = any("compiled" in row for row in report["rows"])
    many = any(row["layout"] for row in report["rows"])
    heads = ["policy", "chip", "tokens", "weights", "cache", "memory", "ms/step", "longest"]
    heads += ["cache by"] if many else []
    heads += ["decode", "prefill"] if compiled else []
    for index, head in enumerate(heads):
        justify = "left" if index < 2 else "right"
        least = None if index else 9  # or a narrow terminal has no room for a policy's name
        table.add_column(head, justify=justify, no_wrap=index > 0, overflow="fold", min_width=least)
    for row in report["rows"]:
        longest = f"{row['longest']:,}" if row["longest"] is not None else "endless"
        size = f"{row['share']:.0%}{' ' if row['fits'] else '!'}"
        chips = row["mesh"]["data"] * row["mesh"]["model"]
        chip = row["chip"] if chips == 1 else f"{row['chip']}-{chips}"
        cells = [
            row["label"], chip, f"{row['tokens']:,}", _gigabytes(row["weights_bytes"]),
            _gigabytes(row["cache_bytes"]), size, f"{row['step_ms']:.2f}", longest,
        ]  # fmt: skip
        cells += [row["layout"] or ""] if many else []
        if compiled:
            made = row["compiled"]
            cells += [_gigabytes(made[name]["peak_bytes"]) for name in ("decode", "prefill")]
        table.add_row(*cells)
    console = Console()
    if not console.is_terminal:
        console.width = 110  # of a file or a pipe nobody knows a width
    console.print(table)
    best = "ms/step is at best: what a step reads, at the chip's published bandwidth"
    if many:
        best += "; an assumed latency\nfor each collective. GB and memory are of each chip"
    print(best)
    if any(not row["fits"] for row in report["rows"]):
        print("! does not fit")
    for note in dict.fromkeys(row["assumed"] for row in report["rows"] if "assumed" in row):
        print(f"assumed: {note}, as nothing was calibrated for this model")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g}" if count < 1e8 else f"{count / 1e9:.2f}"


def _parser() -> Any:
    parser = make_parser(COMMAND, _DESCRIPTION)
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        type=str,
        default="llama-3.1-8b",
        metavar="NAME",
        help="a published shape, or a folder with config.json (default: llama-3.1-8b)",
    )
    add(
        "--dtype",
        type=str,
        default="bfloat16",
        metavar="TYPE",
        help="float32 or bfloat16, of the weights (default: bfloat16)",
    )
    add_weights(add)
    add = parser.add_argument_group("policy").add_argument
    add_policy(
        add,
        "full",
        f"one or more, with commas: {', '.join(POLICIES)} or module:Class (default: full)",
        "every listed policy that has it",
    )
    add_kv_dtype(add)
    add = parser.add_argument_group("context").add_argument
    add(
        "--tokens",
        type=str | int,
        default="131072",
        metavar="LENGTHS",
        help="of the context, with commas (default: 131072)",
    )
    add("--batch", type=int, default=1, metavar="N", help="rows at once (default: 1)")
    add_prefill_chunk(add, "512, or all where a policy chooses after it")
    add = parser.add_argument_group("devices").add_argument
    add(
        "--chip",
        type=str,
        default="h100",
        metavar="NAMES",
        help=f"with commas, of {', '.join(CHIPS)}, with a count as in v5e-8 (default: h100)",
    )
    add_mesh(add)
    add("--compile", action="store_true", help="compile for the chip: what programs take beside it")
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="the report as one JSON object on stdout")
    add("--out", type=str | None, metavar="FILE.json", help="also write the report there")
    add_plot(add, "memory over the context, with the chips' lines,")
    return parser
