# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What the tests themselves rest on: who shares a process, and how much is kept on disk."""

from __future__ import annotations

from pathlib import Path

import compiling
import pytest
from policy_cases import CASES
from sharing import group


def test_the_laws_of_a_policy_share_a_process() -> None:
    laws = "tests/test_laws.py::test_"
    assert group(f"{laws}jit_changes_nothing[snapkv]") == group(f"{laws}finite[5-snapkv-share]")
    assert group(f"{laws}x[streaming]") != group(f"{laws}x[streaming-plus]")
    assert group(f"{laws}x[snapkv]") != group("tests/test_saved.py::test_a_kept_cache[snapkv]")
    groups = {group(f"{laws}x[{name}]") for name in CASES}
    assert len(groups) == len({type(case.policy) for case in CASES.values()})


def test_a_file_shares_a_process_and_programs_ahead_of_time_share_nothing() -> None:
    assert group("tests/test_rope.py::test_a") == group("tests/test_rope.py::test_b[full]")
    assert group("tests/test_rope.py::test_a") != group("tests/test_slab.py::test_a")
    aot = "tests/aot/test_gpu_programs.py::test_"
    assert group(f"{aot}a[1]") != group(f"{aot}a[2]")


@pytest.mark.parametrize(("most", "stays"), [(100, True), (99, False)])
def test_programs_are_dropped_when_there_are_too_many(
    most: int, stays: bool, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(compiling, "MOST_BYTES", most)
    folder = tmp_path / "programs"
    compiling.drop_if_large(folder)  # not there yet
    (folder / "jax").mkdir(parents=True)
    size = sum(path.stat().st_size for path in folder.rglob("*"))  # of the folder within
    monkeypatch.setattr(compiling, "MOST_BYTES", most + size)
    (folder / "jax" / "one").write_bytes(b"x" * 100)
    compiling.drop_if_large(folder)
    assert folder.exists() == stays
