# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A layer's budget, dealt out to its heads by where the prompt's attention went."""

from __future__ import annotations

import dataclasses

import jax

from jaxkv.policies.snapkv import SnapKV


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaKV(SnapKV):
    """Ada-KV (arXiv 2407.11550) on SnapKV's scores, per KV head: `SnapKV` with allocation "ada".

    Memory: `budget + decode_room` tokens per KV head on average, one slot for the newest token, and
    the unused end of each head's last block of 16 or 32.
    """

    allocation: str = "ada"
