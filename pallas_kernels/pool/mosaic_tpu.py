# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Pool attention as one launch of the TPU's decode kernel, in which the heads' slots lie mixed.

The queries of all heads meet every block of slots, and see what is their head's own: so few rows
cost the matrix unit no more than a head's, and blocks of any owner are read in long runs.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax import Array

from pallas_kernels.decode.mosaic_tpu import attend
from pallas_kernels.derivative import with_derivative_of
from pallas_kernels.pool import xla
from pallas_kernels.pool.spans import Span, within
from pallas_kernels.slots import Slots, split_scale
from pallas_kernels.tpu import check_dtypes
from pallas_kernels.tpu_layout import Order, stored_order


@functools.partial(with_derivative_of, xla.pool_attention)
def pool_attention(
    q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array, owner: Array,
    *, num_kv_heads: int, scale: float, slopes: Array | None = None,
    soft_cap: float | None = None, span: Span | None = None, max_block: int | None = None,
    interpret: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
    """See `api.pool_attention`, and for the rest `decode.mosaic_tpu.decode_attention`."""
    # One head that has all slots: in memory it is the same.
    (keys, k_scale), (values, v_scale) = split_scale(k), split_scale(v)
    k_pos = within(span, k_pos, owner.shape[1])
    check_dtypes(q, keys, values)
    scales = [x[:, None] for x in (k_scale, v_scale) if x is not None]
    keys, values = keys[:, None], values[:, None]  # one head that has all slots: no key moves
    order = stored_order(keys.shape, keys.dtype.itemsize)
    if order is Order.HEADS_DIMS:
        keys, values = keys.swapaxes(2, 3), values.swapaxes(2, 3)
    out, lse = attend(
        q, keys, values, scales, q_pos, k_pos[:, None],
        jnp.repeat(owner, k_pos.shape[1] // owner.shape[1], axis=1), scale=scale, window=None,
        sinks=0, q_sink=None, with_mass=False, slopes=slopes, soft_cap=soft_cap,
        mixed=num_kv_heads, dims_first=order is Order.HEADS_DIMS, max_block=max_block,
        interpret=interpret,
    )  # fmt: skip
    return out, lse
