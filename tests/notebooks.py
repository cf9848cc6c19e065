# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs the code of every notebook, top to bottom, on eight devices that a CPU plays.

`python tests/notebooks.py` is `make notebooks`. A cell that fails ends it with its traceback.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAGIC = re.compile(r"^(\s*)[%!].*$", re.M)  # of IPython: what they install is installed


def code_of(notebook: Path) -> str:
    """Its code cells, one after the other; a magic line does nothing."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sources, f"{notebook} has no code"
    return "\n\n".join(MAGIC.sub(r"\1pass", source) for source in sources)


def main() -> int:
    """How many failed."""
    failed, found = 0, sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert found, "there are no notebooks"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    for notebook in found:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / f"{notebook.stem}.py"
            script.write_text(code_of(notebook), encoding="utf-8")
            done = subprocess.run([sys.executable, str(script)], cwd=folder, env=environment)
        failed += done.returncode != 0
        said = "failed" if done.returncode else "ran"
        print(f"{notebook.name}: {said}, {time.monotonic() - began:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
