# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Loops whose length is data, with a derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

T = TypeVar("T")
C = TypeVar("C")


def loop(body: Callable[[Array, T, C], T], most: int, count: Array, carry: T, consts: C) -> T:
    """`lax.fori_loop(0, count, body, carry)`, of at most `most` turns, which has a derivative.

    A loop whose length is data cannot be run backwards. Its derivative is that of `most` turns of
    which those beyond `count` do nothing, each of them computed again on the way back.

    Args:
      body: takes the turn, what is carried, and `consts`; it closes over nothing that has a
        derivative.
      most: static.
      count: int32 scalar.
      carry: a pytree of arrays.
      consts: another, which stays as it is.
    """
    return _loop(body, most, count, carry, consts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loop(body: Callable[..., Any], most: int, count: Array, carry: Any, consts: Any) -> Any:
    del most
    return lax.fori_loop(jnp.int32(0), count, lambda i, held: body(i, held, consts), carry)


def _forwards(body: Callable[..., Any], most: int, count: Array, carry: Any, consts: Any) -> Any:
    return _loop(body, most, count, carry, consts), (count, carry, consts)


def _backwards(body: Callable[..., Any], most: int, held: Any, cotangent: Any) -> Any:
    count, carry, consts = held

    def again(carry: Any, consts: Any) -> Any:
        @jax.checkpoint
        def turn(carry: Any, index: Array) -> tuple[Any, None]:
            return lax.cond(
                index < count, lambda x: body(index, x, consts), lambda x: x, carry
            ), None

        return lax.scan(turn, carry, jnp.arange(most, dtype=jnp.int32))[0]

    _, pull = jax.vjp(again, carry, consts)
    return None, *pull(cotangent)


_loop.defvjp(_forwards, _backwards)
