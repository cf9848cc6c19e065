# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.bench.beside_kvpress`: the same questions to jaxkv and to kvpress on torch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from jaxkv.bench.beside.env import given_python, own_python
from jaxkv.bench.beside.methods import ALL_DIFFER, METHODS, SINKS
from jaxkv.bench.beside.report import by_measure, print_report, side_row, wins
from jaxkv.cli.arguments import check_positive, make_parser, parse
from jaxkv.cli.edge import one_line_errors
from jaxkv.cli.interrupts import raises
from jaxkv.core.errors import InputError
from jaxkv.core.files import check_target, write_json
from jaxkv.core.progress import bars
from jaxkv.core.settings import flags_named
from jaxkv.policies.registry import POLICIES
from jaxkv.policies.snapkv import SnapKV

COMMAND = "jaxkv.bench.beside_kvpress"
SIDES = ("jaxkv", "kvpress")
_OURS = "jaxkv.bench.beside.timed_rows"
_DESCRIPTION = f"""Put the same questions to jaxkv and to kvpress, with the same model in float32 on the CPU.

Both sides get the same token ids and as many threads, and answer greedily; each method of each side
runs in a process of its own, by turns. Without --query-aware the context is compressed before the
question is known.

  score      percentage, by the rows' metric: of references that the answers contain
  kept       tokens that a KV head still sees after the context, mean over layers and heads
  kept MB    their keys and values
  cache MB   what the cache's tensors take then; kvpress keeps masked tokens in them, jaxkv has
             room for the question and what is decoded, and no more
  peak MB    resident memory of the process at its highest: libraries, weights, all
  prefill    seconds for the context, and for repeating it under kvzip; question: until the first
             token of the answer can be chosen
  tokens/s   of decoding after the answer

All but score and tokens are medians over rows and rounds. kvpress gets a Python environment of its
own, made once in the cache folder unless --env names one that has it.

examples:
  python -m {COMMAND} --lengths 512,1024 --budgets 64,128
  python -m {COMMAND} --methods full,snapkv --rows rows.jsonl --query-aware --out beside.json
"""  # noqa: E501


