# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""States of a long run, so that it can be stopped at any moment and go on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxkv.core.checksums import check_sums, sums_of
from jaxkv.core.errors import InputError
from jaxkv.core.files import whole_folder
from jaxkv.core.quiet import quiet
from jaxkv.core.reading import read_json

_FORMAT = 2
_NOTE, _ARRAYS = "run.json", "arrays"
_State = TypeVar("_State")  # any pytree of arrays


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """States of one run, each a folder that is written whole or not at all.

    Attributes:
      folder: holds a folder for each state.
      run: what identifies the run, as plain JSON values: a state of another is refused.
      last: how many of the newest are kept.
    """

    folder: Path
    run: Mapping[str, Any]
    last: int = 1

    def save(self, step: int, state: Any) -> None:
        """Writes the state after `step` steps, then drops those that are too old."""
        target = self._at(step)
        if target.exists():
            return
        with whole_folder(target) as part:
            try:
                _write(part.resolve() / _ARRAYS, state)
            except Exception as error:  # orbax raises whatever it meets, a full disk as well
                raise InputError(f"{self.folder} cannot be written: {_line(error)}") from None
            note = {
                "format": _FORMAT, "step": step, "run": dict(self.run), "files": sums_of(part),
            }  # fmt: skip
            (part / _NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        self._drop(keep=self._states()[-self.last :])

    @property
    def newest(self) -> int:
        """The steps before the newest state; 0 if there is none."""
        states = self._states()
        return int(states[-1].name.partition("-")[2]) if states else 0

    def restore(self, like: _State) -> tuple[int, _State]:
        """The newest state and its step; `like` and 0 if there is none.

        Raises:
          InputError: it belongs to a run with other settings, or cannot be read.
        """
        states = self._states()
        if not states:
            return 0, like
        newest = states[-1]
        step = self._check(newest)
        try:
            return step, _read(newest.resolve() / _ARRAYS, like)
        except Exception as error:
            raise InputError(
                f"{newest} is damaged: {_line(error)}; delete it, or give --restart"
            ) from None

    def remove(self) -> None:
        """Deletes them all, and the folder unless it holds something else."""
        self._drop(keep=[])
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _drop(self, keep: Sequence[Path]) -> None:
        """Deletes the other states, and what kills have left of some."""
        for pattern in ("step-*", ".step-*"):
            for old in self.folder.glob(pattern):
                if old not in keep:
                    shutil.rmtree(old, ignore_errors=True)

    def _check(self, newest: Path) -> int:
        try:
            note = read_json(newest / _NOTE)
            known, step = dict(note["run"]), int(note["step"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{newest} is damaged; delete it, or give --restart") from None
        if note.get("format") != _FORMAT:
            raise InputError(f"{newest} is of another version of jaxkv; give --restart")
        try:
            check_sums(newest, note.get("files"))
        except InputError as error:
            raise InputError(f"{error}; delete it, or give --restart") from None
        wanted = json.loads(json.dumps(dict(self.run)))
        for name in {**wanted, **known}:
            if wanted.get(name) != known.get(name):
                raise InputError(
                    f"{self.folder} holds an unfinished run with {name} {known.get(name)!r:.80}, "
                    f"this one has {wanted.get(name)!r:.80}; repeat that command to finish it, or "
                    "give --restart"
                )
        return step

    def _at(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _states(self) -> list[Path]:
        """The whole ones, the newest last; what a kill left half done has another name."""
        return sorted(self.folder.glob("step-*"))


def _named(state: Any) -> dict[str, Array]:
    """The arrays of a state, by names that do not depend on optax's classes."""
    return {f"{index:03d}": leaf for index, leaf in enumerate(jax.tree.leaves(state))}


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _write(path: Path, state: Any) -> None:
    import orbax.checkpoint as ocp

    with (
        quiet("absl", below=logging.CRITICAL),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
    ):
        checkpointer.save(path, args=ocp.args.PyTreeSave(_named(state)))


def _read(path: Path, like: _State) -> _State:
    import orbax.checkpoint as ocp

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
        for name, leaf in _named(like).items()
    }
    with (
        quiet("absl", below=logging.CRITICAL),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
    ):
        how = ocp.checkpoint_utils.construct_restore_args(wanted)
        arrays = checkpointer.restore(path, args=ocp.args.PyTreeRestore(wanted, restore_args=how))
    # Bound to no device, as a new state is: the same compiled program takes it.
    leaves = [jnp.asarray(np.asarray(arrays[name])) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
