# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C ends a command with one line, whatever it is doing.

Python raises KeyboardInterrupt wherever the main thread happens to be: in the middle of somebody
else's import it comes out as a traceback of theirs, and while XLA compiles it does not come at all.
So a thread of its own hears the signal, and ends a process that does not end by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

STATUS = 130
_SAID = threading.Lock()
_PATIENCE = 3.0  # seconds to leave what is being done in good order


@contextlib.contextmanager
def ends_at_once(line: str) -> Iterator[None]:
    """While a command gets ready, Ctrl-C writes a line to stderr and ends the process there.

    Does nothing outside the main thread, and where somebody else has chosen what Ctrl-C does.
    """
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: _end(line))
    hears, told = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    ended = threading.Event()
    threading.Thread(target=_listen, args=(hears, line, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        told.close()  # which ends the thread


@contextlib.contextmanager
def raises() -> Iterator[None]:
    """While a command works, Ctrl-C is KeyboardInterrupt, so that what it writes is put away."""
    if not _ours():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    # Not after an exception: one that Ctrl-C raised is on its way to be told.
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Nobody ends the process: Ctrl-C means something else here, such as the end of an answer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)


def _ours() -> bool:
    handler = signal.getsignal(signal.SIGINT)
    return getattr(handler, "__module__", None) == __name__


def _listen(hears: socket.socket, line: str, ended: threading.Event) -> None:
    with hears:
        while received := hears.recv(1):
            if received[0] == signal.SIGINT and not ended.wait(0 if _ours() else _PATIENCE):
                _end(line)


def _end(line: str) -> None:
    # The main thread and the one that listens may both have heard; one of them says it.
    if not _SAID.acquire(blocking=False):
        threading.Event().wait()
    # Not by an exception, and not through Python's streams, which the main thread may hold.
    shown = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides the cursor
    with contextlib.suppress(OSError):
        os.write(2, f"{shown}\n{line}\n".encode())
    os._exit(STATUS)
