# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line of `python -m jaxkv.bench`."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from typing import Any

from jaxkv.cli.arguments import check_positive, make_parser, parse
from jaxkv.cli.devices import add_mesh, check_used, devices_of
from jaxkv.cli.figures import check_picture
from jaxkv.cli.flags import (
    KV_DTYPES,
    WEIGHTS,
    add_model,
    add_plot,
    add_policy,
    add_prefill_chunk,
    check_dtype,
)
from jaxkv.cli.interrupts import raises
from jaxkv.cli.startup import prepare
from jaxkv.core.errors import InputError, say
from jaxkv.core.files import check_target, write_json
from jaxkv.core.settings import flags_named
from jaxkv.layers.base import Policy
from jaxkv.policies.registry import POLICIES, label, make_policies

COMMAND = "jaxkv.bench"
_DESCRIPTION = """Time decoding, prefill, a long stream, or the attention ops alone.

`roofline` is the time in which the device reads the weights and the kept keys and values once, at
the bandwidth of plain matrix-vector products measured in the same run, over the time of a step.

`kernels` times each op over a full cache, and gives the share of the bandwidth at which the device
copies: each implementation that this device has, and jax.nn.dot_product_attention.

examples:
  python -m jaxkv.bench decode --policy full,streaming --contexts 1000,6000 --plot decode.png
  python -m jaxkv.bench decode --policy streaming,recompute
  python -m jaxkv.bench decode --contexts 6000 --kv-dtype float32,int8,int4
  python -m jaxkv.bench prefill --contexts 6000 --beside transformers
  python -m jaxkv.bench stream --policy streaming --tokens 50000 --fed
  python -m jaxkv.bench kernels --contexts 8192,131072 --heads 32,8,128 --dtype bfloat16
  python -m jaxkv.bench kernels --contexts 8192 --heads 32,8,128 --dtype bfloat16 --tune
"""


def run(words: Sequence[str]) -> None:
    """Measures what a command line asks for.

    Args:
      words: without the program's name.

    Raises:
      InputError: in one line, what is wrong and what is allowed.
      SystemExit: with 1, where something is slower than it was asked to be.
    """
    options, fields = parse(_parser(), words)
    _check(options)
    policies = make_policies(options.policy, fields)
    prepare()
    with raises(), flags_named(["cache-layout"]):
        result = _run(options, policies)
    result["command"] = f"python -m {COMMAND} {shlex.join(words)}"
    if options.tune:
        from jaxkv.bench.tune import write

        result["written"] = str(write(result))
    print(json.dumps(result)) if options.json else _show(result)
    if options.out:
        write_json(options.out, result)
    if options.plot:
        _plot(options, result)
    failed = _failures(options, result)
    for line in failed:
        say(f"{COMMAND}: {line}")
    if failed:
        raise SystemExit(1)


def _run(options: argparse.Namespace, policies: tuple[Policy, ...]) -> dict[str, Any]:
    from jaxkv.bench.measure import matvec_bandwidth
    from jaxkv.bench.runs import stream
    from jaxkv.core.machine import where
    from jaxkv.core.progress import bars

    with bars() as progress:
        if options.task == "kernels":
            return {"task": options.task, **where(), **_kernels(options, progress)}
        devices = devices_of(options)
        model = devices.load(
            options.model, options.dtype, progress, options.weights, options.revision,
            options.tokenizer,
        )  # fmt: skip
        result: dict[str, Any] = {"task": options.task, "model": options.model, **where()}
        if options.task == "stream":
            rows = [
                stream(model, policy, options.tokens, options.fed, progress) for policy in policies
            ]
            return {**result, "rows": rows}
        result["matvec_bytes_per_s"] = bandwidth = matvec_bandwidth()
        return {**result, **_compare(options, policies, model, bandwidth, progress)}


def _kernels(options: argparse.Namespace, progress: Any) -> dict[str, Any]:
    from jaxkv.bench import kernels

    heads, kv_heads, head_dim = _numbers("--heads", options.heads, 3)
    shapes = kernels.Shapes(heads, kv_heads, head_dim, options.dtype, options.int8)
    names = list(kernels.OPS) if options.ops is None else options.ops.split(",")
    for name in names:
        if name not in kernels.OPS:
            raise InputError(f"--ops has {name!r}; each must be one of {', '.join(kernels.OPS)}")
    compare = kernels.compare
    if options.tune:
        from jaxkv.bench.tune import tune as compare
        from pallas_kernels import tuned

        check_target("--tune", str(tuned.file_of(tuned.device_kind())))
    return compare(shapes, names, _contexts(options), options.runs, progress)


