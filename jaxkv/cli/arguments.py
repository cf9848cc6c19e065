# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Command lines and YAML files that say the same thing in the same words.

`--policy NAME --policy.FIELD VALUE` on the command line is

    policy: NAME          or        policy: {name: NAME, FIELD: VALUE}
    policy.FIELD: VALUE

in a file given as `--config`. The command line wins.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxkv import __version__
from jaxkv.core import reading
from jaxkv.core.errors import InputError, one_line
from jaxkv.core.settings import scalar

PREFIX = "--policy."
_MOST_CONFIG = 2**20  # bytes of a file of settings
_MOST_PARTS = 10_000  # values in it, those that aliases repeat counted again
_TYPES = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}


def make_parser(command: str, description: str) -> Any:
    """A parser whose help keeps its line breaks and whose errors are exceptions."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=f"python -m {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    told = f"jaxkv {__version__}"
    parser.add_argument("--version", action="version", version=told, help="print the version")
    return parser


def parse(parser: Any, arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parses a command line, and the YAML file that it names.

    Args:
      parser: from `make_parser`. If it has `--policy`, it may be followed by `--policy.FIELD`s.
      arguments: without the program's name.

    Returns:
      The options, and the policy's fields as plain values.

    Raises:
      InputError: anything that cannot be used, in one line.
    """
    plain, fields = _split(arguments)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    if fields and "--policy" not in flags:
        raise InputError(f"{PREFIX}{next(iter(fields))} is unknown; this command has no policy")
    plain, paths = _take(plain, "--config")
    words: list[str] = []
    if paths:
        settings, more = _read_config(Path(paths[-1]))
        fields = _of_one_policy(settings, plain, more) | fields
        words = _words(parser, settings, plain, "{} in --config")
    return _parsed(parser, words + plain), fields


def parse_settings(parser: Any, settings: Mapping[str, Any]) -> argparse.Namespace:
    """Options of a parser by their names, each checked as its word on a command line is.

    Args:
      parser: from `make_parser`.
      settings: names with underscores, and their values; a list is several. None is the default.

    Raises:
      InputError: in one line, what cannot be used. It names flags as they are typed.
    """
    known = {action.dest for action in parser._actions} - {"help", "version"}
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"{name!r:.80} is unknown; {hint}there are {', '.join(sorted(known))}")
    named = {name.replace("_", "-"): value for name, value in settings.items()}
    return _parsed(parser, _words(parser, named, (), "--{}"))


def _parsed(parser: Any, words: Sequence[str]) -> argparse.Namespace:
    try:
        return parser.parse_args(list(words))
    except InputError:
        raise
    except (argparse.ArgumentError, ValueError, TypeError, RecursionError) as error:
        raise InputError(_readable(parser, one_line(error))) from None


@contextlib.contextmanager
def model_named(name: str) -> Iterator[None]:
    """A model that cannot be used is reported with the flag that named it."""
    try:
        yield
    except InputError as error:
        if str(error).startswith("--"):
            raise
        known = str(error).startswith(("model ", "dtype ", "revision ", "tokenizer "))
        raise InputError(f"{'--' if known else f'--model {name}: '}{error}") from None


