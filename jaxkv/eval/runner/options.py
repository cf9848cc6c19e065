# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What is evaluated, and how: from words of a command line, or from keywords of a program."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxkv.cli.arguments import check_positive, make_parser, parse, parse_settings
from jaxkv.cli.devices import add_devices, check_used, devices_of
from jaxkv.cli.figures import check_picture
from jaxkv.cli.flags import (
    KV_DTYPES,
    WEIGHTS,
    add_kv_dtype,
    add_max_length,
    add_model,
    add_plot,
    add_policy,
    add_prefill_chunk,
    check_dtype,
)
from jaxkv.core.errors import InputError
from jaxkv.eval.runner.report import check_report
from jaxkv.eval.runner.task import Common, Task
from jaxkv.eval.tasks.registry import TASKS
from jaxkv.layers.base import Policy
from jaxkv.policies.registry import POLICIES, make_policies, with_budget

COMMAND = "jaxkv.eval"

_DESCRIPTION = """Measure what a small KV cache costs in quality.

tasks (python -m jaxkv.eval TASK --help has each one's flags):
{tasks}

Several policies, separated by commas, give one row each and one plot. Settings of one of them follow
its name after colons; --policy.FIELD VALUE is for every listed policy that has the field.

examples:
  python -m jaxkv.eval ppl --policy full,streaming --tokens 4000 --plot ppl.png
  python -m jaxkv.eval ppl --text-file book.txt --policy window:window=1024,streaming:sinks=1:window=1023
  python -m jaxkv.eval passkey --lengths 512,1024 --depths 5 --policy full,streaming --json
  python -m jaxkv.eval rows --rows rows.jsonl --query-aware
  python -m jaxkv.eval passkey --policy full,snapkv,tova --budgets 64,128,256 --out points.jsonl --plot sweep.png
"""  # noqa: E501


def parse_options(arguments: Sequence[str]) -> tuple[Task, Common, Any]:
    """Reads the command line, and the config file it names.

    Args:
      arguments: without the program's name; the task comes first.

    Returns:
      The task, what every task is told, and the task's own options.

    Raises:
      InputError: in one line, what is wrong and what is allowed.
    """
    if not arguments:
        raise InputError(f"there is no task; choose one of {', '.join(TASKS)}")
    name = arguments[0]
    if name in ("-h", "--help", "--version"):
        _overview().parse_args([name])
    if name.startswith("-"):
        raise InputError(f"the task comes first, before {name}; choose one of {', '.join(TASKS)}")
    task = task_named(name)
    given, fields = parse(_parser(task), arguments[1:])
    check_dtype("--weights", given.weights, WEIGHTS)
    check_used(given)
    if given.hosts is not None and (given.out is not None or given.plot is not None):
        raise InputError("--hosts has several processes, and --out and --plot write from one")
    _check_plot(task, given)
    common = _common(
        given,
        make_policies(given.policy, fields),
        f"python -m {COMMAND} {shlex.join(arguments)}",
        model=given.model,
        dtype=given.dtype,
        weights=given.weights,
        json=given.json,
        plot=given.plot,
        plot_kind=given.plot_kind,
        devices=devices_of(given),
        revision=given.revision,
        tokenizer=given.tokenizer,
    )
    return task, common, task.check(given)


def keyword_options(
    task: str,
    policies: tuple[Policy, ...],
    settings: Mapping[str, Any],
    command: str,
    model: tuple[str, str, str | None],
) -> tuple[Task, Common, Any]:
    """As `parse_options`, of what a program gives.

    Args:
      task: its name.
      policies: before they are sized.
      settings: flags of the task and of `_add_settings`, by their names with underscores.
      command: what was called, for reports.
      model: its name, dtype and weights.

    Raises:
      InputError: in one line, what is wrong and what is allowed. It names flags.
    """
    found = task_named(task)
    parser = make_parser(COMMAND, "")
    found.add_arguments(parser.add_argument)
    _add_settings(*[parser.add_argument] * 4)
    given = parse_settings(parser, settings)
    name, dtype, weights = model
    common = _common(
        given, policies, command, model=name, dtype=dtype, weights=weights, json=False,
        plot=None, plot_kind=None, revision=None, tokenizer=None,
    )  # fmt: skip
    return found, common, found.check(given)


def task_named(name: str) -> Task:
    """A task.

    Raises:
      InputError: there is none of this name.
    """
    if name not in TASKS:
        raise InputError(f"task {name!r} is unknown; choose one of {', '.join(TASKS)}")
    return TASKS[name]


