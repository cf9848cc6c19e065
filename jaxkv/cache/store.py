# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys or values of a slab, in whatever form they are held: the one place that moves their slots.

A `Store` is a plain array [B, K, S, H], or `Packed`: a small pytree, such as int8 numbers [B, K, S,
H] with their scales [B, K, S]. All of its arrays have the slots on axis 2, so that whatever is done
to slots is done to each of them alike, and who keeps or drops tokens need not know the form.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxkv.core.typing import Positions, SlotKeys
from pallas_kernels import compiler
from pallas_kernels import tpu_layout as order
from pallas_kernels.slots import Slots, widen

UNROLLED = 4  # rows whose writes are spelled out
HEADS, SLOTS = 1, 2  # axes
Arrays = tuple[Array, ...]
T = TypeVar("T")  # a store, or any other pytree of arrays [B, K, S, ..], such as positions


class Packed(abc.ABC):
    """Keys or values in a form of their own: a pytree of arrays [B, K, S, ..].

    No array mixes tokens or heads: a token moves by moving its slot in each of them, bit for bit.
    Zeros in all of them stand for zeros.
    """

    @abc.abstractmethod
    def pack(self, numbers: Array) -> Packed:
        """New keys or values [.., H] in this form, arrays [.., ..]; what it holds is not asked."""

    @abc.abstractmethod
    def slots(self) -> Slots:
        """As the ops of `pallas_kernels` read them, without a copy."""


Store = SlotKeys | Packed


def pack(store: Any, new: Array) -> Any:
    """New keys or values [.., H] in the form of a store: arrays [.., ..]."""
    return store.pack(new) if isinstance(store, Packed) else new.astype(store.dtype)


def as_slots(store: Any) -> Slots:
    """A store as the ops read it."""
    return store.slots() if isinstance(store, Packed) else store


def numbers(store: Any) -> Array:
    """Keys or values as numbers [B, K, S, H]; of a packed store, a copy."""
    return widen(as_slots(store))


def num_heads(store: Any) -> int:
    """K."""
    return jax.tree.leaves(store)[0].shape[HEADS]


def slice(store: T, begin: int, end: int, axis: int = SLOTS) -> T:
    """Slots [begin, end), or heads with `axis` HEADS."""

    def part(x: Array) -> Array:
        whole = begin == 0 and end == x.shape[axis]
        return x if whole else lax.slice_in_dim(x, begin, end, axis=axis)

    return jax.tree.map(part, store)


def heads(store: T, order: Sequence[int]) -> T:
    """Some heads, or all of them in another order."""
    if list(order) == list(range(num_heads(store))):
        return store
    at = jnp.asarray(order, jnp.int32)
    return jax.tree.map(lambda x: jnp.take(x, at, axis=HEADS, mode="clip"), store)


def pad(store: T, before: int, after: int, fill: int = 0) -> T:
    """With so many slots more."""

    def padded(x: Array) -> Array:
        around = [(0, 0), (0, 0), (before, after), *[(0, 0)] * (x.ndim - 3)]
        return jnp.pad(x, around, constant_values=fill)

    return jax.tree.map(padded, store)


def concat(stores: Sequence[T], axis: int = SLOTS) -> T:
    """The slots of several, or their heads, one after the other."""
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=axis), *stores)


def gather(store: T, index: Array, valid: Array | None = None) -> T:
    """Slots of each head.

    Args:
      store: [B, K, S, ..].
      index: int32 [B, K, C].
      valid: bool [B, K, C], where the result is not zero; None is everywhere.

    Returns:
      [B, K, C, ..].
    """

    def taken(x: Array) -> Array:
        lead = (*index.shape, *[1] * (x.ndim - 3))
        found = jnp.take_along_axis(x, index.reshape(lead), axis=SLOTS)
        return found if valid is None else jnp.where(valid.reshape(lead), found, 0)

    return jax.tree.map(taken, store)


def as_tokens(store: T) -> T:
    """Slots in the order of new tokens: [B, K, T, ..] -> [B, T, K, ..], and back."""
    return jax.tree.map(lambda x: x.swapaxes(HEADS, SLOTS), store)


def keep_order(store: T) -> T:
    """Each slab of it as `pallas_kernels.tpu_layout.keep_order` holds it."""
    return jax.tree.map(lambda x: order.keep_order(x) if x.ndim == 4 else x, store)


