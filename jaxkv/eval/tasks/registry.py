# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The tasks by the names that users type. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from jaxkv.eval.pictures import attention_maps, heads
from jaxkv.eval.questions import rows
from jaxkv.eval.runner.task import Task
from jaxkv.eval.tasks import babilong, chain, copying, longbench, loogle, niah, passkey, ppl
from jaxkv.eval.tasks.ruler import task as ruler
from jaxkv.eval.tasks.streams import streameval, streamqa

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        ppl.TASK, passkey.TASK, copying.TASK, rows.TASK, attention_maps.TASK, heads.TASK,
        longbench.TASK, loogle.TASK, babilong.TASK, ruler.TASK, niah.TASK, chain.TASK,
        streameval.TASK, streamqa.TASK,
    )
}  # fmt: skip
