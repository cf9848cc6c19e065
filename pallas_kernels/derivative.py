# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Kernels have no derivative of their own: they get that of what XLA computes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

_OF_KERNELS = ("max_block", "interpret")  # options that what XLA computes does not have


def with_derivative_of(plain: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel`, with the derivative of `plain`, which gives the same.

    Args:
      plain: takes the arrays, and options by name, some of which may be arrays.
      kernel: takes the same, and perhaps more options.
    """

    @functools.wraps(kernel)
    def call(*arrays: Any, **options: Any) -> Any:
        more = {name: x for name, x in options.items() if isinstance(x, Array | tuple)}
        static = {name: x for name, x in options.items() if name not in more}
        known = {name: x for name, x in static.items() if name not in _OF_KERNELS}

        @jax.custom_jvp
        def run(arrays: Any, more: Any) -> Any:
            return kernel(*arrays, **more, **static)

        @run.defjvp
        def derivative(primals: Any, tangents: Any) -> Any:
            return jax.jvp(lambda arrays, more: plain(*arrays, **more, **known), primals, tangents)

        return run(arrays, more)

    return call
