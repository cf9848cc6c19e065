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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxkv.errors import InputError

PREFIX = "--policy."


def make_parser(command: str, description: str) -> Any:
    """A parser whose help keeps its line breaks and whose errors are exceptions."""
    from jsonargparse import ArgumentParser

    return ArgumentParser(
        prog=f"python -m {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
    )


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
    settings: dict[str, Any] = {}
    if "--config" in {name.partition("=")[0] for name in plain}:
        plain, path = _take(plain, "--config")
        settings, more = _read_config(Path(path))
        fields = more | fields
    try:
        known = {action.dest for action in parser._actions}
        for key in settings:
            if key.replace("-", "_") not in known:
                names = ", ".join(sorted(known - {"help", "config", "policy_field"}))
                raise InputError(f"--config has the unknown key {key!r}; it may have {names}")
        defaults = {key.replace("-", "_"): value for key, value in settings.items()}
        checked = parser.parse_object(_positionals(parser, plain) | defaults) if defaults else {}
        parser.set_defaults({key: checked[key] for key in defaults})
        return parser.parse_args(plain), fields
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(" ".join(str(error).split())) from None


def _positionals(parser: Any, plain: Sequence[str]) -> dict[str, Any]:
    """Stand-ins for required arguments, which a file need not repeat."""
    return {
        action.dest: plain[0] if plain else ""
        for action in parser._actions
        if not action.option_strings and action.required
    }


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
        fields[name.replace("-", "_")] = _scalar(value)
    return plain, fields


def _take(arguments: list[str], name: str) -> tuple[list[str], str]:
    for index, word in enumerate(arguments):
        if word.startswith(f"{name}="):
            return arguments[:index] + arguments[index + 1 :], word.partition("=")[2]
        if word == name:
            if index + 1 == len(arguments):
                raise InputError(f"{name} needs a value")
            return arguments[:index] + arguments[index + 2 :], arguments[index + 1]
    raise AssertionError(name)


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import yaml

    if not path.is_file():
        raise InputError(f"--config {path}: there is no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise InputError(f"--config {path} must hold names and their values")
    settings, fields = dict(content), {}
    if isinstance(settings.get("policy"), Mapping):
        fields |= settings.pop("policy")
        if "name" in fields:
            settings["policy"] = fields.pop("name")
    for key in [key for key in settings if key.startswith("policy.")]:
        fields[key.removeprefix("policy.")] = settings.pop(key)
    return settings, fields


def _scalar(text: str) -> Any:
    """A number where it looks like one, else the text as it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    lowered = {"true": True, "false": False, "none": None, "null": None}
    return lowered.get(text.lower(), text)