def check_positive(given: argparse.Namespace, *names: str) -> None:
    """Options that are given are at least 1.

    Raises:
      InputError: one is not.
    """
    for name in names:
        value = getattr(given, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


def read_text(flag: str, name: str) -> str:
    """The text of a file that a flag names.

    Raises:
      InputError: it cannot be read, is not UTF-8, or holds nothing but blanks.
    """
    text = reading.read_text(name, f"{flag} {name}", reading.MOST_TEXT)
    if not text.strip():
        raise InputError(f"{flag} {name} holds no text")
    return text


def _split(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Takes `--policy.FIELD VALUE` and `--policy.FIELD=VALUE` out of a command line."""
    plain: list[str] = []
    fields: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith(PREFIX):
            plain.append(word)
            continue
        name, equals, value = word.removeprefix(PREFIX).partition("=")
        if not equals:
            if not rest:
                raise InputError(f"{word} needs a value")
            value = rest.pop(0)
        fields[name.replace("-", "_")] = scalar(value)
    return plain, fields


def _take(arguments: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Takes `NAME VALUE` and `NAME=VALUE` out of a command line."""
    plain: list[str] = []
    values: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word.startswith(f"{name}="):
            values.append(word.partition("=")[2])
        elif word == name:
            if not rest:
                raise InputError(f"{name} needs a value")
            values.append(rest.pop(0))
        else:
            plain.append(word)
    return plain, values


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a file, and those of its policy."""
    where = f"--config {path}"
    content = parse_yaml(reading.read_text(path, where, _MOST_CONFIG), where)
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{where} must hold names and their values")
    settings = {key.replace("_", "-"): value for key, value in content.items()}
    fields: dict[str, Any] = {}
    if isinstance(settings.get("policy"), Mapping):
        fields |= {str(key).replace("-", "_"): x for key, x in settings.pop("policy").items()}
        if "name" in fields:
            settings["policy"] = fields.pop("name")
    for key in [key for key in settings if key.startswith("policy.")]:
        fields[key.removeprefix("policy.").replace("-", "_")] = settings.pop(key)
    return settings, fields


def parse_yaml(text: str, where: str) -> Any:
    """The plain data of a YAML text.

    Raises:
      InputError: it is none, or is more than a file of settings can be: an alias of an alias of an
        alias is a short text and a long list.
    """
    import yaml

    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # TypeError: a key
        raise InputError(f"{where} is not YAML: {error}") from None
    waiting, parts = [content], 0
    while waiting:
        part, parts = waiting.pop(), parts + 1
        if parts > _MOST_PARTS:
            raise InputError(f"{where} holds more than {_MOST_PARTS} values")
        if isinstance(part, Mapping):
            waiting += [*part, *part.values()]
        elif isinstance(part, list | tuple | set):
            waiting += part
    return content


def _of_one_policy(
    settings: Mapping[str, Any], plain: Sequence[str], fields: dict[str, Any]
) -> dict[str, Any]:
    """The file's fields, unless the command line names another policy: they are not its own."""
    _, named = _take(plain, "--policy")
    return {} if named and named[-1] != settings.get("policy", named[-1]) else fields


def _words(parser: Any, settings: Mapping[str, Any], plain: Sequence[str], where: str) -> list[str]:
    """Settings as the words of a command line, less those that `plain` overrules.

    So a value is checked, and a mistake reported, the same way wherever it stands; `where` says
    where that is, with {} for the setting's name.
    """
    actions = {
        flag.removeprefix("--"): action
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--")
        and flag not in ("--help", "--version", "--config", f"{PREFIX}FIELD")
    }
    given = {word.partition("=")[0].removeprefix("--") for word in plain if word.startswith("--")}
    rivals = [
        {name for name, action in actions.items() if action in group._group_actions}
        for group in parser._mutually_exclusive_groups
    ]
    words = []
    for name, value in settings.items():
        if name not in actions:
            close = difflib.get_close_matches(name, actions, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            allowed = ", ".join(sorted(actions))
            raise InputError(
                f"--config has the unknown key {name!r:.80}; {hint}it may have {allowed}"
            )
        overruled = name in given or any(name in group and given & group for group in rivals)
        if value is not None and not overruled:
            words += _said(name, actions[name], value, where)
    return words


def _said(name: str, action: argparse.Action, value: Any, where: str) -> list[str]:
    """One setting as words; a list is repeated, or joined by commas if it may not be repeated."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise InputError(f"{where.format(name)} is {value!r:.80}; it must be true or false")
        return [f"--{name}"] if value else []
    values = value if isinstance(value, list | tuple | range) else [value]
    if any(isinstance(part, Mapping | list | tuple) for part in values):
        raise InputError(f"{where.format(name)} is {value!r:.80}; it must be one value or a list")
    texts = [str(part).lower() if isinstance(part, bool) else str(part) for part in values]
    # argparse has no public name for what `action="append"` makes.
    if isinstance(action, argparse._AppendAction) or getattr(action, "_append", False):
        return [f"--{name}={text}" for text in texts]
    return [f"--{name}={','.join(texts)}"]


def _readable(parser: Any, message: str) -> str:
    """The parser's message in the words of the command line."""
    unknown = re.match(r"(?i)unrecognized arguments: (\S+)", message)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        close = difflib.get_close_matches(unknown[1].partition("=")[0], flags, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{unknown[1]} is unknown; {hint}--help lists what there is"
    message = re.sub(r"^argument (--\S+?): ", r"\1: ", message)
    wrong = re.match(r'Parser key "([\w.-]+)": (.*)', message)
    if not wrong:
        return message
    flags = {action.dest: action.option_strings for action in parser._actions}
    flag = (flags.get(wrong[1]) or [wrong[1]])[-1]
    told = re.match(r"(.*?)(?: Given value type: .*?)? (?:Got|Given) value: (.*)", wrong[2])
    kinds = re.findall(r"<class '(\w+)'>", told[1]) if told else []
    allowed = " or ".join(dict.fromkeys(_TYPES[kind] for kind in kinds if kind in _TYPES))
    if not (told and allowed):
        return f"{flag}: {wrong[2]}"
    return f"{flag} is {told[2]!r}; it must be {allowed}"
