# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""An endless chat: every turn goes into the same cache, which never grows."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import signal
import sys
from collections.abc import Callable, Iterator

from jaxkv.checkpoints.model import Model
from jaxkv.cli.decode.once import keep, resume, show
from jaxkv.cli.decode.options import Options
from jaxkv.cli.interrupts import unheard
from jaxkv.core.errors import InputError, say
from jaxkv.generate.prompts import prompt_ids
from jaxkv.generate.running import running
from jaxkv.generate.session import Session
from jaxkv.models.decoder import geometry
from jaxkv.text.chat import next_turn
from jaxkv.text.stops import Row

PROMPT = "> "
TURN = 128  # tokens that a turn is expected to have: the prefill chunk is chosen for it
LONG_TURN = 512  # the same for policies that choose after every call


def chat(options: Options, model: Model, load_s: float) -> None:
    """Reads turns from stdin until it ends. Ctrl-C stops an answer, Ctrl-D the chat."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing for input()

    settings = options.settings
    in_chat = model.tokenizer.chat_template is not None if options.chat is None else options.chat
    # A full cache is as long as the model's context; the others do not grow.
    length = settings.max_length or model.config.max_positions
    settings = dataclasses.replace(settings, max_length=length)
    if options.load_cache:
        session = resume(options, model, load_s)
        if session.state.cache.geometry.batch_size != 1:
            raise InputError(f"--load-cache {options.load_cache} holds several streams, not one")
    else:
        whole = running(settings.policy, geometry(model.config, 1, 1)).whole_prompt
        longest = max(1, min(LONG_TURN if whole else TURN, length - 1))
        session = Session.begin(model, settings, 1, longest, load_s=load_s)
    say("Ctrl-C stops an answer, Ctrl-D ends the chat.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 ends no chat
    with unheard():
        talk(options, session, in_chat)
    if options.save_cache and session.longest:
        keep(options.save_cache, session)


def talk(options: Options, session: Session, in_chat: bool) -> None:
    """Turn by turn, until there are no more."""
    model, tokenizer = session.model, session.model.tokenizer
    first = not options.load_cache
    while (prompt := _ask()) is not None:
        if not prompt.strip():
            continue
        if first:
            ids = prompt_ids(
                model, prompt, chat=in_chat, answer_prefix=options.answer_prefix,
                system=options.system,
            )  # fmt: skip
        else:
            ended = bool(session.closed[0])
            ids = next_turn(
                tokenizer, prompt, chat=in_chat, ended=ended, answer_prefix=options.answer_prefix
            )
        room = session.room
        if room is not None and len(ids) >= room:
            raise InputError(
                f"the full cache has room for {room} tokens and this turn needs {len(ids)}; "
                "choose a policy that evicts for an endless chat"
            )
        _turn(session, ids)
        first = False


def _ask() -> str | None:
    try:
        line = input(PROMPT if sys.stdin.isatty() else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return ""
    try:
        line.encode()
    except UnicodeEncodeError:
        say("that line is not UTF-8 text; say it again")
        return ""
    return line


def _turn(session: Session, ids: list[int]) -> None:
    """Answers one turn on stdout."""
    row = Row(session.model.tokenizer, session.settings.stop)
    with _interrupt() as interrupted:
        session.feed([ids])
        for new in session.run(session.settings.max_new_tokens):
            show(row.feed(int(i) for i in new[0] if i >= 0))
            if row.stopped or interrupted():
                break
    show(row.finish() + "\n")


@contextlib.contextmanager
def _interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag in here: an exception could lose a cache that was just donated."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
