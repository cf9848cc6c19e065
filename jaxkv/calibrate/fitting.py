# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Fits KVzap's surrogates (arXiv 2601.07891, section 3.2) to states and what they are worth.

States have a few numbers that are far larger than all others. Each is divided by its spread while
a network is fitted, and what was fitted is then written for the states as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxkv.generate.loop import Signature, kept_program
from jaxkv.policies.surrogates import worth

if TYPE_CHECKING:
    import optax

BATCH = 512
_RATE, _CLIP = 5e-3, 1.0  # the authors'

Network = dict[str, np.ndarray]  # as `jaxkv.policies.surrogates.Surrogate`, of numpy
Told = Callable[[int, int], None]  # how much is done, of how much


def ridge(x: np.ndarray, y: np.ndarray, strength: float) -> Network:
    """The linear map of the least squared error, in closed form and float64.

    Args:
      x: states, float32 [n, D].
      y: what they are worth, float32 [n, K].
      strength: above 0, of the penalty on the map's squares, where each state has spread 1.
    """
    mean, spread = _spread(x)
    z, middle = (x - mean) / spread, y.mean(axis=0, dtype=np.float64)
    gram = z.T @ z + strength * np.eye(z.shape[1])
    w = np.linalg.solve(gram, z.T @ (y - middle))
    w = w / spread[:, None]
    return {"w": _float32(w), "b": _float32(middle - mean @ w)}


def mlps(x: np.ndarray, y: np.ndarray, epochs: int, seed: int, told: Told) -> list[Network]:
    """An MLP for each layer, D -> D / 8 -> K, all of them trained in one program.

    AdamW with a cosine from 5e-3 to 0, batches of 512, gradients clipped to length 1, mean squared
    error: section 4.1 of the paper.

    Args:
      x: states, float32 [L, n, D].
      y: what they are worth, float32 [L, n, K].
      epochs: how often each token is seen.
      seed: of first weights and batches.
      told: called with steps.
    """
    layers, count, width = x.shape
    batch = min(BATCH, count)
    each = count // batch
    rng, scales = np.random.default_rng(seed), []
    for layer in range(layers):
        scales.append(tuple(map(_float32, (*_spread(x[layer]), *_spread(y[layer])))))
    scale = tuple(jnp.asarray(np.stack(some)) for some in zip(*scales, strict=True))
    data = jnp.asarray(x), jnp.asarray(y), scale
    weights = _first(rng, layers, width, max(1, width // 8), y.shape[-1])
    state = weights, jax.vmap(_optimizer(each * epochs).init)(weights)
    statics = (("steps", each * epochs),)
    signature = Signature.of((data, state, jnp.zeros((batch,), jnp.int32)))
    program = kept_program(train_step, signature, statics)
    for epoch in range(epochs):
        order = rng.permutation(count)[: each * batch].astype(np.int32)
        for index, at in enumerate(order.reshape(each, batch)):
            state = program.call(data, state, jnp.asarray(at))
            told(epoch * each + index, each * epochs)
    jax.block_until_ready(state)
    told(each * epochs, each * epochs)
    found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state[0])
    return [
        _unscaled({name: leaf[layer] for name, leaf in found.items()}, scales[layer])
        for layer in range(layers)
    ]


def train_step(
    data: tuple[Array, Array, tuple[Array, ...]], state: tuple[Any, Any], at: Array, *, steps: int
) -> tuple[Any, Any]:
    """A step of every layer's network on the tokens `at`, to be compiled; the state is donated."""
    x, y, scale = data

    def error(weights: Any, x: Array, y: Array) -> Array:
        return jnp.mean(jnp.square(worth(weights, x[None])[0].T - y))

    def one(x: Array, y: Array, scale: tuple[Array, ...], weights: Any, kept: Any) -> Any:
        import optax

        mean, spread, middle, wide = (part[None] for part in scale)
        slope = jax.grad(error)(weights, (x - mean) / spread, (y - middle) / wide)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
            update, kept = _optimizer(steps).update(slope, kept, weights)
        return optax.apply_updates(weights, update), kept

    return jax.vmap(one)(x[:, at], y[:, at], scale, *state)


def explained(network: Network, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of what tokens are worth a network tells, R^2 of each head: float64 [K].

    Args:
      network: of a layer.
      x: states that it was not fitted to, float32 [n, D].
      y: what they are worth, float32 [n, K].
    """
    said = worth({name: jnp.asarray(part) for name, part in network.items()}, jnp.asarray(x)[None])
    y = y.astype(np.float64)
    off = np.sum((np.asarray(said)[0].T - y) ** 2, axis=0)
    return 1 - off / np.maximum(np.sum((y - y.mean(axis=0)) ** 2, axis=0), 1e-12)


def _optimizer(steps: int) -> optax.GradientTransformation:
    import optax

    def schedule(count: ArrayLike) -> Array:
        return _RATE * 0.5 * (1 + jnp.cos(jnp.pi * jnp.asarray(count, jnp.float32) / steps))

    return optax.chain(optax.clip_by_global_norm(_CLIP), optax.adamw(schedule))


def _first(rng: np.random.Generator, layers: int, width: int, inner: int, heads: int) -> Any:
    shapes = {"w_in": (width, inner), "b_in": (inner,), "w": (inner, heads), "b": (heads,)}

    def made(shape: tuple[int, ...]) -> Array:
        if len(shape) == 1:
            return jnp.zeros((layers, *shape), jnp.float32)
        return jnp.asarray(rng.normal(size=(layers, *shape)) / shape[0] ** 0.5, jnp.float32)

    return {name: made(shape) for name, shape in shapes.items()}


def _unscaled(network: Network, scale: tuple[np.ndarray, ...]) -> Network:
    """A network that was trained on (x - mean) / spread, and said (y - middle) / wide."""
    mean, spread, middle, wide = (part.astype(np.float64) for part in scale)
    w_in = network["w_in"] / spread[:, None]
    return {
        "w_in": _float32(w_in),
        "b_in": _float32(network["b_in"] - mean @ w_in),
        "w": _float32(network["w"] * wide),
        "b": _float32(network["b"] * wide + middle),
    }


def _spread(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the columns of [n, D], float64; 1 where nothing changes."""
    mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    return mean, np.where(spread > 1e-6 * (np.abs(mean) + 1e-6), spread, 1.0)


def _float32(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float32)
