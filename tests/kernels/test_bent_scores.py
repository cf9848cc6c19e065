# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""ALiBi's bias and soft caps in every op, against a plain float64 loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.core.scoring import alibi_slopes
from pallas_kernels import attention_mass, decode_attention, pool_attention, prefill_attention
from pallas_kernels.decode import mosaic_tpu as tpu_decode
from pallas_kernels.mass import mosaic_tpu as tpu_mass
from pallas_kernels.prefill import mosaic_tpu as tpu_prefill
from pallas_kernels.prefill import xla

B, T, K, G, S, H = 2, 9, 2, 3, 40, 8
SLOPES = np.asarray(alibi_slopes(K * G))
BENDS = {
    "alibi": {"slopes": jnp.asarray(SLOPES, jnp.float32)},
    "cap": {"soft_cap": 1.5},
    "both": {"slopes": jnp.asarray(SLOPES, jnp.float32), "soft_cap": 1.5},
}
every_bend = pytest.mark.parametrize("bend", BENDS)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla, "BLOCK", 7)


def inputs():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(B, T, K * G, H))
    k, v = rng.normal(size=(2, B, K, S, H))
    k_pos = np.where(rng.random((B, K, S)) < 0.2, -1, rng.integers(0, 60, (B, K, S)))
    q_pos = rng.integers(5, 70, (B, T))
    return q, k, v, q_pos, k_pos


def weights(q, k, q_pos, k_pos, bend: str, window=None, sink_pos=None, sinks=0):
    """Unnormalised weights [B, T, N, S], float64."""
    keys = np.repeat(k, G, axis=1)
    at = np.repeat(k_pos, G, axis=1)[:, None]
    scores = np.einsum("btnh,bnsh->btns", q, keys) / np.sqrt(H)
    if bend != "alibi":
        scores = 1.5 * np.tanh(scores / 1.5)
    distance = q_pos[:, :, None, None] - at
    seen = (at >= 0) & (distance >= 0)
    if window is not None:
        seen &= (distance <= window) | (at < sinks)
    if sink_pos is not None:
        distance = np.where(np.arange(S) < sinks, sink_pos[:, :, None, None] - at, distance)
    if bend != "cap":
        scores = scores - SLOPES[:, None] * distance
    return np.where(seen, np.exp(scores), 0.0)


def normalised(w):
    total = w.sum(-1, keepdims=True)
    return w / np.where(total == 0, 1, total)


def on_device(*arrays):
    return [jnp.asarray(x, jnp.int32 if x.dtype.kind == "i" else jnp.float32) for x in arrays]


@every_bend
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_prefill(bend: str, implementation: str) -> None:
    q, k, v, q_pos, k_pos = inputs()
    w = weights(q, k, q_pos, k_pos, bend, window=25)
    args = on_device(q, k, v, q_pos, k_pos)
    out, lse = prefill_attention(
        *args, scale=H**-0.5, window=25, implementation=implementation, **BENDS[bend]
    )
    expected = np.einsum("btns,bnsh->btnh", normalised(w), np.repeat(v, G, axis=1))
    np.testing.assert_allclose(out, expected, atol=2e-6)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(lse, np.log(w.sum(-1)), atol=1e-5)


@every_bend
def test_prefill_with_a_traced_count_of_slots(bend: str) -> None:
    """Blocks that are seen whole take a path of their own."""
    q, k, v, _, _ = inputs()
    k_pos = np.broadcast_to(np.arange(S), (B, K, S))
    q_pos = np.broadcast_to(np.arange(20, 20 + T), (B, T))
    w = weights(q, k, q_pos, k_pos, bend)
    args = on_device(q, k, v, q_pos, k_pos)
    run = jax.jit(
        lambda count: prefill_attention(*args, scale=H**-0.5, num_slots=count, **BENDS[bend])[0]
    )
    expected = np.einsum("btns,bnsh->btnh", normalised(w), np.repeat(v, G, axis=1))
    np.testing.assert_allclose(run(jnp.int32(20 + T)), expected, atol=2e-6)


@every_bend
def test_decode_with_sinks_and_mass(bend: str) -> None:
    """Sinks are at most `sinks + window` away, as a query rotated for them would have it."""
    q, k, v, q_pos, k_pos = inputs()
    sinks, window = 4, 25
    k_pos[:, :, :sinks] = np.arange(sinks)
    inside = np.minimum(q_pos, sinks + window)
    w = weights(q, k, q_pos, k_pos, bend, window, inside, sinks)[:, :1]
    args = on_device(q[:, 0], k, v, q_pos[:, 0], k_pos)
    out, lse, mass = decode_attention(
        *args, scale=H**-0.5, window=window, sinks=sinks, q_sink=args[0], with_mass=True,
        **BENDS[bend],
    )  # fmt: skip
    share = normalised(w)[:, 0]
    np.testing.assert_allclose(mass, share, atol=2e-6)
    np.testing.assert_allclose(lse, np.log(w.sum(-1))[:, 0], atol=1e-5)
    expected = np.einsum("bns,bnsh->bnh", share, np.repeat(v, G, axis=1))
    np.testing.assert_allclose(out, expected, atol=2e-6)


