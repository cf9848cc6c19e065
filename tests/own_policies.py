# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A policy from outside the package, as somebody else would write it."""

import dataclasses

import jax.numpy as jnp

import jaxkv


@jaxkv.register("own-keydiff")
@dataclasses.dataclass(frozen=True)
class KeyDiff(jaxkv.ScoredPolicy):
    """Keys that are unlike the mean key are kept (arXiv 2504.15364)."""

    def score(self, prompt: jaxkv.Prompt):
        """[B, K, S]: the negative cosine to the mean direction of a head's keys."""
        k = prompt.keys / jnp.linalg.norm(prompt.keys, axis=-1, keepdims=True)
        return -jnp.einsum("bksh,bkh->bks", k, prompt.mean(k))


@dataclasses.dataclass(frozen=True)
class Unnamed(jaxkv.ScoredPolicy):
    """Large values are kept, by a policy that is not registered."""

    power: float = 1.0

    def score(self, prompt: jaxkv.Prompt):
        """[B, K, S]."""
        return jnp.linalg.norm(prompt.values, axis=-1) ** self.power


@dataclasses.dataclass(frozen=True)
class Wrong(jaxkv.ScoredPolicy):
    """Forgets the heads."""

    def score(self, prompt: jaxkv.Prompt):
        """[B, S], which is wrong."""
        return prompt.positions[:, 0].astype(jnp.float32)


class Loose:
    """No dataclass."""

    def at(self, layer, geometry):
        """Nothing."""
