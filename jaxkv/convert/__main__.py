# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.convert SRC DST`: any model to our checkpoint, or to Hugging Face's."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkv.cli.arguments import make_parser
from jaxkv.cli.edge import as_process, one_line_errors
from jaxkv.cli.flags import add_origin, add_weights
from jaxkv.cli.interrupts import raises
from jaxkv.core.errors import InputError

_COMMAND = "jaxkv.convert"
_DESCRIPTION = """Convert a model to a checkpoint of jaxkv, a folder with orbax arrays, or back.

Nothing needs to be converted before it is used: every command takes any source. A checkpoint is
for loading the same model often, in the dtype that you use, or on machines without the original.

examples:
  python -m jaxkv.convert smollm2-135m-instruct ~/models/smollm2 --dtype bfloat16
  python -m jaxkv.convert ./Llama-3.2-1B-Instruct ./llama-1b
  python -m jaxkv.convert ./Llama-3.1-8B-Instruct ./llama-8b --dtype bfloat16 --weights int8
  python -m jaxkv.convert model.Q4_K_M.gguf ./model
  python -m jaxkv.convert ./model ./for-transformers --format hf
  python -m jaxkv.decode --model ./model --prompt "Hello"
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with one line on stderr and status 2."""
    with one_line_errors(_COMMAND, "interrupted, nothing was written"):
        options = _options(arguments)
        o = options
        report = convert(
            o.src, o.dst, o.dtype, o.overwrite, o.format, o.weights, o.revision, o.tokenizer
        )
        if options.json:
            print(json.dumps(report))
        else:
            print(
                f"{report['destination']}: {report['parameters'] / 1e6:.1f}M parameters, "
                f"{report['weights']}, {report['bytes'] / 1e6:.0f} MB, {report['seconds']:.1f} s"
            )


def convert(
    src: str, dst: str, dtype: str = "float32", overwrite: bool = False, format: str = "jaxkv",
    weights: str | None = None, revision: str | None = None, tokenizer: str | None = None,
) -> dict:  # fmt: skip
    """Loads `src` and writes it to `dst`.

    Args:
      src: whatever `sources.load` takes.
      dst: the folder to write, whole or not at all.
      dtype: "float32" or "bfloat16".
      overwrite: whether an earlier checkpoint of ours at `dst` may be replaced.
      format: "jaxkv", or "hf" for a folder that transformers loads.
      weights: see `jaxkv.load`; not for "hf".
      revision, tokenizer: see `jaxkv.load`.

    Returns:
      What was done, in plain values.
    """
    _check_target(Path(dst).expanduser(), overwrite)
    if format == "hf" and weights:
        raise InputError(f"--weights {weights} is for --format jaxkv; Hugging Face's has floats")
    from jaxkv.cache.bytes import nbytes
    from jaxkv.checkpoints import export, orbax
    from jaxkv.checkpoints.sources import load
    from jaxkv.core.progress import bars
    from jaxkv.models.weights import count, form_of

    start = time.perf_counter()
    with raises(), bars() as progress:
        model = load(src, dtype, progress, weights, revision=revision, tokenizer=tokenizer)
        progress("writing", 0, 1)
        if format == "hf":
            export.export_hf(Path(dst).expanduser(), model, progress, overwrite)
        else:
            orbax.save(Path(dst).expanduser(), model)
            progress("writing", 1, 1)
    return {
        "source": src,
        "destination": dst,
        "format": format,
        "dtype": dtype,
        "weights": form_of(model.params) or dtype,
        "parameters": count(model.params),
        "bytes": nbytes(model.params),
        "fingerprint": model.fingerprint,
        "seconds": round(time.perf_counter() - start, 3),
    }


def _check_target(dst: Path, overwrite: bool) -> None:
    from jaxkv.checkpoints.orbax import MARK

    if not dst.exists() and not dst.is_symlink():
        return
    if not overwrite:
        raise InputError(f"DST {dst} exists; give --overwrite to replace it")
    if not (dst / MARK).is_file():
        raise InputError(f"DST {dst} is not a checkpoint of jaxkv; --overwrite replaces only those")


def _parser() -> Any:
    parser = make_parser(_COMMAND, _DESCRIPTION)
    parser.add_argument(
        "src",
        metavar="SRC",
        help="alias (smollm2-135m-instruct, tiny-random), hub id (org/name), folder, .gguf file",
    )
    parser.add_argument("dst", metavar="DST", help="the folder to write")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16"],
        help="of the arrays that are written (default: float32)",
    )
    add_origin(parser.add_argument)
    add_weights(parser.add_argument)
    parser.add_argument(
        "--format",
        default="jaxkv",
        choices=["jaxkv", "hf"],
        help="jaxkv, or hf for a safetensors folder that transformers loads (default: jaxkv)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint at DST")
    parser.add_argument("--json", action="store_true", help="report as one JSON object on stdout")
    return parser


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    try:
        return _parser().parse_args(arguments)
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise InputError(str(error)) from None


if __name__ == "__main__":
    as_process(main)
