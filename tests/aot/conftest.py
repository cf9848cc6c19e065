# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Counts the programs that were compiled, for which chips, and prints it at the end.

The first program of each kernel on each chip is `brief`: what a second version of jax compiles.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator

import gpu
import pytest
import tpu

PROPERTY = "compiled for"
COUNTS: collections.Counter[str] = collections.Counter()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seen = set()
    for item in items:
        if (kernel := item.get_closest_marker("kernel")) and isinstance(item, pytest.Function):
            params = item.callspec.params
            which = kernel.args, params.get("chip", "h100"), params.get("mass")
            if which not in seen:
                item.add_marker(pytest.mark.brief)
            seen.add(which)


@pytest.fixture(autouse=True)
def counted(record_property: Callable[[str, object], None]) -> Iterator[None]:
    before = len(tpu.COMPILED), len(gpu.COMPILED)
    yield
    for chip in tpu.COMPILED[before[0] :] + gpu.COMPILED[before[1] :]:
        record_property(PROPERTY, chip)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # What a fixture records comes with the last report of a test, also from another process.
    if report.when == "teardown":
        COUNTS.update(chip for name, chip in report.user_properties if name == PROPERTY)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    chips = ", ".join(f"{count} for {chip}" for chip, count in sorted(COUNTS.items()))
    if chips:
        terminalreporter.write_line(f"{COUNTS.total()} programs compiled: {chips}")
