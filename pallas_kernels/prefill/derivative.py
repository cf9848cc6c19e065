# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The derivative of the prefill kernels, which have none of their own: what XLA computes."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array

from pallas_kernels.prefill import xla


def jvp(case: Any, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """What `jax.custom_jvp` asks for, of q, k, v, q_pos, k_pos and slopes or None.

    Args:
      case: `scale`, `window`, `sinks` and `soft_cap`, as in `api.prefill_attention`.
      primals: the inputs; only q, k and v have tangents.
      tangents: one for each; those of integers are numpy's, of no type.
    """
    *inputs, q_pos, k_pos, slopes = primals

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        return xla.prefill_attention(
            q, k, v, q_pos, k_pos,
            scale=case.scale, window=case.window, sinks=case.sinks, num_slots=None,
            slopes=slopes, soft_cap=case.soft_cap,
        )  # fmt: skip

    return jax.jvp(attend, tuple(inputs), tuple(tangents[:3]))
