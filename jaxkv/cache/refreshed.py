# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Everything, and beside it the copies that most steps read in its place."""

from __future__ import annotations

import flax.struct
from jax import Array

from jaxkv.cache.exported import exportable
from jaxkv.cache.slab import Slab


@exportable
@flax.struct.dataclass
class Refreshed:
    """What a layer keeps whose decode steps read a part, and now and then all of it.

    Attributes:
      full: everything.
      part: copies of some of it.
      steps: int32 [B], decode steps since the prompt.
      full_steps: int32 [B], how many of them read everything.
      stride: int32 [B], steps from one full step, or one check, to the next.
    """

    full: Slab
    part: Slab
    steps: Array
    full_steps: Array
    stride: Array