def _compare(
    options: argparse.Namespace,
    policies: tuple[Policy, ...],
    model: Any,
    bandwidth: float,
    progress: Any,
) -> dict[str, Any]:
    """Every policy and the peer in turn, round after round, so that noise falls on all alike."""
    from jaxkv.bench.peer import Peer
    from jaxkv.bench.runs import Runner, random_prompt

    peer = Peer(model) if options.beside else None
    rows: list[dict[str, Any]] = []
    decoding = options.task == "decode"
    for context in _contexts(options):
        prompt = random_prompt(model, context)
        runners = [
            Runner.make(model, policy, prompt, options.tokens, options.prefill_chunk, form)
            for policy in policies
            for form in _forms(options)
        ]
        for run in range(options.runs):
            for runner in runners:
                if not decoding or run:
                    runner.prefill()
                if decoding:
                    runner.decode()
            if peer:
                peer.run(prompt, options.tokens if decoding else 1)
            progress(f"{context} tokens of context", run + 1, options.runs)
        for runner in runners:
            row = runner.row(bandwidth)
            if peer:
                theirs = peer.row(context)
                name = "step_ms" if decoding else "prefill_s"
                row |= {"transformers": theirs, "speedup": theirs[name] / row[name]}
            rows.append(row)
    return {"rows": rows, **({"versions": peer.versions} if peer else {})}


def _plot(options: argparse.Namespace, result: dict[str, Any]) -> None:
    from jaxkv.bench import kernels, plot
    from jaxkv.cli.figures import save_picture

    draw = kernels.draw if options.task == "kernels" else plot.draw
    save_picture(options.plot, lambda figure: draw(figure, result["rows"]))


def _failures(options: argparse.Namespace, result: dict[str, Any]) -> list[str]:
    """What falls short of the bars that were asked for."""
    bars = {"speedup": options.min_speedup, "roofline": options.min_roofline}
    return [
        f"{name} {row[name]:.2f} of {row['policy']['name']} at {row['context']} tokens is below "
        f"{least}"
        for row in result["rows"]
        for name, least in bars.items()
        if least is not None and name in row and row[name] < least
    ]


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    forms = {row.get("kv_dtype") for row in result["rows"]}
    heads = {
        "op": lambda row: row.get("op"),
        "implementation": lambda row: row.get("implementation"),
        "policy": lambda row: label(row["policy"]) if "policy" in row else None,
        "context": lambda row: row.get("context"),
        "cache of": lambda row: row.get("kv_dtype") if len(forms) > 1 else None,
        "µs": lambda row: _number(row.get("us")),
        "MB": lambda row: _number(row["bytes"] / 1e6) if "bytes" in row else None,
        "of copies": lambda row: (
            f"{row['of_copy_bandwidth']:.0%}" if "of_copy_bandwidth" in row else None
        ),
        "block": lambda row: (row["block"] or "as before") if "block" in row else None,
        "before µs": lambda row: _number(row.get("before_us")),
        "refused": lambda row: row.get("refused"),
        "step ms": lambda row: _number(row.get("step_ms")),
        "mean ms": lambda row: _number(row.get("mean_step_ms")),
        "tokens/s": lambda row: _number(row.get("tokens_per_s")),
        "roofline": lambda row: f"{row['roofline']:.0%}" if "roofline" in row else None,
        "prefill s": lambda row: _number(row.get("prefill_s"), 2),
        "cache MB": lambda row: (
            _number(row["cache"]["physical_bytes"] / 1e6) if "cache" in row else None
        ),
        "transformers": lambda row: (
            _number(row["transformers"].get("step_ms", row["transformers"]["prefill_s"] * 1e3))
            if "transformers" in row
            else None
        ),
        "speedup": lambda row: _number(row.get("speedup"), 2),
        "third 1000 ms": lambda row: _number(row.get("third_thousand_ms"), 2),
        "last 1000 ms": lambda row: _number(row.get("last_thousand_ms"), 2),
        "ratio": lambda row: _number(row.get("ratio"), 3),
        "MB start/end": lambda row: (
            f"{row['bytes_at_start'] / 1e6:.3f}/{row['bytes_at_end'] / 1e6:.3f}"
            if "bytes_at_start" in row
            else None
        ),
        "compiled": lambda row: row.get("backend_compilations_after_start"),
    }
    cells = [[get(row) for get in heads.values()] for row in result["rows"]]
    used = [i for i in range(len(heads)) if any(row[i] is not None for row in cells)]
    what = result.get("model") or result["dtype"]
    if result.get("int8"):
        what += " over int8"
    table = Table(title=f"{result['task']}, {what}, {result['device']}")
    for i in used:
        table.add_column(list(heads)[i])
    for row in cells:
        table.add_row(*("" if row[i] is None else str(row[i]) for i in used))
    Console().print(table)
    if "written" in result:
        print(f"kept in {result['written']}")
    if "copy_bytes_per_s" in result:
        print(f"copy bandwidth {result['copy_bytes_per_s'] / 1e9:.1f} GB/s")
    if "matvec_bytes_per_s" in result:
        print(f"matrix-vector bandwidth {result['matvec_bytes_per_s'] / 1e9:.1f} GB/s")


def _number(value: float | None, digits: int = 1) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _forms(options: argparse.Namespace) -> list[str | None]:
    """Of keys and values."""
    return [None] if options.kv_dtype is None else options.kv_dtype.split(",")


def _contexts(options: argparse.Namespace) -> list[int]:
    return _numbers("--contexts", options.contexts, None)