Job = Mapping[str, Any]
Run = Callable[[str, Job], dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with one line on stderr and status 2."""
    with one_line_errors(COMMAND):
        words = list(sys.argv[1:] if arguments is None else arguments)
        options, _ = parse(_parser(), words)
        _check(options)
        with raises():
            python = given_python(options.env) if options.env else None
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            with tempfile.TemporaryDirectory(prefix="jaxkv-beside-") as name:
                made = run_job([sys.executable, "-m", _OURS], _make(options, name), name, True)
                if "failed" in made:
                    raise InputError(made["failed"])
                python = python or own_python()

                def run(side: str, job: Job) -> dict[str, Any]:
                    worker = Path(__file__).parent / "beside" / "worker.py"
                    # Isolated: modules beside the worker are not to be found by their bare names.
                    theirs = [str(python), "-I", str(worker)]
                    ours = [sys.executable, "-m", _OURS]
                    return run_job(ours if side == "jaxkv" else theirs, job, name)

                report = compare(options, {**made, "folder": f"{name}/model"}, run)
        report["load_before"] = load
        report["command"] = f"python -m {COMMAND} {shlex.join(words)}"
        print_report(report)
        if options.out:
            write_json(options.out, report)


def compare(options: argparse.Namespace, made: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """The report: every method of both sides by turns, `--rounds` times.

    Args:
      options: of the command.
      made: what `timed_rows.make_job` gave, and `folder`.
      run: does a job on a side; {"failed": why} if it cannot.
    """
    found: dict[tuple[str, int | None], dict[str, list[dict[str, Any]]]] = {}
    turns = [(case, side) for case in cases(options) for _ in range(options.rounds)
             for side in SIDES]  # fmt: skip
    with bars() as progress:
        for done, (case, side) in enumerate(turns):
            progress("answering", done, len(turns))
            of_case = found.setdefault(case, {side: [] for side in SIDES})
            # What failed once would fail again.
            failed = [before for before in of_case[side] if "failed" in before]
            of_case[side] += failed[:1] or [run(side, job_of(options, made, *case))]
    _score([run for of_sides in found.values() for run in chain(*of_sides.values())], made, run)
    rows = []
    for case, of_sides in found.items():
        rows += [side_row(*case, side, _called(options, *case, side), of_sides) for side in SIDES]
    theirs = [run for of_sides in found.values() for run in of_sides["kvpress"]]
    answered = next((run for run in theirs if "failed" not in run), {})
    told = ("model", "query_aware", "window", "kernel", "threads", "rounds", "tokens", "seed")
    return {
        **{name: getattr(options, name) for name in told},
        "dtype": "float32",
        "cores": os.cpu_count(),
        "rows_from": options.rows or "passkey",
        "context_and_question_tokens": [list(map(len, row["ids"])) for row in made["rows"]],
        "same_prompts": answered.get("same_prompts"),
        **made["where"],
        **answered.get("versions", {}),
        "differs": {"all": ALL_DIFFER, **{x: METHODS[x].differs for x in _names(options)}},
        "rows": rows,
        "measures": by_measure(rows),
        "kvpress_wins": wins(rows, "kvpress"),
        "jaxkv_wins": wins(rows, "jaxkv"),
    }


def _score(runs: Sequence[dict[str, Any]], made: Mapping[str, Any], run: Run) -> None:
    """Adds the score of every answer: both sides' by the same code."""
    good = [one for one in runs if "failed" not in one]
    texts = [[row["text"] for row in one["rows"]] for one in good]
    found = run("jaxkv", {"do": "score", "rows": made["rows"], "texts": texts})
    if "failed" in found:
        raise InputError(found["failed"])
    for one, scores in zip(good, found["scores"], strict=True):
        for row, score in zip(one["rows"], scores, strict=True):
            row["score"] = score


def cases(options: argparse.Namespace) -> list[tuple[str, int | None]]:
    """Methods and budgets; the full cache has none."""
    budgets = _numbers("--budgets", options.budgets)
    return [
        (name, budget)
        for name in _names(options)
        for budget in ([None] if name == "full" else budgets)
    ]


def job_of(
    options: argparse.Namespace, made: Mapping[str, Any], method: str, budget: int | None
) -> dict[str, Any]:
    """What either side is told."""
    told = ("query_aware", "tokens", "threads", "window", "kernel")
    return {
        "do": "answer",
        **{name: made[name] for name in ("folder", "rows", "eos", "streaming")},
        **{name: getattr(options, name) for name in told},
        "method": method,
        "policy": {
            "name": method,
            **METHODS[method].fields(budget or 0, options),
            **_decode_room(method, options, made),
        },
        "budget": budget,
        "sinks": SINKS,
    }


def _decode_room(
    method: str, options: argparse.Namespace, made: Mapping[str, Any]
) -> dict[str, int]:
    """Room for what comes after the choice, and no more, where a policy has room to be set."""
    if "decode_room" not in {field.name for field in dataclasses.fields(POLICIES[method])}:
        return {}
    after = [
        row["max_new_tokens"] + (0 if options.query_aware else len(row["ids"][1]))
        for row in made["rows"]
    ]
    return {"decode_room": max(after) + options.tokens + 1}


def run_job(command: Sequence[str], job: Job, folder: str, tell: bool = False) -> dict[str, Any]:
    """Does a job in a process of its own.

    Args:
      command: takes the paths of the job and of the result.
      job: plain data.
      folder: where both are put.
      tell: whether what the process says on stderr is passed on.

    Returns:
      The result, or {"failed": the last thing that the process said}.
    """
    source, target = Path(folder, "job.json"), Path(folder, "result.json")
    target.unlink(missing_ok=True)
    write_json(source, job)
    quiet = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if tell:  # a model may have to come from the hub
        del quiet["HF_HUB_OFFLINE"]
    last, error = "", f"{_OURS}: error: "
    with subprocess.Popen(
        [*command, str(source), str(target)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, errors="replace", env=os.environ | quiet,
    ) as process:  # fmt: skip
        try:
            for line in process.stderr or ():
                last = line.strip() or last
                if tell and not last.startswith(error):
                    print(line, end="", file=sys.stderr, flush=True)
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0 and target.is_file():
        return json.loads(target.read_text(encoding="utf-8"))
    if process.returncode < 0:
        return {"failed": f"ended by signal {-process.returncode}"}
    return {"failed": last.removeprefix(error) or f"ended with status {process.returncode}"}


def _called(options: argparse.Namespace, method: str, budget: int | None, side: str) -> str:
    """What a side's library calls the method, with its settings."""
    if side == "kvpress":
        return METHODS[method].press
    fields = METHODS[method].fields(budget or 0, options)
    return " ".join([method, *(f"{name}={value}" for name, value in fields.items())])


def _make(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    return {
        "do": "make",
        "model": options.model,
        "folder": f"{folder}/model",
        "rows": options.rows,
        "lengths": _numbers("--lengths", options.lengths),
        **{name: getattr(options, name) for name in ("depths", "rows_per_cell", "seed")},
    }


def _names(options: argparse.Namespace) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in options.methods.split(",")))
    for name in names:
        if name not in METHODS:
            raise InputError(f"--methods has {name!r}; each must be one of {', '.join(METHODS)}")
    return names


def _numbers(flag: str, text: str | int) -> list[int]:
    words = [word.strip() for word in str(text).split(",")]
    if not all(word.isdigit() and int(word) for word in words):
        raise InputError(f"{flag} is {text!r}; it must be tokens such as 64,128")
    return list(dict.fromkeys(map(int, words)))


def _check(options: argparse.Namespace) -> None:
    check_positive(options, "depths", "rows_per_cell", "rounds", "threads")
    for name, allowed in {"tokens": 8, "seed": 0}.items():
        value = getattr(options, name)
        if value < allowed:
            raise InputError(f"--{name} is {value}; it must be at least {allowed}")
    _numbers("--lengths", options.lengths)
    for _, budget in cases(options):
        if budget is not None and budget < max(options.window, SINKS + 1):
            raise InputError(
                f"--budgets has {budget}; each must be at least the window of {options.window} "
                f"tokens, and more than {SINKS} sinks"
            )
    with flags_named():
        SnapKV(budget=max(options.window, 1), window=options.window, kernel=options.kernel)
    if options.rows is not None and not Path(options.rows).is_file():
        raise InputError(f"--rows {options.rows} cannot be read: it is no file")
    if options.out:
        check_target("--out", options.out)


def _parser() -> Any:
    parser = make_parser(COMMAND, _DESCRIPTION)
    add = parser.add_argument
    add("--model", default="smollm2-135m-instruct", metavar="NAME", help="as for jaxkv.decode")
    add(
        "--methods",
        type=str,
        default=",".join(METHODS),
        metavar="NAMES",
        help="with commas (default: %(default)s)",
    )
    add(
        "--budgets",
        type=str | int,
        default="64,128",
        metavar="N,N",
        help="tokens of a context that a KV head keeps (default: 64,128)",
    )
    add(
        "--lengths",
        type=str | int,
        default="512,1024",
        metavar="N,N",
        help="of pass-key prompts, in tokens (default: 512,1024)",
    )
    add("--depths", type=int, default=5, metavar="N", help="of the number (default: 5)")
    add(
        "--rows-per-cell",
        type=int,
        default=1,
        metavar="N",
        help="rows of each length and depth (default: 1)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the rows (default: 0)")
    add("--rows", type=str | None, metavar="FILE", help="JSON or JSONL as for jaxkv.eval rows")
    add("--query-aware", action="store_true", help="the question is part of the context")
    add("--window", type=int, default=32, metavar="N", help="of snapkv and its kin (default: 32)")
    add("--kernel", type=int, default=7, metavar="N", help="of snapkv and its kin (default: 7)")
    add("--tokens", type=int, default=32, metavar="N", help="decoded for the time (default: 32)")
    add("--rounds", type=int, default=2, metavar="N", help="processes of each case (default: 2)")
    add("--threads", type=int, default=2, metavar="N", help="of either side (default: 2)")
    add(
        "--env",
        type=str | None,
        metavar="FOLDER",
        help="a virtual environment with kvpress and torch (default: one of our own)",
    )
    add("--out", type=str | None, metavar="FILE.json", help="also write all figures there")
    return parser


if __name__ == "__main__":
    # As Ctrl-C does: what runs beside is ended, and the folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
