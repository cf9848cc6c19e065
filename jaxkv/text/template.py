# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A conversation in a checkpoint's chat template, rendered where it can do no harm."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxkv.core.errors import InputError

MOST_TEMPLATE = 2**20  # bytes; published ones have at most some thousand
_WORKER = Path(__file__).with_name("template_worker.py")
_SECONDS = 5  # for one conversation
_STARTING = 30  # for the process to be there, on a machine that has much to do
_MOST_REPLY = 2**29  # bytes; what the worker lets through is less


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes.

    Args:
      template: Jinja source, in transformers' dialect.
      variables: what it may use, plain data.

    Raises:
      InputError: it refuses them, or takes more time or memory than a template may.
    """
    if len(template) > MOST_TEMPLATE:
        raise InputError(
            f"the model's chat template has {len(template)} characters; at most {MOST_TEMPLATE} "
            "are taken"
        )
    try:
        request = json.dumps({"template": template, "variables": variables})
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"a message cannot be put into a chat template: {error}") from None
    reply = _worker().ask(request)
    if "text" not in reply:
        reason = " ".join(reply.get("error", "").split())
        raise InputError(f"the model's chat template refuses this conversation: {reason}")
    return reply["text"]


@functools.cache
def _worker() -> Worker:
    worker = Worker()
    atexit.register(worker.end)
    return worker


class Worker:
    """The process that renders; begun when it is first needed, and again after it was killed."""

    def __init__(self) -> None:
        self._process: Any = None
        self._lock = threading.Lock()

    def ask(self, request: str) -> dict[str, str]:
        """The worker's answer to a line of JSON.

        Raises:
          InputError: there is none in time.
        """
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    self.end()
                    self._process = self._begin()
                    self._line(_STARTING)  # it is there
                self._process.stdin.write(request.encode() + b"\n")
                self._process.stdin.flush()
                return json.loads(self._line(_SECONDS))
            except BaseException:
                self.end()  # what is still on its way belongs to no one
                raise

    def end(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            process.stdout.close()
            try:
                process.stdin.close()
            except BrokenPipeError:
                pass

    def _begin(self) -> Any:
        return subprocess.Popen(
            # Not with this folder on the path: its modules are not to be found by bare names.
            [sys.executable, "-P", str(_WORKER), str(_SECONDS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us
        )  # fmt: skip

    def _line(self, wait: int) -> bytes:
        handle = self._process.stdout.fileno()
        until, parts, size = time.monotonic() + wait, [], 0
        while not parts or not parts[-1].endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                raise InputError(f"the model's chat template takes longer than {wait} seconds")
            part = os.read(handle, 2**20)
            size += len(part)
            if not part or size > _MOST_REPLY:
                raise InputError("the model's chat template ended the process that renders it")
            parts.append(part)
        return b"".join(parts)
