# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Which tests go to the same process: those that share models and compiled programs."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

# The laws of a policy share its programs, whatever its settings; there are many policies.
_POLICIES = re.compile(
    r"\[.*?\b(streaming-plus|streaming|full|window|recompute|duo|snapkv|pyramidkv|headkv|adakv"
    r"|recycled|h2o|tova|chunkkv|compactor|cur|lagkv|keydiff|knorm|random|own-keydiff"
    r"|own-expected|own-outputs)\b"
)
_OF_POLICIES = ("test_laws.py", "test_families.py::test_laws", "test_saved.py::test_a_kept")
LONGEST = ("test_streams", "test_golden", "test_eval", "test_generate", "test_likelihood")


def group(test: str) -> str:
    """Of a test: its file or its policy; what is compiled ahead of time shares nothing."""
    file = test.partition("::")[0]
    if "/aot/" in file:
        return test
    policy = _POLICIES.search(test) if any(part in test for part in _OF_POLICIES) else None
    return f"{file} {policy[1]}" if policy else file


class ByGroup(LoadScopeScheduling):
    """xdist's own scheduling by group goes by names that pytest 9.2 no longer takes."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
