# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings that stay exact at every int32 position.

The usual `position * inv_freq` in float32 loses the angle long before a stream ends: it is off by
0.008 rad at 128K tokens and 0.24 rad at 4M. Here an angle is counted in turns, as a 32-bit
fraction: `phase = position * (frequency / 2 pi)` modulo one turn is integer multiplication that
wraps, which loses nothing. Only the phase, at most half a turn, is turned into a float. The angle
is good to 3e-7 rad at 10, at 4,000,000 and at 2,000,000,000, on every backend, with no tables.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels import compiler


@runtime_checkable
class RopeScaling(Protocol):
    """A fixed change of the frequencies: it may not depend on the current length."""

    def apply(self, freqs: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """float64 [R/2] rad per token -> the scaled ones, and a factor on the rotated vectors."""
        ...


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (arXiv 2306.15595): every frequency divided by `factor`."""

    factor: float

    def apply(self, freqs: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        return freqs / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1: long waves divided by `factor`, short ones kept, a ramp in between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def apply(self, freqs: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        turns = self.original_max_positions * freqs / (2 * math.pi)  # in the trained context
        ramp = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        keep = np.clip(ramp, 0.0, 1.0)
        return keep * freqs + (1 - keep) * freqs / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): a ramp over dimensions, and a temperature on the attention.

    `attention_factor` None means the paper's `0.1 ln(factor) + 1`, or DeepSeek's ratio of the two
    when `mscale` and `mscale_all_dim` are given.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def apply(self, freqs: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        dim = 2 * len(freqs)

        def dimension(rotations: float) -> float:
            """Where a wave makes this many rotations in the trained context."""
            wave = self.original_max_positions / (rotations * 2 * math.pi)
            return dim * math.log(wave) / (2 * math.log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
        return freqs * (1 - ramp) + freqs / self.factor * ramp, self._attention_factor()

    def _attention_factor(self) -> float:
        def mscale(weight: float) -> float:
            return 1.0 if self.factor <= 1 else 0.1 * weight * math.log(self.factor) + 1.0

        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return mscale(self.mscale) / mscale(self.mscale_all_dim)
        return mscale(1.0)


@dataclasses.dataclass(frozen=True)
class LongScaling:
    """LongRoPE (arXiv 2402.13753): a divisor for each frequency, found by search.

    There are two sets. Which of them holds may not depend on the current length, for a key is
    rotated once: a model that was trained beyond `original_max_positions` always has the long one.
    `attention_factor` None means sqrt(1 + ln(M / O) / ln(O)) of the two lengths.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    max_positions: int
    attention_factor: float | None = None

    def apply(self, freqs: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        stretch = self.max_positions / self.original_max_positions
        factors = np.asarray(self.long_factors if stretch > 1 else self.short_factors)
        attention = self.attention_factor
        if attention is None:
            grown = math.log(max(stretch, 1.0)) / math.log(self.original_max_positions)
            attention = math.sqrt(1 + grown)
        return freqs / factors, attention


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotates the first `rotary_dim` of a head's dimensions; the rest pass unchanged.

    Dimension i is paired with i + rotary_dim / 2 (the layout of Hugging Face checkpoints).
    """

    rotary_dim: int
    theta: float = 10000.0
    scaling: RopeScaling | None = None

    def frequencies(self) -> tuple[np.ndarray, float]:
        """float64 [rotary_dim / 2] rad per token, and the factor on rotated vectors."""
        freqs = self.theta ** (
            -np.arange(0, self.rotary_dim, 2, dtype=np.float64) / self.rotary_dim
        )
        return self.scaling.apply(freqs, self.theta) if self.scaling else (freqs, 1.0)

    def tables(self, positions: Array) -> tuple[Array, Array]:
        """int32 [B, T] -> cosines and sines, float32 [B, T, rotary_dim / 2]."""
        freqs, factor = self.frequencies()
        angle = _phase(positions, freqs / (2 * math.pi))
        both = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1) * np.float32(factor)
        both = compiler.materialised(both)
        return both[..., : len(freqs)], both[..., len(freqs) :]

    def __call__(self, x: Array, positions: Array) -> Array:
        """Rotates heads to their positions.

        Args:
          x: [B, T, N, H], any float dtype; computed in float32.
          positions: int32 [B, T], non-negative.

        Returns:
          [B, T, N, H], the dtype of `x`.
        """
        cos, sin = self.tables(positions)
        cos, sin = cos[:, :, None], sin[:, :, None]
        half = self.rotary_dim // 2
        a = x[..., :half].astype(jnp.float32)
        b = x[..., half : self.rotary_dim].astype(jnp.float32)
        rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
        return jnp.concatenate([rotated, x[..., self.rotary_dim :]], axis=-1)


def _phase(positions: Array, turns_per_token: np.ndarray) -> Array:
    """int32 [B, T], float64 [R] -> float32 [B, T, R] angles in [-pi, pi)."""
    fraction = np.asarray(turns_per_token % 1.0)
    high = np.floor(fraction * 2.0**32)
    low = np.floor((fraction * 2.0**32 - high) * 2.0**32)
    high, low = high.astype(np.uint32), low.astype(np.uint32)
    p = jax.lax.bitcast_convert_type(positions, jnp.uint32)[..., None]
    high, low = (jnp.asarray(x)[None, None] for x in (high, low))
    # p * high wraps, as whole turns should; of p * low only the top 32 bits count, taken in
    # 16-bit limbs because accelerators have no 64-bit product. Lost carries: under 4 in 2^32.
    sixteen = np.uint32(16)
    mask = np.uint32(0xFFFF)
    p_hi, p_lo, l_hi, l_lo = p >> sixteen, p & mask, low >> sixteen, low & mask
    carried = p_hi * l_hi + ((p_hi * l_lo) >> sixteen) + ((p_lo * l_hi) >> sixteen)
    phase = jax.lax.bitcast_convert_type(p * high + carried, jnp.int32)
    return phase.astype(jnp.float32) * np.float32(2 * math.pi / 2.0**32)
