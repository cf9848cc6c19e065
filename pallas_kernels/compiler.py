# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Every workaround for what a compiler does, in one place.

Each says what happens without it, the version of jax that it was last seen with, and the test that
tells when it may go: take it out, and if that test still passes, it is no longer needed. What a TPU
does with the order of axes is in `order`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.loops import loop
from pallas_kernels.precision import einsum

T = TypeVar("T")
C = TypeVar("C")

# XLA's CPU backend prefers vectors of 256 bits where a core has 512: a prompt took 8 % longer.
# jax 0.10.2; `python -m jaxkv.bench prefill`.
CPU_OPTIONS = {"xla_cpu_prefer_vector_width": 512}


def materialised(x: Array) -> Array:
    """The same numbers [B, T, C], as an array that is there: exact.

    XLA's CPU backend computes the sines and cosines of a rotation again for every element of every
    head that they rotate, which in a prompt takes longer than the attention. A product with the
    identity is never fused into what uses it. jax 0.10.2; `python -m jaxkv.bench prefill`.
    """
    return lax.platform_dependent(x, cpu=_times_one, default=lambda x: x)


def _times_one(x: Array) -> Array:
    return x @ jnp.eye(x.shape[-1], dtype=x.dtype)[None]


def row_product(row: Array, weight: Array) -> Array:
    """A single row by a matrix, [1, I] and [I, O] -> float32 [1, O].

    XLA's CPU backend reads a small matrix with one core. Two half sums, batched, are read by two:
    the product is only as fast as that. jax 0.10.2; `python -m jaxkv.bench decode`.
    """
    if row.shape[1] % 2:
        return product(row, weight)
    return lax.platform_dependent(row, weight, cpu=_halves, default=product)


def product(rows: Array, weight: Array) -> Array:
    """[R, I] and [I, O] -> float32 [R, O]."""
    return einsum("ri,io->ro", rows, weight)


def _halves(rows: Array, weight: Array) -> Array:
    inputs, outputs = weight.shape
    halves = weight.reshape(2, inputs // 2, outputs)
    return jnp.sum(einsum("rsi,sio->sro", rows.reshape(1, 2, inputs // 2), halves), axis=0)


def grouped_product(rows: Array, values: Array, scale: Array) -> Array:
    """Few rows [R, G, I] by whole numbers [G, I, O] with scales [G, O]: float32 [R, O].

    XLA makes wide copies of the numbers in memory where a batched product has one row: on a TPU
    none with eight rows, of which seven are zeros and cost nothing; on a GPU none where the product
    is written as a sum. jax 0.10.2; `tests/aot/test_plan_programs.py`.
    """
    scale = scale.astype(jnp.float32)
    if rows.shape[0] > 1:
        return _by_group(rows, values, scale)
    return lax.platform_dependent(
        rows, values, scale, tpu=_with_seven_zeros, cuda=_as_a_sum, default=_by_group
    )


def _by_group(rows: Array, values: Array, scale: Array) -> Array:
    parts = einsum("rgi,gio->gro", rows, values.astype(rows.dtype))
    return jnp.sum(parts * scale[:, None], axis=0)


def _with_seven_zeros(rows: Array, values: Array, scale: Array) -> Array:
    return _by_group(jnp.pad(rows, ((0, 7), (0, 0), (0, 0))), values, scale)[:1]


def _as_a_sum(rows: Array, values: Array, scale: Array) -> Array:
    parts = rows[0, :, :, None].astype(jnp.float32) * values.astype(jnp.float32)
    return jnp.sum(parts * scale[:, None], axis=(0, 1))[None]


def by_slot(weights: Array, v: Array) -> Array:
    """Weights [B, K, G, S] over values [B, K, S, H], float32 [B, K, G, H], slots first on a CPU.

    XLA's CPU backend then reads `v` with all cores, a fifth faster; without the barrier it undoes
    the transposition. jax 0.10.2; `python -m jaxkv.bench decode`.
    """
    return lax.platform_dependent(weights, v, cpu=_slots_first, default=_heads_first)


def _heads_first(weights: Array, v: Array) -> Array:
    return einsum("bkgs,bksh->bkgh", weights, v)


def _slots_first(weights: Array, v: Array) -> Array:
    weights = lax.optimization_barrier(weights.swapaxes(2, 3))
    return einsum("bksg,bksh->bkgh", weights, v)


def never_one(new: tuple[Array, ...], slots: Array, beyond: int) -> tuple[tuple[Array, ...], Array]:
    """A scatter's updates [B, T, ..] and slots [B, T], with a second that is always dropped.

    XLA turns a scatter of a single update into a dynamic-update-slice, which its CPU backend then
    fuses twice, and copies the whole cache at every step. jax 0.10.2;
    `test_a_compiled_step_neither_copies_nor_repeats_the_cache`.
    """
    if slots.size != 1:
        return new, slots
    slots = jnp.concatenate([slots, jnp.full_like(slots, beyond)], axis=1)
    return tuple(jnp.repeat(x, 2, axis=1) for x in new), slots


def together(body: Callable[[T, C], T], carry: T, consts: C, needed: Array) -> T:
    """`body(carry, consts)`, whose parts the compiler keeps together, where it is `needed`.

    No layer needs what the one before chooses of a prompt, so XLA would put that off, and hold the
    prompts of all layers until the end: a loop of one turn is not taken apart. jax 0.10.2;
    `test_a_prompt_is_held_in_full_by_one_layer_at_a_time`.
    """
    turns = jnp.minimum(needed, 1).astype(jnp.int32)
    return loop(lambda _, carry, consts: body(carry, consts), 1, turns, carry, consts)


def in_place_if(
    needed: Array, body: Callable[[T, Array, C], T], carry: T, index: Array, consts: C
) -> T:
    """`body(carry, index, consts)` where bool `needed`, else `carry`; nothing of it is copied.

    A cache that passes through a `cond` is copied in each of its branches; a loop of no turn or one
    writes in place. Its index changes from turn to turn, or XLA would gather by it before the loop,
    in every step. jax 0.10.2; `test_a_partial_step_reads_no_full_cache`.
    """

    def turn(_: Any, held: tuple[T, Array], consts: C) -> tuple[T, Array]:
        carry, index = held
        return body(carry, index, consts), index + 1

    return loop(turn, 1, needed.astype(jnp.int32), (carry, index), consts)[0]


def just_before(x: T, index: Array) -> tuple[T, Array]:
    """Both as they are; what is done to `x` for a gather by `index` is done here, where it is.

    A TPU turns a cache around for a gather, and XLA would do so before a loop that seldom runs,
    at every step. jax 0.10.2; `tests/aot/test_tpu_models.py`.
    """
    return lax.optimization_barrier((x, index))


def options() -> dict[str, Any] | None:
    """For the compiler of the platform that programs are made for."""
    return CPU_OPTIONS if jax.default_backend() == "cpu" else None