def write_run(store: T, new: T, start: Array) -> T:
    """New tokens into slots [start, start + T), the same in all rows.

    Args:
      store: [B, K, S, ..].
      new: [B, T, K, ..], packed.
      start: int32 scalar, traced.
    """

    def written(old: Array, new: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(old, new, start, axis=SLOTS)

    return jax.tree.map(written, store, as_tokens(new))


def write_per_head(store: T, new: T, slots: Array) -> T:
    """One new token a row, in each head into a slot of its own.

    Args:
      store: [B, K, S, ..].
      new: [B, K, ..], packed.
      slots: int32 [B, K]; one of S or more drops the token.
    """
    row = jnp.arange(slots.shape[0], dtype=jnp.int32)[:, None]
    head = jnp.arange(slots.shape[1], dtype=jnp.int32)[None]
    return jax.tree.map(lambda x, y: x.at[row, head, slots].set(y, mode="drop"), store, new)


def write(store: T, new: T, slots: Positions, consecutive: bool = False) -> T:
    """New tokens, each into the same slot of all heads.

    Args:
      store: [B, K, S, ..].
      new: [B, T, K, ..], packed.
      slots: int32 [B, T], not negative, distinct within a row; one of S or more drops the token.
      consecutive: see `slab.append`.
    """
    old, tree = jax.tree.flatten(store)
    args = tuple(old), tuple(jax.tree.leaves(new)), slots
    if consecutive or slots.shape[1] == 1:
        written = lax.platform_dependent(*args, tpu=_write_runs, default=_scatter)
    else:
        written = _scatter(*args)
    return jax.tree.unflatten(tree, written)


def _scatter(old: Arrays, new: Arrays, slots: Positions) -> Arrays:
    """New [B, T, K, ..] into old [B, K, S, ..], each token into its slot."""
    new, slots = compiler.never_one(new, slots, old[0].shape[2])
    row = jnp.arange(slots.shape[0], dtype=jnp.int32)[:, None]
    return tuple(x.at[row, :, slots].set(y, mode="drop") for x, y in zip(old, new, strict=True))


def _write_runs(old: Arrays, new: Arrays, slots: Positions) -> Arrays:
    """As `_scatter`, where the valid tokens of each row come first and their slots in a row.

    XLA brings an array to another order in memory, and back, for a scatter on a TPU, and also for
    an update of a single slot: a slab would be copied twice at every step. A tile of slots, read,
    changed and written back, stays where it is.
    """
    count = jnp.sum(slots < old[0].shape[2], axis=1, dtype=jnp.int32)
    return tuple(_write_run(x, y, slots[:, 0], count) for x, y in zip(old, new, strict=True))


def _write_run(old: Array, new: Array, first: Array, count: Array) -> Array:
    size, slots = new.shape[1], old.shape[2]
    width = min(max(size, order.SUBLANES), slots)
    fresh = jnp.moveaxis(new, 1, 2)
    around = [(0, 0), (0, 0), (width, width)] + [(0, 0)] * (old.ndim - 3)
    fresh = jnp.pad(fresh, around)
    sublanes = jnp.int32(order.SUBLANES)
    hold = order.in_stored_order if old.ndim == 4 else lambda x: x

    def write(row: int | Array, old: Array) -> Array:
        begin = first[row] if size > 1 else lax.div(first[row], sublanes) * sublanes
        begin = jnp.minimum(begin, slots - width)
        here = begin + jnp.arange(width, dtype=jnp.int32)
        taken = (here >= first[row]) & (here < first[row] + count[row])
        taken = taken.reshape(1, 1, width, *[1] * (old.ndim - 3))
        offset = width + begin - first[row]
        mine = lax.dynamic_slice_in_dim(fresh, row, 1, 0)
        moved = lax.dynamic_slice_in_dim(mine, offset, width, 2)
        at = tuple(jnp.int32(x) for x in (row, 0, begin, *[0] * (old.ndim - 3)))
        there = lax.dynamic_slice(old, at, (1, old.shape[1], width, *old.shape[3:]))
        return hold(lax.dynamic_update_slice(old, jnp.where(taken, moved, there), at))

    old = hold(old)
    if old.shape[0] > UNROLLED:
        # Of a static length, or there would be no derivative; of int32 whatever the default is.
        return lax.fori_loop(np.int32(0), np.int32(old.shape[0]), write, old)
    for row in range(old.shape[0]):
        old = write(row, old)
    return old
