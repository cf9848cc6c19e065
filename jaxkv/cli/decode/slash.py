# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What is said to the chat itself, and not to the model: `/help` and its like."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxkv.cli.decode.talk import Talk
from jaxkv.core.errors import InputError, one_line, say
from jaxkv.core.files import check_target, write_json
from jaxkv.generate.report import summary
from jaxkv.policies.registry import describe

# A path, such as /etc/hosts, is something to say to a model.
_COMMAND = re.compile(r"/([a-z]+)(?:[ \t]+(.*?))?[ \t]*")


def is_command(line: str) -> bool:
    """Whether it is for the chat; a blank before the slash makes it a message."""
    return _COMMAND.fullmatch(line) is not None


def obey(talk: Talk, line: str) -> None:
    """Does what a command says; what is wrong with it is one line, and the chat goes on."""
    found = _COMMAND.fullmatch(line)
    assert found is not None
    name, argument = found[1], found[2] or ""
    try:
        if name not in _COMMANDS:
            close = difflib.get_close_matches(name, _COMMANDS, 1)
            hint = f"did you mean /{close[0]}? " if close else ""
            raise InputError(f"/{name} is unknown; {hint}/help lists what there is")
        _COMMANDS[name][1](talk, argument)
    except (ValueError, OSError) as error:
        say(one_line(error))


def _help(talk: Talk, argument: str) -> None:
    del talk, argument
    for name, (told, _) in _COMMANDS.items():
        usage = f"/{name}{' FILE' if name == 'save' else ''}"
        say(f"  {usage:12}{told}")
    say("Lines that are pasted are one message. A blank before a / makes it one, too.")


def _reset(talk: Talk, argument: str) -> None:
    del argument
    talk.reset()
    kept = talk.options.load_cache
    say(f"as {kept} was" if kept else "all is forgotten")


def _stats(talk: Talk, argument: str) -> None:
    del argument
    counts = {"prompt_tokens": talk.fed, "new_tokens": talk.made}
    say(summary({**talk.session.stats(talk.made), **counts}))


def _policy(talk: Talk, argument: str) -> None:
    del argument
    session = talk.session
    fields = dict(describe(session.settings.policy))
    told = " ".join([str(fields.pop("name")), *(f"{key}={x}" for key, x in fields.items())])
    kept = [n for layer in session.stats(0)["cache"]["kept_tokens"][0] for n in layer]
    if kept:
        least, most = min(kept), max(kept)
        told += f": of {session.longest} tokens a head keeps "
        told += str(most) if least == most else f"{least} to {most}"
    say(told)


def _save(talk: Talk, argument: str) -> None:
    if not argument:
        raise InputError("/save needs the name of a FILE")
    path = Path(argument).expanduser()
    check_target("/save", str(path))
    write_json(path, talk.turns)
    say(f"{path}: {len(talk.turns)} messages, for --messages")


_COMMANDS: Mapping[str, tuple[str, Callable[[Talk, str], None]]] = {
    "help": ("this list", _help),
    "reset": ("forget what was said", _reset),
    "stats": ("tokens, their speed, and the cache", _stats),
    "policy": ("what is kept, and how much that is now", _policy),
    "save": ("write what was said to FILE, as --messages FILE takes it", _save),
}