def _numbers(flag: str, text: str | int, count: int | None) -> list[int]:
    try:
        numbers = [int(word) for word in str(text).split(",")]
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers) or count not in (None, len(numbers)):
        wanted = "lengths such as 1000,6000" if count is None else "N,K,H such as 32,8,128"
        raise InputError(f"{flag} is {text!r}; it must be {wanted}")
    return numbers


def _check(options: argparse.Namespace) -> None:
    if options.task not in ("decode", "prefill", "stream", "kernels"):
        raise InputError(f"TASK is {options.task!r}; it must be decode, prefill, stream or kernels")
    check_dtype("--dtype", options.dtype)
    check_dtype("--weights", options.weights, WEIGHTS)
    for form in _forms(options):
        check_dtype("--kv-dtype", form, KV_DTYPES)
    if options.kv_dtype is not None and options.task not in ("decode", "prefill"):
        raise InputError(f"--kv-dtype is for decode and prefill, not for {options.task}")
    heads, kv_heads, _ = _numbers("--heads", options.heads, 3)
    if heads % kv_heads:
        raise InputError(f"--heads is {options.heads!r}; N must be a multiple of K")
    alone = options.task == "kernels"
    check_used(options)
    if devices_of(options).many and alone:
        raise InputError("--mesh is not for kernels, which are timed on one device")
    for name in ("ops", "int8", "tune"):
        if getattr(options, name) not in (None, False) and not alone:
            raise InputError(f"--{name} is for kernels, not for {options.task}")
    if options.tune and options.plot:
        raise InputError("--plot draws what is measured without --tune")
    if options.plot is not None and options.task == "stream":
        raise InputError("--plot is not for stream, which has no line over the context")
    for name in ("beside", "min_speedup", "min_roofline"):
        if getattr(options, name) is not None and alone:
            raise InputError(f"--{name.replace('_', '-')} is not for kernels")
    check_positive(options, "tokens", "runs")
    if options.task == "decode" and options.tokens < 17:
        raise InputError(f"--tokens is {options.tokens}; decoding is timed over at least 17")
    if options.task == "stream" and options.tokens < 4000:
        raise InputError(f"--tokens is {options.tokens}; a stream takes at least 4000")
    if options.beside not in (None, "transformers"):
        raise InputError(f"--beside is {options.beside!r}; it must be transformers")
    contexts = set(_contexts(options))
    if options.plot and not alone and len(contexts) < 2:
        raise InputError(
            f"--plot draws lines over the context and --contexts is {options.contexts}; it must be "
            "two lengths or more (one will do for kernels)"
        )
    if options.out:
        check_target("--out", options.out)
    if options.plot:
        check_picture("--plot", options.plot)


def _parser() -> Any:
    parser = make_parser(COMMAND, _DESCRIPTION)
    parser.add_argument("task", metavar="TASK", type=str, help="decode, prefill, stream or kernels")
    add_model(parser.add_argument_group("model").add_argument)
    add = parser.add_argument_group("policy").add_argument
    add_policy(
        add,
        "full",
        f"one or more, with commas: {', '.join(POLICIES)} or module:Class (default: full)",
        "every listed policy that has it",
    )
    add(
        "--kv-dtype",
        type=str | None,
        metavar="TYPES",
        help="of keys and values, with commas: float32, bfloat16, int8, int4 (default: that of the "
        "weights)",
    )
    add = parser.add_argument_group("decode, prefill and stream").add_argument
    add(
        "--contexts",
        default="1000",
        type=str | int,
        metavar="LENGTHS",
        help="tokens of prompt, with commas (default: 1000)",
    )
    add("--tokens", type=int, default=49, metavar="N", help="decoded in each run (default: 49)")
    add("--fed", action="store_true", help="stream: all but the timed end goes in as a prompt")
    add("--runs", type=int, default=5, metavar="N", help="of each case (default: 5)")
    add_prefill_chunk(add, "by its length, at most 512")
    add("--beside", type=str | None, metavar="PEER", help="transformers: time its generate too")
    add("--min-speedup", type=float | None, metavar="X", help="fail (status 1) below this")
    add("--min-roofline", type=float | None, metavar="X", help="fail (status 1) below this")
    add = parser.add_argument_group("kernels").add_argument
    add(
        "--heads",
        type=str,
        default="9,3,64",
        metavar="N,K,H",
        help="query heads, KV heads, dimensions (default: 9,3,64, the default model's)",
    )
    add("--int8", action="store_true", help="keys and values as int8, with scales")
    add(
        "--tune",
        action="store_true",
        help="find the fastest block sizes and keep them for this kind of device",
    )
    add("--ops", type=str | None, metavar="NAMES", help="which (default: all)")
    add_mesh(parser.add_argument_group("devices").add_argument)
    add = parser.add_argument_group("output").add_argument
    add_plot(add, "time, and memory of caches, over the context")
    add("--out", type=str | None, metavar="FILE", help="also write the JSON there")
    add("--json", action="store_true", help="JSON on stdout instead of a table")
    return parser