@every_bend
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_mass(bend: str, implementation: str) -> None:
    q, k, _, q_pos, k_pos = inputs()
    w = weights(q, k, q_pos, k_pos, bend)
    with np.errstate(divide="ignore"):
        lse = np.log(w.sum(-1))
    q, lse, k, q_pos, k_pos = on_device(q, lse, k, q_pos, k_pos)
    mass = attention_mass(
        q, lse, k, q_pos, k_pos, scale=H**-0.5, implementation=implementation, **BENDS[bend]
    )
    np.testing.assert_allclose(mass, normalised(w).sum(1), atol=1e-5)


@every_bend
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_pool(bend: str, implementation: str) -> None:
    """Blocks of five slots, the two heads' in turn."""
    q, k, v, q_pos, k_pos = inputs()
    w = normalised(weights(q, k, q_pos, k_pos, bend))[:, 0]
    expected = np.einsum("bns,bnsh->bnh", w, np.repeat(v, G, axis=1))
    blocks = [x.reshape(B, K, S // 5, 5, *x.shape[3:]).swapaxes(1, 2) for x in (k, v, k_pos)]
    pool_k, pool_v, pool_pos = (x.reshape(B, -1, *x.shape[4:]) for x in blocks)
    owner = np.broadcast_to(np.tile(np.arange(K), S // 5), (B, K * S // 5))
    args = on_device(q[:, 0], pool_k, pool_v, q_pos[:, 0], pool_pos, owner)
    out, _ = pool_attention(
        *args, num_kv_heads=K, scale=H**-0.5, implementation=implementation, **BENDS[bend]
    )
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_slopes_are_the_papers() -> None:
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(16)[:3], [2**-0.5, 2**-1.0, 2**-1.5])
    np.testing.assert_allclose(alibi_slopes(6)[4:], [2**-1.0, 2**-3.0])


# K, S, H: as XLA stores them by slot and by dimension, and with the heads in turn.
SLABS = [(2, 264, 128), (3, 100, 64), (8, 133, 128)]
every_slab = pytest.mark.parametrize("slab", SLABS)


def slab_inputs(slab, count: int):
    heads, slots, h = slab
    rng = np.random.default_rng(1)
    shapes = [(B, count, heads * G, h), (B, heads, slots, h), (B, heads, slots, h)]
    q, k, v = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    k_pos = jnp.asarray(np.tile(np.arange(slots), (B, heads, 1)), jnp.int32)
    q_pos = jnp.asarray(slots // 2 + np.arange(count), jnp.int32)
    q_pos = jnp.broadcast_to(q_pos, (B, count))
    slopes = jnp.asarray(alibi_slopes(heads * G), jnp.float32)
    return q, k, v, q_pos, k_pos, {"slopes": slopes, "soft_cap": 1.5}


@every_slab
def test_the_tpu_decode_kernel(slab) -> None:
    q, k, v, q_pos, k_pos, bends = slab_inputs(slab, 1)
    args, options = (q[:, 0], k, v, q_pos[:, 0], k_pos), {"scale": 0.1, "window": 9, "sinks": 3}
    with_mass = slab[0] != 8  # where heads take turns there is none
    got = tpu_decode.decode_attention(
        *args, **options, **bends, q_sink=q[:, 0] * 2, with_mass=with_mass, interpret=True
    )
    expected = decode_attention(*args, **options, **bends, q_sink=q[:, 0] * 2, with_mass=with_mass)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


@every_slab
def test_the_tpu_prefill_and_mass_kernels(slab) -> None:
    q, k, v, q_pos, k_pos, bends = slab_inputs(slab, 20)
    args = q, k, v, q_pos, k_pos
    out, lse = tpu_prefill.prefill_attention(
        *args, scale=0.1, window=60, sinks=3, num_slots=None, **bends, interpret=True
    )
    expected = prefill_attention(*args, scale=0.1, window=60, sinks=3, **bends)
    np.testing.assert_allclose(out, expected[0], atol=5e-6)
    np.testing.assert_allclose(lse, expected[1], atol=5e-6)
    _, lse = prefill_attention(*args, scale=0.1, **bends)
    got = tpu_mass.attention_mass(
        q, lse, k, q_pos, k_pos, scale=0.1, num_slots=None, **bends, interpret=True
    )
    np.testing.assert_allclose(
        got, attention_mass(q, lse, k, q_pos, k_pos, scale=0.1, **bends), atol=2e-5
    )


def test_the_tpu_prefill_kernel_has_a_derivative() -> None:
    q, k, v, q_pos, k_pos, bends = slab_inputs((3, 100, 64), 20)

    def loss(f, q, **more):
        return jnp.sum(f(q, k, v, q_pos, k_pos, scale=0.1, window=None, sinks=0, **more)[0] ** 2)

    expected = jax.grad(lambda q: loss(prefill_attention, q, **bends))(q)
    got = jax.grad(
        lambda q: loss(tpu_prefill.prefill_attention, q, num_slots=None, interpret=True, **bends)
    )(q)
    np.testing.assert_allclose(got, expected, atol=1e-5)
