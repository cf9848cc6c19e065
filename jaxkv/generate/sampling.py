# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""How the next token is chosen: frozen dataclasses, static under jit, one method each."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from jaxkv.core.errors import InputError


@runtime_checkable
class Sampler(Protocol):
    """Chooses a token for every row."""

    def __call__(self, keys: Array, logits: Array) -> Array:
        """Random keys [B], logits [B, V] float32 -> token ids int32 [B]."""
        ...


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most likely token; of equals, the lowest id."""

    def __call__(self, keys: Array, logits: Array) -> Array:
        del keys
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draws from the softmax at a temperature, cut to the likeliest tokens.

    The cuts come in the order that transformers applies them: temperature, then `top_k`, then
    `top_p` over what is left (arXiv 1904.09751).

    Attributes:
      temperature: above 0.
      top_k: keep this many of the likeliest tokens; None keeps all.
      top_p: keep the smallest set of likeliest tokens whose probability reaches this.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __call__(self, keys: Array, logits: Array) -> Array:
        # From the largest, or a tiny temperature would make several of them infinite; and float32
        # takes the tiniest for 0.
        logits = logits - jnp.max(logits, axis=-1, keepdims=True)
        logits = logits / max(self.temperature, 1e-30)
        if self.top_k is None and self.top_p == 1.0:
            return _draw(keys, logits).astype(jnp.int32)
        count = logits.shape[-1] if self.top_k is None else min(self.top_k, logits.shape[-1])
        ordered, ids = jax.lax.top_k(logits, count)
        # A token stays if what comes before it does not yet reach top_p: the first always does.
        weights = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(weights, axis=-1) - weights
        ordered = jnp.where(before < self.top_p, ordered, -jnp.inf)
        chosen = _draw(keys, ordered)
        return jnp.take_along_axis(ids, chosen[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _draw(keys: Array, logits: Array) -> Array:
    """Each row with its own key, so that a row draws the same in any batch."""
    return jax.vmap(jax.random.categorical)(keys, logits)


def make_sampler(
    temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None
) -> Sampler:
    """Greedy at temperature 0, else a draw.

    Raises:
      InputError: a value out of range, or a cut at temperature 0, where it would do nothing.
    """
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature is {temperature}; it must be 0 (greedy) or above")
    if top_k is not None and top_k < 1:
        raise InputError(f"top-k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top-p is {top_p}; it must be above 0 and at most 1")
    if temperature == 0:
        if top_k is not None or top_p is not None:
            raise InputError("top-k and top-p need a temperature above 0; it is 0, which is greedy")
        return Greedy()
    return Sample(temperature, top_k, 1.0 if top_p is None else top_p)
