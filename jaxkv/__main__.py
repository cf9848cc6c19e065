# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`jaxkv COMMAND`, or `python -m jaxkv COMMAND`: every command under one name."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxkv import __version__
from jaxkv.cli.edge import as_process, one_line_errors
from jaxkv.core.errors import InputError

_USAGE = """usage: jaxkv COMMAND ...

Long-context inference in JAX with KV caches that stay small.

commands (jaxkv COMMAND --help has each one's flags):
{commands}

  jaxkv --version
"""
_NESTED = ("calibrate", "eval")  # whose next word chooses a parser of its own


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the first word names, as `python -m jaxkv.COMMAND` does."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors("jaxkv"):
        if "_ARGCOMPLETE" in os.environ:
            words = _completed_words()
        command = _command(words)
    command(words[1:])


def run() -> None:
    """The console script."""
    as_process(main)


def commands() -> list[str]:
    """Their names."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/__main__.py"))


def _command(words: Sequence[str]) -> Callable[[Sequence[str]], None]:
    if not words or words[0] in ("-h", "--help"):
        return lambda _: print(_overview(), end="")
    name = words[0]
    if name == "--version":
        return lambda _: print(f"jaxkv {__version__}")
    if name not in commands():
        close = difflib.get_close_matches(name, commands(), 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(
            f"command {name!r:.80} is unknown; {hint}there are {', '.join(commands())}"
        )
    return importlib.import_module(f"jaxkv.{name}.__main__").main


def _overview() -> str:
    """The commands with what each says of itself, in the first line of its description."""
    lines = []
    for name in commands():
        described = importlib.import_module(f"jaxkv.{name}.__main__").__doc__ or ""
        lines.append(f"  {name:11}{described.partition(': ')[2].splitlines()[0]}".rstrip())
    return _USAGE.format(commands="\n".join(lines))


def _completed_words() -> list[str]:
    """For a shell that completes a line with argcomplete: its whole words, or the end.

    The command's own parser completes what follows them. The first word is completed here.
    """
    import argcomplete  # pyright: ignore[reportMissingImports]

    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    words = line.split()[1 : None if line[-1:].isspace() else -1]
    if not words:
        parser = argparse.ArgumentParser(prog="jaxkv")
        parser.add_argument("--version", action="version")
        parser.add_argument("command", choices=commands())
        argcomplete.autocomplete(parser)
    own = words[:2] if words[:1] and words[0] in _NESTED else words[:1]
    os.environ["_ARGCOMPLETE"] = str(1 + len(own))  # the words before are not the parser's
    return own


if __name__ == "__main__":
    as_process(main)
