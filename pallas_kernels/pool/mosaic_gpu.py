# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Pool attention as one launch of the Hopper decode kernel, in which the heads' slots lie mixed.

A product of tensor cores has 64 rows whatever is asked of it: the queries of all heads meet every
block of slots, and see what is their head's own.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array

from pallas_kernels.decode.mosaic_gpu import attend
from pallas_kernels.derivative import with_derivative_of
from pallas_kernels.gpu import refuse
from pallas_kernels.pool import xla
from pallas_kernels.pool.spans import Span, within
from pallas_kernels.slots import Slots, parts_of
from pallas_kernels.softmax import merge_along
from pallas_kernels.visibility import visible


@functools.partial(with_derivative_of, xla.pool_attention)
def pool_attention(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array, owner: Array,
    *, num_kv_heads: int, scale: float, slopes: Array | None = None,
    soft_cap: float | None = None, span: Span | None = None, max_block: int | None = None,
    interpret: Any = None,
) -> tuple[Array, Array]:  # fmt: skip
    """See `api.pool_attention`, and for the rest `decode.mosaic_gpu.decode_attention`."""
    (keys, k_scale), (values, v_scale) = parts_of(k), parts_of(v)
    k_pos = within(span, k_pos, owner.shape[1])
    refuse(q, keys=keys, values=values)
    out, lse = attend(
        q, keys[:, None], values[:, None],  # one head that has all slots: no key moves
        [x[:, None] for x in (k_scale, v_scale) if x is not None],
        visible(q_pos[:, None, None], k_pos[:, None], 0, None),
        jnp.repeat(owner, k_pos.shape[1] // owner.shape[1], axis=1),
        (q_pos[:, None] - k_pos)[:, None], scale=scale, slopes=slopes, soft_cap=soft_cap,
        with_mass=False, mixed=num_kv_heads, max_block=max_block, interpret=interpret,
    )  # fmt: skip
    out, lse = merge_along(out, lse, axis=1)
    return out.reshape(q.shape).astype(q.dtype), lse.reshape(q.shape[:2])
