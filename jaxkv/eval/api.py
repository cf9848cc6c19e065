# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One call from a model and a task to results; the command is a shell around it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.progress import Progress, bars
from jaxkv.eval.results import Results
from jaxkv.eval.runner import report
from jaxkv.eval.runner.options import keyword_options
from jaxkv.eval.runner.task import Common, Task
from jaxkv.layers.base import Policy
from jaxkv.models.weights import form_of
from jaxkv.policies.registry import check_policy_given, describe, label, make_policies

_FLAG = re.compile(r"--([a-z]+(?:-[a-z]+)*)")


def evaluate(
    model: Model | str | os.PathLike[str],
    task: str,
    *,
    policies: Any = "streaming",
    budgets: Any = None,
    **settings: Any,
) -> Results:
    """Measures what a small cache costs in quality, as `python -m jaxkv.eval` does.

    After each policy all compiled programs of the process are let go of, your own too, or a long
    list of policies would fill the memory.

    Args:
      model: a loaded model, or a name that `jaxkv.load` takes.
      task: one of the command's, such as "ppl", "passkey", "niah", "ruler" or "rows".
      policies: a policy, or a list of them: each is one, or a text such as
        "full,streaming:sinks=1:window=1023". Each gives one result.
      budgets: a sweep, such as (64, 128): every policy with each of these sizes, in tokens that a
        head keeps on average. Policies that have no size run once.
      **settings: flags of the task, with underscores, such as `lengths=(512, 1024)` or
        `query_aware=True`, and of all tasks: kv_dtype, prefill_chunk, max_length, seed, out and
        overwrite. `python -m jaxkv.eval TASK --help` says what they are.

    Raises:
      InputError: in one line, what is wrong and what is allowed.
    """
    loaded = model if isinstance(model, Model) else None
    with keywords_named():
        listed = _policies(policies)
        command = _called(model, task, listed, {"budgets": budgets, **settings})
        chosen = keyword_options(
            task, listed, {"budgets": budgets, **settings}, command, _known(model)
        )
        with bars() as progress:
            return run(*chosen, progress, loaded)


def run(
    task: Task, common: Common, own: Any, progress: Progress, model: Model | None = None
) -> Results:
    """From checked settings to results, which is all that the command and `evaluate` do.

    Args:
      task: what is measured.
      common: what every task is told; which model, unless one is given.
      own: the task's options.
      progress: called with what is being done.
      model: one that is loaded.
    """
    if model is None:
        model = common.devices.load(
            common.model, common.dtype, progress, common.weights, common.revision,
            common.tokenizer,
        )  # fmt: skip
    found = report.evaluate(task, model, common, own, progress)
    return Results(task.name, common.model, common.command, tuple(found))


@contextlib.contextmanager
def keywords_named() -> Iterator[None]:
    """Makes "--max-length is 0; ..." into "max_length is 0; ...": the word of a program."""
    try:
        yield
    except InputError as error:
        message = _FLAG.sub(lambda found: found[1].replace("-", "_"), str(error))
        raise InputError(message) from None


def _policies(given: Any) -> tuple[Policy, ...]:
    found: list[Policy] = []
    for one in given if isinstance(given, list | tuple) else [given]:
        found += make_policies(one, {}) if isinstance(one, str) else [check_policy_given(one)]
    if not found:
        raise InputError("policies is empty; it must have one or more")
    return tuple(found)


def _known(model: Model | str | os.PathLike[str]) -> tuple[str, str, str | None]:
    """What tells a model from others: its name, and the types of its weights."""
    if isinstance(model, Model):
        return model.name, str(model.params["embed"].dtype), form_of(model.params)
    return os.fspath(model), "float32", None


def _called(model: Any, task: str, policies: Sequence[Policy], given: Mapping[str, Any]) -> str:
    """The call, for reports: the same again gives the same."""
    told = ",".join(label(describe(policy)).replace(" ", ":") for policy in policies)
    words = [repr(_known(model)[0]), repr(task), f"policies={told!r}"]
    for name, value in given.items():
        if value is not None:
            plain = os.fspath(value) if isinstance(value, os.PathLike) else value
            words.append(f"{name}={plain!r}")
    return f"jaxkv.evaluate({', '.join(words)})"
