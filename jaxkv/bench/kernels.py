# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The attention ops alone: each implementation beside the bytes it must move."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxkv.bench.measure import copy_bandwidth, median_seconds
from jaxkv.cli.style import GREY, dress, look, name_once, plain_log, token_log
from jaxkv.core.progress import Progress
from pallas_kernels.decode.api import IMPLEMENTATIONS as DECODE
from pallas_kernels.dispatch import order
from pallas_kernels.int8 import quantise
from pallas_kernels.mass.api import IMPLEMENTATIONS as MASS
from pallas_kernels.pool.api import IMPLEMENTATIONS as POOL
from pallas_kernels.prefill.api import IMPLEMENTATIONS as PREFILL
from pallas_kernels.slots import Slots, split_scale, widen

COLD_BYTES = 2**28  # of different keys and values by turns: none waits in a processor's cache
QUERIES = 512  # of a chunk of prefill
POOL_BLOCK = 32  # slots a block, as in the caches
DENSE = "jax.nn.dot_product_attention"  # the peer: what jax itself offers


@dataclasses.dataclass(frozen=True)
class Shapes:
    """N query heads, K KV heads of H dimensions, their dtype, and whether K and V are int8."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    int8: bool = False

    @property
    def token_bytes(self) -> int:
        """Of one head's key, or value."""
        item = 1 if self.int8 else jnp.dtype(self.dtype).itemsize
        return self.head_dim * item + 4 * self.int8  # and its scale


@dataclasses.dataclass(frozen=True)
class Op:
    """One op over a slab that is full.

    Attributes:
      implementations: by name.
      peer: the same with jax's own op, or None.
      call: (implementation, q [1, T, N, H], k, v, q_pos [1, T], k_pos) -> an array like q.
      queries: T, or the slots if they are fewer.
      moved: (shapes, slots) -> bytes that must be moved once.
    """

    implementations: Mapping[str, Callable[..., Any]]
    peer: Callable[..., Array] | None
    call: Callable[..., Array]
    queries: int
    moved: Callable[[Shapes, int], int]


def compare(
    shapes: Shapes, names: Sequence[str], contexts: Sequence[int], runs: int, progress: Progress
) -> dict[str, Any]:
    """Rows of every op, implementation of this platform, and length.

    An implementation that does not serve a case says why.
    """
    bandwidth = copy_bandwidth()
    cases = [(name, slots) for name in names for slots in contexts]
    rows = []
    for index, (name, slots) in enumerate(cases):
        op = OPS[name]
        moved = op.moved(shapes, slots)
        here = [key for key in order() if key in op.implementations]
        functions = {key: op.implementations[key] for key in here}
        if op.peer is not None:
            functions[DENSE] = op.peer
        args = arguments(op.queries, shapes, slots)
        for key, function in functions.items():
            many = one_after_another(op, function)
            row: dict[str, Any] = {"op": name, "implementation": key, "context": slots}
            try:
                seconds = seconds_of(many, args, runs)
            except NotImplementedError as error:
                rows.append({**row, "refused": str(error)})
                continue
            share = moved / bandwidth / seconds
            rows.append({**row, "us": seconds * 1e6, "bytes": moved, "of_copy_bandwidth": share})
        progress(f"{name} at {slots}", index + 1, len(cases))
    return {**dataclasses.asdict(shapes), "copy_bytes_per_s": bandwidth, "rows": rows}


