# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.readme_tables`: figures in a Markdown file, written from committed reports."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxkv.cache.bytes import nbytes
from jaxkv.checkpoints.named import named_config
from jaxkv.cli.arguments import make_parser, parse, read_text
from jaxkv.cli.edge import as_process, one_line_errors
from jaxkv.core import reading
from jaxkv.core.errors import InputError
from jaxkv.core.files import whole_file
from jaxkv.generate.report import summary
from jaxkv.models.decoder import init_cache
from jaxkv.policies.registry import POLICIES, make_policies

COMMAND = "tools.readme_tables"
WIDTH = 100  # of an answer's lines
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
_DESCRIPTION = """Write the tables and figures of a Markdown file from the reports that it names.

A place that is written stands between two comments, which readers of the page do not see:

  <!-- table FILE.json: HEAD = PATH FORMAT | HEAD = PATH FORMAT -->  …  <!-- end -->
  <!-- value FILE.json PATH FORMAT -->  …  <!-- end -->
  <!-- bytes MODEL DTYPE TOKENS POLICY FORMAT -->  …  <!-- end -->
  <!-- answer FILE.json COMMAND -->  …  <!-- end -->

A table has a line for each of the report's rows; of several files, separated by commas, one after
the other. FILE.json[2:5] takes some of them, FILE.json#LIST another list of the report. PATH leads
into a row, or for a value into the report, such as rows.0.cache.physical_bytes; "policy" is its
name and the settings that are not the default or differ in the table. FORMAT is that of Python,
such as .1f, or % (a percentage), share (a fraction as one), MB, GB. Bytes are those of a cache for
a published model's shape, counted here.
An answer is that of `jaxkv.decode --json`, as it stands on a screen.
"""
_PLACE = re.compile(r"(<!-- (table|value|bytes|answer) (.*?) -->)(.*?)(<!-- end -->)", re.DOTALL)

_FILE = re.compile(r"([^\[#]+)(?:#(\w+))?(?:\[(\d*):(\d*)\])?")


def render(text: str, folder: Path = RESULTS) -> str:
    """The same text with every place written anew.

    Args:
      text: Markdown.
      folder: where the reports are.

    Raises:
      InputError: a report is missing, or a place asks for what it does not hold.
    """

    def write(place: re.Match) -> str:
        start, kind, spec, _, end = place.groups()
        if kind == "value":
            return f"{start}{_value(spec, folder)}{end}"
        if kind == "bytes":
            return f"{start}{_bytes(spec)}{end}"
        block = _table(spec, folder) if kind == "table" else _answer(spec, folder)
        return f"{start}\n\n{block}\n\n{end}"

    return _PLACE.sub(write, text)


def _value(spec: str, folder: Path) -> str:
    name, path, *form = spec.split()
    report = _report(folder, name)
    return _format(_at(report, path, name), " ".join(form))


def _bytes(spec: str) -> str:
    import jax

    model, dtype, tokens, policy, form = spec.split()
    config, (policy,) = named_config(model), make_policies(policy, {})
    cache = jax.eval_shape(lambda: init_cache(config, policy, 1, int(tokens), dtype))
    return _format(nbytes(cache), form)


def _answer(spec: str, folder: Path) -> str:
    name, _, command = spec.partition(" ")
    report = _report(folder, name)
    try:
        said = [*report["text"].splitlines(), summary(report)]
    except KeyError as error:
        raise InputError(f"{name} has no {error}; it must be of one answer") from None
    lines = [line for text in said for line in textwrap.wrap(text, WIDTH) or [""]]
    return "\n".join(["```", f"$ {command}", *lines, "```"])


