# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The tasks by the names that users type. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from jaxkv.eval import (
    attention_maps,
    babilong,
    chain,
    copying,
    heads,
    longbench,
    loogle,
    niah,
    passkey,
    ppl,
    rows,
    ruler,
    streameval,
    streamqa,
)
from jaxkv.eval.task import Task

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        ppl.TASK, passkey.TASK, copying.TASK, rows.TASK, attention_maps.TASK, heads.TASK,
        longbench.TASK, loogle.TASK, babilong.TASK, ruler.TASK, niah.TASK, chain.TASK,
        streameval.TASK, streamqa.TASK,
    )
}  # fmt: skip
