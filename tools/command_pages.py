# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.command_pages`: docs/commands.md, written from the parsers of the commands."""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxkv.__main__ import commands
from jaxkv.calibrate import command as calibrate
from jaxkv.core.files import whole_file
from jaxkv.eval.runner import options as evaluate

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
_BEGIN = """# Commands

`jaxkv COMMAND` and `python -m jaxkv.COMMAND` are the same. Every flag may stand in a YAML file that
`--config` names, and `--version` and `--help` go with all of them. This page is written by
`python -m tools.command_pages`.

```python
import jaxkv.__main__

print(*jaxkv.__main__.commands())
```

```
{names}
```
"""


def page() -> str:
    """The whole text."""
    parts = [_BEGIN.format(names=" ".join(commands()))]
    for name in commands():
        if name == "eval":
            each = {task.name: evaluate._parser(task) for task in evaluate.TASKS.values()}
            parts += _with_kinds(name, evaluate._overview(), each, "task")
        elif name == "calibrate":
            each = {kind: calibrate._parser(found) for kind, found in calibrate.KINDS.items()}
            parts += _with_kinds(name, calibrate._overview(), each, None)
        else:
            parser = _parser(name)
            parts += [_head(name, parser), _table(parser._action_groups)]
    return "\n".join(parts)


def _parser(name: str) -> Any:
    """The parser of a command that has one."""
    for place in (f"{name}.command", f"cli.{name}.options", f"{name}.__main__"):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(f"jaxkv.{place}")._parser()
    raise LookupError(name)


def _with_kinds(name: str, overview: Any, each: dict[str, Any], own: str | None) -> Iterator[str]:
    """A command whose next word chooses a parser: what all of these have, then each one's own."""
    yield _head(name, overview)
    some = next(iter(each.items()))
    yield _table(group for group in some[1]._action_groups if group.title != (own or some[0]))
    for kind, parser in each.items():
        yield f"### `jaxkv {name} {kind}`\n"
        yield f"```text\n{parser.description.rstrip()}\n```\n"
        yield _table(group for group in parser._action_groups if group.title == (own or kind))


def _head(name: str, parser: Any) -> str:
    return f"## `jaxkv {name}`\n\n```text\n{parser.description.rstrip()}\n```\n"


def _table(groups: Iterable[Any]) -> str:
    lines = ["| flag | what it says |", "|---|---|"]
    for group in groups:
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        actions = [a for a in actions if not {"--help", "--version"} & set(a.option_strings)]
        if actions and group.title not in ("positional arguments", "options"):
            lines.append(f"| **{group.title}** | |")
        lines += [f"| `{_spelt(action)}` | {_cell(action.help)} |" for action in actions]
    return "\n".join(lines) + "\n"


def _spelt(action: argparse.Action) -> str:
    """As it is typed, with what follows it."""
    value = action.metavar if action.nargs != 0 else None
    if value is None and action.choices:
        value = ", ".join(map(str, action.choices))
    flag = action.option_strings[-1:] if action.option_strings else []
    return " ".join([*flag, *([str(value)] if value else [])])


def _cell(text: str | None) -> str:
    return (text or "").replace("|", r"\|")


def main() -> None:
    """Writes the page."""
    with whole_file(PAGE) as part:
        part.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
