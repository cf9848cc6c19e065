# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs every notebook top to bottom, as Jupyter does, and looks at what it shows.

`make notebooks` runs it; a name or several run those alone, and `--write` keeps what they showed. A
cell that fails, writes to stderr, or shows more than 100 kB is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent
LARGEST = 100_000  # bytes that a cell may show
PATIENCE = 600  # seconds for a cell
AT_ONCE = 2


def run(path: Path, write: bool) -> list[str]:
    """What is wrong with it, in lines."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=PATIENCE, kernel_name="python3",
            resources={"metadata": {"path": folder}},
        )  # fmt: skip
        try:
            client.execute()
        except CellExecutionError as error:
            return [str(error)]
    wrong = []
    for number, cell in enumerate(notebook.cells):
        shown = cell.get("outputs", [])
        noise = [part["text"] for part in shown if part.get("name") == "stderr"]
        wrong += [f"cell {number} writes to stderr: {text[:300]!r}" for text in noise]
        size = len(json.dumps(shown))
        if size > LARGEST:
            wrong.append(f"cell {number} shows {size:,} bytes; {LARGEST:,} are allowed")
        cell.get("metadata", {}).pop("execution", None)  # times, which are others every time
    if write and not wrong:
        nbformat.write(notebook, path)
    return wrong


def main() -> int:
    """How many failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks, without .ipynb; else all")
    parser.add_argument("--write", action="store_true", help="keep what the cells showed")
    asked = parser.parse_args()
    there = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    assert there, "there are no notebooks"
    os.environ |= {"PYTHONPATH": str(ROOT), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}

    def one(name: str) -> bool:
        began = time.monotonic()
        wrong = run(there[name], asked.write)
        said = "failed" if wrong else "ran"
        print(f"{name}: {said}, {time.monotonic() - began:.0f} s", *wrong, sep="\n  ", flush=True)
        return bool(wrong)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(one, asked.names or there))


if __name__ == "__main__":
    sys.exit(main())