def seconds_of(many: Callable[..., Array], args: tuple[Any, ...], runs: int) -> float:
    """Of one call of the many, the median."""
    return median_seconds(lambda: jax.block_until_ready(many(*args)), runs) / (len(args[1]) // 2)


def draw(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Time over the length, a panel for each op."""
    rows = [row for row in rows if "us" in row]
    names = list(dict.fromkeys(row["op"] for row in rows))
    figure.set_size_inches(3.4 * max(1, len(names)) + 2.0, 3.6)
    for name, axis in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        mine = [row for row in rows if row["op"] == name]
        for key in dict.fromkeys(row["implementation"] for row in mine):
            line = [row for row in mine if row["implementation"] == key]
            colour, marker = look(key)
            axis.plot(
                [r["context"] for r in line], [r["us"] for r in line], color=colour,
                marker=marker, label=key,
            )  # fmt: skip
        least = {row["context"]: row["us"] * row["of_copy_bandwidth"] for row in mine}
        axis.plot(
            list(least), list(least.values()), color=GREY, linestyle=":",
            label="bytes / copy bandwidth",
        )  # fmt: skip
        axis.set(xlabel="context (tokens)", ylabel="µs", title=f"time of {name}")
        plain_log(axis, "y")
        token_log(axis, list(least))
        dress(axis)
    name_once(figure.axes)


def arguments(queries: int, shapes: Shapes, slots: int) -> tuple[Any, ...]:
    """Of a program of `one_after_another`: queries, many full slabs, and positions."""
    slab = (1, shapes.kv_heads, slots, shapes.head_dim)
    size = 2 * shapes.kv_heads * slots * shapes.token_bytes
    count = min(64, max(2, -(-COLD_BYTES // size)))
    keys = jax.random.split(jax.random.key(0), 2 * count + 1)
    normal = jax.jit(jax.random.normal, static_argnums=(1, 2))
    slabs: list[Slots] = [normal(key, slab, shapes.dtype) for key in keys[: 2 * count]]
    if shapes.int8:
        slabs = [jax.jit(quantise)(x) for x in slabs]
    queries = min(queries, slots)
    q = normal(keys[-1], (1, queries, shapes.heads, shapes.head_dim), shapes.dtype)
    q_pos = slots - queries + jnp.arange(queries, dtype=jnp.int32)[None]
    k_pos = jnp.arange(slots, dtype=jnp.int32)[None, None]
    return q, slabs, q_pos, k_pos


def one_after_another(op: Op, implementation: Callable[..., Any]) -> Callable[..., Array]:
    """A program that makes many calls, each over another slab.

    Where mass is given it is read once more, for the next call to depend on it.
    """
    function = (
        implementation if implementation is op.peer else functools.partial(op.call, implementation)
    )

    @jax.jit
    def many(q: Array, slabs: list[Slots], q_pos: Array, k_pos: Array) -> Array:
        for k, v in zip(slabs[::2], slabs[1::2], strict=True):
            # Each query depends on the result before it, or the calls could be made at once.
            out = function(q, k, v, q_pos, k_pos).astype(q.dtype)
            q = lax.optimization_barrier(q + 1e-6 * out)
        return q

    return many


def _decode(f: Callable[..., Any], q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array):
    out = f(
        q[:, 0], k, v, q_pos[:, 0], k_pos, scale=_scale(q), window=None, sinks=0, q_sink=None,
        with_mass=False,
    )[0]  # fmt: skip
    return out[:, None]


def _decode_mass(f: Callable[..., Any], q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array):
    out, _, mass = f(
        q[:, 0], k, v, q_pos[:, 0], k_pos, scale=_scale(q), window=None, sinks=0, q_sink=None,
        with_mass=True,
    )  # fmt: skip
    return out[:, None] + jnp.max(mass)


def _prefill(f: Callable[..., Any], q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array):
    used = jnp.max(k_pos) + 1  # traced, as it is in a chunk of a prompt
    return f(
        q, k, v, q_pos, k_pos, scale=_scale(q), window=None, sinks=0, num_slots=used
    )[0]  # fmt: skip


def _mass(f: Callable[..., Any], q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array):
    del v
    lse = jnp.full(q.shape[:3], math.log(k_pos.shape[2]), jnp.float32)
    mass = f(q, lse, k, q_pos, k_pos, scale=_scale(q), num_slots=jnp.max(k_pos) + 1)
    return q + jnp.max(mass)


def _pool(f: Callable[..., Any], q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array):
    """The same numbers as blocks of a pool, which belong to the heads by turns."""
    heads, slots = split_scale(k)[0].shape[1:3]
    size = math.gcd(slots, POOL_BLOCK)
    owner = jnp.arange(heads * slots // size, dtype=jnp.int32) % heads
    at = jnp.repeat(k_pos.reshape(-1, size), heads, axis=0).reshape(1, -1)
    k, v = jax.tree.map(lambda x: x.reshape(1, heads * slots, *x.shape[3:]), (k, v))
    out, _ = f(
        q[:, 0], k, v, q_pos[:, 0], at, owner[None], num_kv_heads=heads, scale=_scale(q)
    )  # fmt: skip
    return out[:, None]


def _dense(q: Array, k: Slots, v: Slots, q_pos: Array, k_pos: Array) -> Array:
    """The slab as jax's op wants it, [B, S, K, H]; it masks by what it is given."""
    seen = (k_pos[:, :, None] <= q_pos[:, None, :, None]) & (k_pos >= 0)[:, :, None]
    keys, values = (widen(x).astype(q.dtype).swapaxes(1, 2) for x in (k, v))
    return jax.nn.dot_product_attention(q, keys, values, mask=seen, scale=_scale(q))


def _scale(q: Array) -> float:
    return q.shape[-1] ** -0.5


def _slab_bytes(shapes: Shapes, slots: int, arrays: int, queries: int) -> int:
    """Of keys, and values if `arrays` is 2; of queries and what comes out; and of positions."""
    slab = shapes.kv_heads * slots * shapes.token_bytes
    item = jnp.dtype(shapes.dtype).itemsize
    rows = min(queries, slots) * shapes.heads * shapes.head_dim * item
    return arrays * slab + arrays * rows + 4 * slots


OPS: Mapping[str, Op] = {
    "decode": Op(DECODE, _dense, _decode, 1, lambda shapes, s: _slab_bytes(shapes, s, 2, 1)),
    "decode-mass": Op(
        DECODE, None, _decode_mass, 1,
        lambda shapes, s: _slab_bytes(shapes, s, 2, 1) + 4 * shapes.heads * s,
    ),
    "pool": Op(
        POOL, None, _pool, 1,
        lambda shapes, s: _slab_bytes(shapes, s, 2, 1) + 4 * (shapes.kv_heads - 1) * s,
    ),
    "prefill": Op(
        PREFILL, _dense, _prefill, QUERIES, lambda shapes, s: _slab_bytes(shapes, s, 2, QUERIES)
    ),
    "mass": Op(
        MASS, None, _mass, QUERIES,
        lambda shapes, s: _slab_bytes(shapes, s, 1, QUERIES) + 4 * shapes.heads * s,
    ),
}  # fmt: skip
