# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a layer holds whose KV heads are not all kept alike: a cache for each group of heads."""

from __future__ import annotations

from typing import Any

import flax.struct

from jaxkv.cache.exported import exportable


@exportable
@flax.struct.dataclass
class Grouped:
    """The caches of a layer's head groups.

    Groups are kept apart and never padded to one shape: the padding would cost what a small budget
    saves.

    Attributes:
      slabs: one cache for each group that has heads: a `Slab`, or whatever its policy keeps.
      heads: the KV heads of each of them, in the order of its cache. A static partition.
    """

    slabs: tuple[Any, ...]
    heads: tuple[tuple[int, ...], ...] = flax.struct.field(pytree_node=False)
