# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Renders chat templates in a process of its own, which has little memory and little time.

A template is a stranger's program: it comes from a checkpoint. This file is run by itself, so that
nothing but Jinja has to be imported; `template.py` talks to it, a line of JSON each way.
"""

from __future__ import annotations

import datetime
import functools
import json
import signal
import sys
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY = 2**29  # bytes of address space
MOST = 2**26  # characters of a rendered conversation


class Generation(Extension):
    """`{% generation %}` marks what a model is trained on, and changes nothing in the text."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        """What stands between the tags."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class PlainNamespace(Namespace):
    """Jinja's, without names that could lead into Python."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace has no {name!r}")
        super().__setitem__(name, value)


def make_dict(*args: Any, **kwargs: Any) -> dict:
    """`dict(...)` in a template, of which no attribute leads anywhere."""
    return dict(*args, **kwargs)


def raise_exception(message: object) -> None:
    """How templates refuse a conversation."""
    raise TemplateError(str(message))


def tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    """JSON as models saw it: Jinja's own filter is for web pages."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.cache
def environment() -> ImmutableSandboxedEnvironment:
    """The dialect that checkpoints' templates are written in, that of transformers."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "namespace": PlainNamespace,
        "dict": make_dict,
    }
    return made


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> Any:
    """A template's program."""
    return environment().from_string(template)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """`text`, or the `error` that kept it from being made."""
    try:
        text = compiled(request["template"]).render(**request["variables"])
        if len(text) <= MOST:
            text.encode()
            return {"text": text}
        return {"error": f"it makes {len(text)} characters, and at most {MOST} are taken"}
    except MemoryError:
        return {"error": f"it takes more than {MEMORY // 2**20} MB of memory"}
    except Exception as error:  # a stranger's program: anything can come out
        return {"error": str(error)[:400] or type(error).__name__}


def main() -> None:
    """Answers until there is nothing more to read; a word tells how many seconds there are."""
    seconds = int(sys.argv[1])
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # where a process cannot be limited so, there is the time that its parent waits
    print("{}", flush=True)  # ready
    for line in sys.stdin:
        if hasattr(signal, "alarm"):
            signal.alarm(2 * seconds)  # should there be no parent any more
        print(json.dumps(answer(json.loads(line))), flush=True)
        if hasattr(signal, "alarm"):
            signal.alarm(0)


if __name__ == "__main__":
    main()
