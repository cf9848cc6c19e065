# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.api_page`: docs/api.md, every public name with what its docstring says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxkv
from jaxkv.core.files import whole_file

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
_BEGIN = """# Every public name

What stands here are the docstrings, written by `python -m tools.api_page`. Names that are not here
are no promise.

```python
import jaxkv

print(len(jaxkv.__all__), "names")
```

```
{count} names
```
"""
_GROUP = re.compile(r"^    # (.*?)\.$\n((?:^    \".*$\n)+)", re.M)


def groups() -> Iterator[tuple[str, list[str]]]:
    """The groups of `__all__`, as its source tells them."""
    source = (ROOT / "jaxkv" / "__init__.py").read_text(encoding="utf-8")
    begin = source.index("__all__ = [")
    for title, names in _GROUP.findall(source[begin : source.index("]  # fmt: skip", begin)]):
        yield title, re.findall(r'"(\w+)"', names)


def page() -> str:
    """The whole text."""
    parts = [_BEGIN.format(count=len(jaxkv.__all__))]
    for title, names in groups():
        parts.append(f"## {title}\n")
        parts += [_entry(name, getattr(jaxkv, name)) for name in names]
    return "\n".join(parts)


def _entry(name: str, value: Any) -> str:
    where = value.__module__.replace(".", "/")
    told = inspect.cleandoc(value.__doc__ or "")
    return (
        f"### `jaxkv.{name}`\n\n```text\n{_call(name, value)}\n\n{told}\n```\n\n"
        f"[{where}.py](../{where}.py)\n"
    )


def _call(name: str, value: Any) -> str:
    """Its parameters and their defaults; what they are, the docstring says."""
    if getattr(value, "_is_protocol", False) or (
        inspect.isclass(value) and issubclass(value, Exception)
    ):
        return name
    words, star = [], False
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            words.append("*")
            star = True
        mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        star |= parameter.kind is parameter.VAR_POSITIONAL
        default = parameter.default
        shown = default.__name__ if inspect.isfunction(default) else repr(default)
        given = "" if default is parameter.empty else f"={shown}"
        words.append(f"{mark.get(parameter.kind, '')}{parameter.name}{given}")
    return f"{name}({', '.join(words)})"


def main() -> None:
    """Writes the page."""
    with whole_file(PAGE) as part:
        part.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
