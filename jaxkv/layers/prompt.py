# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a score is made from, and scores that may be sorted by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jax import Array

from jaxkv.cache import store as stores
from jaxkv.core.errors import InputError
from jaxkv.core.scoring import bent
from jaxkv.core.typing import Rotation
from jaxkv.layers import draft as drafts
from jaxkv.layers.base import rotate
from jaxkv.layers.draft import Draft

T = TypeVar("T")


class Prompt:
    """What is known of a layer's prompt when it has been read.

    Methods give evidence that is gathered while the prompt is read, and only where the policy's
    `needs` names it: see `ScoredPolicy`. Slots hold the tokens of this prompt and what was kept of
    earlier ones. The heads of all that is here are in one order, which need not be the model's.

    Attributes:
      positions: int32 [B, K, S], of the token in each slot, -1 for none.
      valid: bool [B, K, S], tokens to choose from: all but the last `window`.
    """

    def __init__(self, draft: Draft, rope: Rotation | None, window: int, needs: Sequence[str] = ()):
        self._draft, self._rope, self._needs = draft, rope, tuple(needs)
        slab = draft.slab
        self.positions = slab.pos
        protected = slab.pos >= (slab.seen - window)[:, None, None]
        self.valid = (slab.pos >= 0) & jnp.logical_not(protected)

    @property
    def keys(self) -> Array:
        """[B, K, S, H], rotated to their positions."""
        return stores.numbers(self._draft.slab.k)

    @property
    def values(self) -> Array:
        """[B, K, S, H]."""
        return stores.numbers(self._draft.slab.v)

    @property
    def new(self) -> Array:
        """Tokens of this prompt, and not of one before: bool [B, K, S]."""
        return self.positions >= self._draft.began[:, None, None]

    def mass(self) -> Array:
        """Attention that each token received from the last `window` queries: float32 [B, N, S].

        Needs "mass".
        """
        self._needed("mass", "mass", self._draft.last)
        return drafts.mass(self._draft, self._rope)

    def query_mean(self) -> Array:
        """Mean of this prompt's queries before they are rotated: float32 [B, N, H].

        Without those of the stream's first 4 tokens, here and in the covariance: they are
        attention's sinks, and unlike all others. Needs "moments".
        """
        return self._needed("query_mean", "moments", self._draft.moments).mean

    def query_covariance(self) -> Array:
        """Their covariance, by their count and not one less: float32 [B, N, H, H].

        Needs "moments".
        """
        return self._needed("query_covariance", "moments", self._draft.moments).covariance

    def hidden(self) -> Array:
        """The states that queries, keys and values were projected from: [B, S, D].

        Of the tokens of this prompt, which `new` tells; zero for all others, whose states are gone.
        Needs "hidden".
        """
        hidden = self._needed("hidden", "hidden", self._draft.hidden)
        after = self.positions.shape[-1] - hidden.shape[1]
        return jnp.pad(hidden, ((0, 0), (0, after), (0, 0)))

    def replay(self) -> Array:
        """The most attention that each token got when the model repeated the prompt.

        Float32 [B, K, S]; infinite for what stands before the user's text. See
        `jaxkv.layers.replayed`. Needs "replay".
        """
        return self._needed("replay", "replay", self._draft.replay)

    def rotation(self, count: int) -> Array:
        """The mean of the rotations to the next `count` positions: float32 [B, H, H].

        A query that is not rotated, times it, is what the query would be there on average.
        """
        seen, dim = self._draft.slab.seen, self.keys.shape[-1]
        units = jnp.broadcast_to(jnp.eye(dim, dtype=jnp.float32), (seen.shape[0], count, dim, dim))
        at = seen[:, None] + jnp.arange(count, dtype=jnp.int32)[None]
        return jnp.mean(rotate(self._rope, units, at), axis=1)

    def slopes(self) -> Array | None:
        """ALiBi's slope of each query head, float32 [N]; None for a model without."""
        return bent(self._rope)["slopes"]

    def queries(self) -> Array:
        """Of the tokens of this prompt, rotated to their positions; zero for others: [B, N, S, H].

        Needs "queries".
        """
        return self._needed("queries", "queries", self._draft.queries)

    def unrotated_keys(self) -> Array:
        """Keys of the tokens of this prompt as they were projected; zero for others: [B, K, S, H].

        Needs "unrotated_keys".
        """
        return self._needed("unrotated_keys", "unrotated_keys", self._draft.unrotated)

    def wo(self) -> Array:
        """The layer's output projection, of each query head: [N, H, D]. Needs "constants"."""
        return self._needed("wo", "constants", self._draft.constants).wo

    def surrogate(self) -> dict[str, Array]:
        """What the policy's `prepare` put beside the layer's parameters. Needs "constants"."""
        found = self._needed("surrogate", "constants", self._draft.constants).surrogate
        if found is None:
            raise InputError(
                "the policy's networks are not among the parameters; give "
                "policy.prepare(params, geometry)"
            )
        return found

    def order(self) -> tuple[Array, Array]:
        """Slots of each head by position, empty ones last, and each slot's place in that order.

        Returns:
          Two of int32 [B, K, S], each the other's inverse.
        """
        last = jnp.where(self.positions >= 0, self.positions, jnp.iinfo(jnp.int32).max)
        order = jnp.argsort(last, axis=-1)
        return order.astype(jnp.int32), jnp.argsort(order, axis=-1).astype(jnp.int32)

    def mean(self, x: Array) -> Array:
        """Mean of [B, K, S, H] over the tokens that there are, the window's too: [B, K, H]."""
        there = (self.positions >= 0)[..., None]
        count = jnp.maximum(jnp.sum(there, axis=2, dtype=jnp.int32), 1)
        total = jnp.sum(jnp.where(there, x, 0), axis=2, dtype=jnp.float32)
        return (total / count.astype(jnp.float32)).astype(x.dtype)

    def _needed(self, method: str, name: str, evidence: T | None) -> T:
        """The evidence, which is there where it was declared."""
        if evidence is None:
            raise InputError(
                f"prompt.{method}() is of what the policy did not say that it needs; write "
                f"needs = {(*self._needs, name)} in its class"
            )
        return evidence


@runtime_checkable
class Scorer(Protocol):
    """Frozen and hashable."""

    def score(self, prompt: Prompt) -> Array:
        """[B, K, S], higher is kept."""
        ...


def scores_of(scorer: Scorer, prompt: Prompt) -> Array:
    """What a scorer says, as float32 [B, K, S], finite; -inf for what may not be chosen.

    Raises:
      InputError: the scores have another shape.
    """
    scores = scorer.score(prompt)
    if getattr(scores, "shape", None) != prompt.positions.shape:
        raise InputError(
            f"the score of {type(scorer).__name__} has shape "
            f"{getattr(scores, 'shape', type(scores).__name__)}; it must be [B, K, S], here "
            f"{prompt.positions.shape}"
        )
    scores = jnp.minimum(scores.astype(jnp.float32), jnp.finfo(jnp.float32).max)
    # A NaN would be chosen before anything else.
    return jnp.where(prompt.valid & jnp.logical_not(jnp.isnan(scores)), scores, -jnp.inf)


def sinks_first(scores: Array, prompt: Prompt, sinks: int) -> tuple[Array, Array]:
    """Scores by which the first `sinks` tokens of the stream come before all others.

    Args:
      scores: from `scores_of`.
      prompt: that they are of.
      sinks: how many.

    Returns:
      float32 [B, K, S], and which of them those tokens are, bool [B, K, S].
    """
    first = prompt.valid & (prompt.positions < sinks)
    return jnp.where(first, jnp.inf, scores), first
