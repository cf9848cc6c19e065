# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Policies from outside the package, as somebody else would write them."""

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


@jaxkv.register("own-expected")
@dataclasses.dataclass(frozen=True)
class Expected(jaxkv.ScoredPolicy):
    """The logarithm of exp(q k) that is expected of queries such as the prompt's, if normal."""

    needs = ("moments",)

    def score(self, prompt: jaxkv.Prompt):
        """[B, K, S]: m k + k C k / 2, by the mean m and the covariance C of a head's queries."""
        k = prompt.keys.astype(jnp.float32)
        b, heads, _, dim = k.shape
        mean = prompt.query_mean().reshape(b, heads, -1, dim)
        covariance = prompt.query_covariance().reshape(b, heads, -1, dim, dim)
        first = jnp.einsum("bkgh,bksh->bkgs", mean, k) / dim**0.5
        second = jnp.einsum("bksh,bkghi,bksi->bkgs", k, covariance, k) / (2 * dim)
        return jnp.mean(first + second, axis=2)


@jaxkv.register("own-outputs")
@dataclasses.dataclass(frozen=True)
class Outputs(jaxkv.ScoredPolicy):
    """Attention times how far a value moves the output along the token's own state."""

    needs = ("mass", "hidden", "constants")

    def score(self, prompt: jaxkv.Prompt):
        """[B, K, S]: the attention a, the value v and the state h of a token: a |h W v|."""
        v = prompt.values
        b, heads, slots, _ = v.shape
        wo = prompt.wo()
        wo = wo.reshape(heads, -1, *wo.shape[1:])
        moved = jnp.einsum("bksh,kghd,bsd->bkgs", v, wo, prompt.hidden())
        mass = prompt.mass().reshape(b, heads, -1, slots)
        # States of earlier prompts are gone: what was kept of them stays.
        return jnp.where(prompt.new, jnp.mean(mass * jnp.abs(moved), axis=2), 1e6)


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


@dataclasses.dataclass(frozen=True)
class Allotted(Unnamed):
    """Says that it has an allocation of its own, and has none."""

    allocations = ("own", *jaxkv.ScoredPolicy.allocations)