def _common(
    given: argparse.Namespace, policies: tuple[Policy, ...], command: str, **more: Any
) -> Common:
    """The flags of `_add_settings`, checked, with what else every task is told."""
    check_positive(given, "prefill_chunk", "max_length")
    check_dtype("--kv-dtype", given.kv_dtype, KV_DTYPES)
    if given.seed < 0:
        raise InputError(f"--seed is {given.seed}; it must be at least 0")
    if given.out is not None:
        check_report(given.out, given.overwrite)
    return Common(
        policies=_sized(policies, given.budgets),
        kv_dtype=given.kv_dtype,
        prefill_chunk=given.prefill_chunk,
        max_length=given.max_length,
        seed=given.seed,
        out=given.out,
        overwrite=given.overwrite,
        command=command,
        **more,
    )


def _sized(policies: tuple[Policy, ...], budgets: str | int | None) -> tuple[Policy, ...]:
    """Every policy with each of the sizes; one without a size once."""
    if budgets is None:
        return policies
    words = str(budgets).split(",")
    if not all(word.strip().isdigit() and int(word) for word in words):
        raise InputError(f"--budgets is {budgets!r}; it must be tokens such as 64,128,256")
    sized = [with_budget(policy, int(word)) for policy in policies for word in words]
    return tuple(dict.fromkeys(sized))


def _check_plot(task: Task, given: argparse.Namespace) -> None:
    """Before the work: a picture that cannot be drawn should not cost an hour first."""
    if given.plot is not None:
        check_picture("--plot", given.plot)
    kind = given.plot_kind
    if kind is None:
        return
    if given.plot is None:
        raise InputError(f"--plot-kind is {kind!r}, and there is no picture; give --plot FILE")
    if not task.kinds:
        raise InputError(f"--plot-kind is not for {task.name}, which has one picture")
    if kind not in task.kinds:
        raise InputError(
            f"--plot-kind is {kind!r}; of {task.name} it must be one of {', '.join(task.kinds)}"
        )


def _overview() -> Any:
    lines = "\n".join(f"  {task.name:12}{task.summary}" for task in TASKS.values())
    parser = make_parser(COMMAND, _DESCRIPTION.format(tasks=lines))
    parser.add_argument("task", metavar="TASK", help=", ".join(TASKS))
    return parser


def _parser(task: Task) -> Any:
    parser = make_parser(f"{COMMAND} {task.name}", task.description)
    own = parser.add_argument_group("task").add_argument
    task.add_arguments(own)
    add_model(parser.add_argument_group("model").add_argument)
    policy = parser.add_argument_group("policy").add_argument
    add_policy(
        policy,
        "streaming",
        f"one or several of {', '.join(POLICIES)} or module:Class, separated by commas, such as "
        "full,streaming:sinks=1:window=1023 (default: streaming)",
        "every listed policy that has it",
    )
    devices = parser.add_argument_group("devices").add_argument
    output = parser.add_argument_group("output").add_argument
    _add_settings(own, policy, devices, output)
    add_devices(devices)
    output("--json", action="store_true", help="JSON on stdout and nothing else")
    add_plot(output, "the results")
    output(
        "--plot-kind",
        type=str | None,
        metavar="KIND",
        help=f"what --plot draws: {' or '.join(task.kinds) or 'nothing else here'} (default: what "
        "says most)",
    )
    return parser


def _add_settings(
    own: Callable[..., Any],
    policy: Callable[..., Any],
    devices: Callable[..., Any],
    output: Callable[..., Any],
) -> None:
    """The flags of all tasks that are no matter of how the command is used, to their groups."""
    own("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: 0)")
    policy(
        "--budgets",
        type=str | int | None,
        metavar="N,N",
        help="a sweep: every listed policy once with each of these sizes, in tokens that a head "
        "keeps on average (recycled: reads); policies that have no size run once",
    )
    add_kv_dtype(policy)
    add_max_length(
        policy, "for ppl the context that the model was trained for, else what the rows need"
    )
    add_prefill_chunk(devices, "by the task and the length")
    output(
        "--out",
        type=str | None,
        metavar="FILE",
        help="also write the report there, with the machine, versions, date and command: FILE.json "
        "as a whole, FILE.jsonl one line a policy as each is finished. After an interruption the "
        "same command goes on where it was; policies that FILE.jsonl has are not run again",
    )
    output("--overwrite", action="store_true", help="start a report anew that --out already has")
