# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""An endless chat: every turn goes into the same cache, which never grows."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import select
import signal
import sys
from collections.abc import Callable, Iterator

from jaxkv.checkpoints.model import Model
from jaxkv.cli.decode.once import keep, resume, show
from jaxkv.cli.decode.options import Options
from jaxkv.cli.decode.slash import is_command, obey
from jaxkv.cli.decode.talk import Talk
from jaxkv.cli.interrupts import unheard
from jaxkv.core.errors import InputError, say
from jaxkv.core.progress import waiting
from jaxkv.generate.prompts import prompt_ids
from jaxkv.generate.running import running
from jaxkv.generate.session import Session
from jaxkv.models.decoder import geometry
from jaxkv.text.chat import next_turn
from jaxkv.text.stops import Row

PROMPT = "> "
TURN = 128  # tokens that a turn is expected to have: the prefill chunk is chosen for it
LONG_TURN = 512  # the same for policies that choose after every call
PASTE = 0.05  # seconds at most between lines that were pasted; nobody types as fast


def chat(options: Options, model: Model, load_s: float) -> None:
    """Reads turns from stdin until it ends. Ctrl-C stops an answer, Ctrl-D the chat."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing for input()

    model.tokenizer.require()
    settings = options.settings
    # A full cache is as long as the model's context; the others do not grow.
    length = settings.max_length or model.config.max_positions
    settings = dataclasses.replace(settings, max_length=length)
    whole = running(settings.policy, geometry(model.config, 1, 1)).whole_prompt
    longest = max(1, min(LONG_TURN if whole else TURN, length - 1))

    def begin() -> Session:
        with waiting("compiling"):
            if options.load_cache:
                return resume(options, model, load_s)
            return Session.begin(model, settings, 1, longest, load_s=load_s)

    talk = Talk.of(options, begin)
    if talk.session.state.cache.geometry.batch_size != 1:
        raise InputError(f"--load-cache {options.load_cache} holds several streams, not one")
    say("Ctrl-C stops an answer, Ctrl-D ends the chat, /help tells the rest.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 ends no chat
    with unheard():
        while (prompt := _ask()) is not None:
            if is_command(prompt):
                obey(talk, prompt)
            elif prompt.strip():
                _turn(talk, prompt)
    if options.save_cache and talk.session.longest:
        keep(options.save_cache, talk.session)


def _ask() -> str | None:
    """A message: a line, or on a terminal all lines that arrive at once, as of what is pasted."""
    shown = sys.stdin.isatty()
    try:
        line = "\n".join([input(PROMPT if shown else ""), *(_at_once() if shown else ())])
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


def _at_once() -> Iterator[str]:
    """Further lines that a terminal has already; where it does not mark what is pasted, that is."""
    with contextlib.suppress(EOFError):  # the message before it is one all the same
        while select.select([sys.stdin], [], [], PASTE)[0]:
            yield input()


def _turn(talk: Talk, prompt: str) -> None:
    """Answers one turn on stdout."""
    session, options = talk.session, talk.options
    ids = _ids(talk, prompt)
    row = Row(session.model.tokenizer, session.settings.stop)
    with _interrupt() as interrupted, waiting("thinking") as answered:
        session.feed([ids])
        for new in session.run(session.settings.max_new_tokens):
            answered()
            show(row.feed(int(i) for i in new[0] if i >= 0))
            if row.stopped or interrupted():
                break
    show(row.finish() + "\n")
    talk.said(prompt, options.answer_prefix + row.text, len(ids), len(row.ids))


def _ids(talk: Talk, prompt: str) -> list[int]:
    """What is fed of a turn."""
    session, options = talk.session, talk.options
    model, prefix = session.model, options.answer_prefix
    in_chat = model.tokenizer.chat_template is not None if options.chat is None else options.chat
    if talk.fresh:
        ids = prompt_ids(model, prompt, chat=in_chat, answer_prefix=prefix, system=options.system)
    else:
        ended = bool(session.closed[0])
        ids = next_turn(model.tokenizer, prompt, chat=in_chat, ended=ended, answer_prefix=prefix)
    room = session.room
    if room is not None and len(ids) >= room:
        raise InputError(
            f"the full cache has room for {room} tokens and this turn needs {len(ids)}; "
            "choose a policy that evicts for an endless chat"
        )
    return ids


@contextlib.contextmanager
def _interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag in here: an exception could lose a cache that was just donated."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
