# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a calibration is: its flags, a check of them before any work, and the work."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from jaxkv.checkpoints.model import Model
from jaxkv.core.progress import Progress


@dataclasses.dataclass(frozen=True)
class Common:
    """What every calibration is told.

    Attributes:
      model: its name.
      dtype: of the weights.
      weights: "int8" or "int4", of the layers' linear maps; None is `dtype`, or as they were saved.
      out: the file to write.
      plot: where to draw what was found, layers by heads, or None.
      seed: of whatever is drawn.
      command: the command line, kept in the file.
      revision: of the model on the hub; None is its main branch.
      tokenizer: the model that it is of; None is the model's own.
    """

    model: str
    dtype: str
    weights: str | None
    out: str
    plot: str | None
    seed: int
    command: str
    revision: str | None = None
    tokenizer: str | None = None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """One kind.

    Attributes:
      name: what users type.
      description: its help.
      add_arguments: declares flags, given the parser's `add_argument`.
      check: turns parsed flags into its own options; raises InputError.
      run: the work; writes the file, and gives one line that says what was found.
    """

    name: str
    description: str
    add_arguments: Callable[[Callable[..., Any]], None]
    check: Callable[[argparse.Namespace], Any]
    run: Callable[[Model, Common, Any, Progress], str]