def _table(spec: str, folder: Path) -> str:
    files, _, columns = " ".join(spec.split()).partition(": ")
    rows = [row for name in files.split(",") for row in _rows(folder, name.strip())]
    heads, cells = [], []
    for column in columns.split(" | "):
        head, _, told = column.rpartition(" = ")
        path, _, form = told.strip().partition(" ")
        heads.append(head.strip() or path)
        if path == "policy":
            cells.append(policy_names([row["policy"] for row in rows]))
        else:
            cells.append([_format(_at(row, path, files, None), form) for row in rows])
    lines = [heads, ["---"] * len(heads), *map(list, zip(*cells, strict=True))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    found = _FILE.fullmatch(name)
    if found is None:
        raise InputError(f"report {name!r} must be FILE.json, FILE.json[2:5] or FILE.json#LIST")
    file, of, begin, end = found.groups()
    rows = _at(_report(folder, file), of or "rows", file)
    return rows[int(begin or 0) : int(end) if end else None]


def _report(folder: Path, name: str) -> Any:
    path = folder / name
    where = f"report {path}"
    text = reading.read_text(path, where)
    if path.suffix == ".jsonl":
        return {"rows": [reading.parse_json(line, where) for line in text.splitlines()]}
    return reading.parse_json(text, where)


_MISSING = object()


def _at(value: Any, path: str, where: str, default: Any = _MISSING) -> Any:
    """What a dotted path leads to; keys may be numbers, of lists too."""
    for key in path.split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError):
            if default is _MISSING:
                raise InputError(f"{where} has no {path}; {key!r} is not there") from None
            return default
    return value


def _format(value: Any, form: str) -> str:
    if value is None:
        return ""
    if form in ("MB", "GB"):
        scaled = value / {"MB": 1e6, "GB": 1e9}[form]
        return f"{scaled:,.0f}" if scaled >= 1000 else f"{scaled:.3g}"
    if form == "%":
        return f"{value:.3g} %"
    if form == "share":
        return f"{100 * value:.0f} %"
    return format(value, form)


def policy_names(policies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each by its name, and by the settings that are not the default or not the same in all."""
    return [", ".join([f"`{policy['name']}`", *_settings(policy, policies)]) for policy in policies]


def _settings(policy: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    cls = POLICIES.get(policy["name"])
    defaults = {f.name: f.default for f in dataclasses.fields(cls)} if cls else {}
    same = [other for other in among if other["name"] == policy["name"]]
    for name, value in policy.items():
        # Reports may be older than a setting, or than its end.
        default = defaults.get(name, value) if cls else None
        varied = len({json.dumps(other.get(name, default)) for other in same}) > 1
        if name != "name" and (varied or cls is None or value != default):
            if value is not None:
                yield f"{name} {value:,}" if type(value) is int else f"{name} {value}"


def draw_all(folder: Path) -> list[Path]:
    """Draws each report that has a picture of its name beside it, and gives what was drawn."""
    from jaxkv.cli.figures import save_picture
    from jaxkv.eval.runner.result import from_json
    from jaxkv.eval.runner.task import Task
    from jaxkv.eval.tasks.registry import TASKS

    drawn = []
    for path in sorted(folder.glob("*.png")):
        for report in (path.with_suffix(".json"), path.with_suffix(".jsonl")):
            if not report.exists():
                continue
            rows = _report(folder, report.name)["rows"]
            task = TASKS.get(rows[0].get("task"))
            if task:
                results = [from_json(row) for row in rows]

                def draw(figure: Any, task: Task = task, results: list = results) -> None:
                    task.draw(figure, results)

                save_picture(str(path), draw)
                drawn.append(path)
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; status 1 if `--check` finds a place that is not as its report says."""
    with one_line_errors(COMMAND):
        options, _ = parse(_parser(), list(sys.argv[1:] if arguments is None else arguments))
        text = read_text("--file", options.file)
        new = render(text, Path(options.results))
        if options.check:
            if new != text:
                print(f"{COMMAND}: {options.file} is not as its reports say", file=sys.stderr)
                raise SystemExit(1)
            return
        with whole_file(options.file) as part:
            part.write_text(new, encoding="utf-8")
        print(f"{options.file}: {len(_PLACE.findall(text))} places written")
        for path in draw_all(Path(options.results)) if options.plots else ():
            print(f"{path} drawn")


def _parser() -> Any:
    parser = make_parser(COMMAND, _DESCRIPTION)
    add = parser.add_argument
    add("--file", default="README.md", metavar="FILE.md", help="default: README.md")
    add("--results", default=str(RESULTS), metavar="FOLDER", help="default: benchmarks/results")
    add("--check", action="store_true", help="change nothing; status 1 if it would")
    add("--plots", action="store_true", help="draw the pictures of reports of jaxkv.eval anew")
    return parser


if __name__ == "__main__":
    as_process(main)
