# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The laws of a policy, tried on a toy: for who writes one of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.cache.bytes import kept_tokens
from jaxkv.core.errors import InputError, one_line
from jaxkv.core.rope import Rope
from jaxkv.layers.api import prefill, step
from jaxkv.layers.base import (
    Chunk,
    Constants,
    Geometry,
    LayerCache,
    LayerPolicy,
    Policy,
    WholePrompt,
)
from jaxkv.models.plan import plan
from jaxkv.policies.full import Full
from jaxkv.policies.registry import check_policy_given, with_budget

# Two KV heads that two query heads each read; rows of different lengths, and padding behind them.
TOY = Geometry(
    num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, batch_size=3, max_length=64
)  # fmt: skip
GROUP = TOY.num_heads // TOY.num_kv_heads
LENGTHS = (40, 1, 23)
STEPS = 4
WIDTH = 12  # D
ROPE = Rope(8)
CLOSE = 1e-4  # float32, sums in another order


def check_policy(policy: Policy, progress: Callable[[str], None] | None = None) -> None:
    """Tries the laws on a layer of a toy model; some seconds, for each shape is compiled.

    What is tried: the settings (frozen, hashable, equal when made again), the shapes, prompts of
    three lengths and steps after them, rows beside each row alone, padding, rows that take nothing,
    compiled beside op by op, what is kept beside what `facts` says, and, where the policy declares
    its size with `swept`, that a size which is never reached gives what a full cache gives.

    Args:
      policy: yours.
      progress: called with each law before it is tried.

    Raises:
      InputError: the first law that does not hold, in one line.
    """
    for said, law in LAWS.items():
        if progress:
            progress(said)
        try:
            wrong = law(policy)
        except InputError:
            raise
        except Exception as error:  # of the author's code: where it is wrong is what it says
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"{_name(policy)}: {said}, but {reason:.300}") from error
        if wrong:
            raise InputError(f"{_name(policy)}: {said}, but {wrong}")


def _settings(policy: Policy) -> str:
    check_policy_given(policy)
    fields = {x.name: getattr(policy, x.name) for x in dataclasses.fields(policy) if x.init}
    again = type(policy)(**fields)
    if again != policy or hash(again) != hash(policy):
        return f"{again!r:.200} is not equal to {policy!r:.200}"
    return ""


def _facts(policy: Policy) -> str:
    keeps = _layer(policy).facts().keeps
    if len(keeps) != TOY.num_kv_heads or not all(isinstance(n, int) and n >= 0 for n in keeps):
        return f"facts().keeps is {keeps!r:.80}; it must be {TOY.num_kv_heads} ints, one a KV head"
    return ""


def _shapes(policy: Policy) -> str:
    layer = _layer(policy)
    before = jax.eval_shape(layer.init)
    for count, decoding in ((7, False), (1, False), (1, True)):
        q, k, v = _tokens(count)
        chunk = Chunk(q, k, v, None, ROPE, decoding, _hidden(count), Constants(_wo()))
        got = jax.eval_shape(layer.take, before, chunk)
        if not (isinstance(got, tuple) and len(got) == 2):
            return f"it gives {type(got).__name__}"
        cache, out = got
        if getattr(out, "shape", None) != q.shape:
            return f"the second of what it gives is {out!r:.120}; (cache, out) is the order, and "\
                   f"out has the shape of q, {q.shape}"  # fmt: skip
        if jax.tree.structure(cache) != jax.tree.structure(before):
            return f"after {count} tokens the cache is another tree"
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(cache), strict=True)
        for old, new in pairs:
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                return f"after {count} tokens {old.dtype}{old.shape} is {new.dtype}{new.shape}"
    return ""


def _finite(policy: Policy) -> str:
    _, outs = _run(policy)
    bad = [i for i, out in enumerate(outs) if not np.isfinite(out).all()]
    return f"a NaN or an infinity comes out of {_when(bad[0])}" if bad else ""


def _rows(policy: Policy) -> str:
    _, together = _run(policy)
    for row in range(TOY.batch_size):
        _, alone = _run(policy, rows=(row,))
        for index, (mine, one) in enumerate(zip(together, alone, strict=True)):
            apart = _apart(mine[row : row + 1], one)
            if apart > CLOSE:
                return f"row {row} in a batch is {apart:.2g} off in {_when(index)}"
    return ""


def _padding(policy: Policy) -> str:
    apart = _furthest(_run(policy)[1], _run(policy, padding=9.0)[1])
    return f"what stands behind a row's length changes it by {apart:.2g}" if apart > CLOSE else ""


def _idle(policy: Policy) -> str:
    layer = _layer(policy)
    cache, _ = _run(policy)
    q, k, v = _tokens(1)
    lengths = jnp.asarray([1, 0, 1], jnp.int32)
    after, _ = _step(layer, cache, q, k, v, rope=ROPE, lengths=lengths)
    for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(after), strict=True):
        if old.shape[:1] == (3,) and not np.array_equal(old[1], new[1], equal_nan=True):
            return f"{old.dtype}{old.shape} of its cache has changed"
    return ""


def _compiled(policy: Policy) -> str:
    with jax.disable_jit():
        _, plain = _run(policy)
    apart = _furthest(_run(policy)[1], plain)
    return f"they are {apart:.2g} apart" if apart > CLOSE else ""


def _held(policy: Policy) -> str:
    facts, (cache, _) = _layer(policy).facts(), _run(policy)
    for row, length in enumerate(LENGTHS):
        (found,) = kept_tokens((cache,), row)
        said = [n + 1 for n in facts.kept(length + STEPS)]  # and the newest
        over = [head for head, n in enumerate(found) if n > said[head] and not facts.couples_heads]
        if over or sum(found) > sum(said):
            return f"heads hold {found} tokens of {length + STEPS}, and facts() says {said}"
    return ""


def _heads(policy: Policy) -> str:
    facts = _layer(policy).facts()
    if facts.couples_heads or not facts.heads_alike:
        return ""
    alone = _furthest([x[:, :, :GROUP] for x in _run(policy)[1]], _run(policy, heads=1)[1])
    return (
        f"its first head is {alone:.2g} off; a score that looks at other heads says "
        "`couples_heads = True`, and a layer in its facts()"
        if alone > CLOSE
        else ""
    )


def _whole_prompt(policy: Policy) -> str:
    if not isinstance(_layer(policy), WholePrompt):
        return ""
    apart = _apart(_run(policy)[1][0], _run(Full())[1][0])
    return f"they are {apart:.2g} apart" if apart > CLOSE else ""


def _roomy(policy: Policy) -> str:
    roomy = with_budget(policy, TOY.max_length)
    if roomy == policy:
        return ""
    apart = _furthest(_run(roomy)[1], _run(Full())[1])
    return f"with {TOY.max_length} tokens it is {apart:.2g} off" if apart > CLOSE else ""


LAWS: dict[str, Callable[[Policy], str]] = {
    "a policy is frozen, hashable, and equal to one of the same settings": _settings,
    "facts() says how many tokens each KV head keeps": _facts,
    "prefill and step give (cache, out), and never change a cache's shapes": _shapes,
    "outputs are finite, from an empty cache on": _finite,
    "a row in a batch gives what it gives alone": _rows,
    "padding does not matter": _padding,
    "a row that takes no token stays as it is": _idle,
    "compiled and op by op are the same": _compiled,
    "no head holds more than facts() says": _held,
    "a KV head in a layer is kept and read as it is alone": _heads,
    "a prompt is read with full attention by what chooses after it": _whole_prompt,
    "a size that is never reached gives what a full cache gives": _roomy,
}  # fmt: skip

_prefill = jax.jit(prefill, static_argnums=0, static_argnames="rope")
_step = jax.jit(step, static_argnums=0, static_argnames="rope")


def _name(policy: Any) -> str:
    return type(policy).__name__


def _layer(
    policy: Policy, rows: int = TOY.batch_size, heads: int = TOY.num_kv_heads
) -> LayerPolicy:
    part = dataclasses.replace(TOY, batch_size=rows, num_heads=heads * GROUP, num_kv_heads=heads)
    return plan(policy, part).layers[0]


def _tokens(count: int, seed: int = 0) -> tuple[jax.Array, ...]:
    """q [B, T, N, H], k and v [B, T, K, H]."""
    draws = np.random.default_rng([count, seed])
    heads = TOY.num_heads, TOY.num_kv_heads, TOY.num_kv_heads
    shapes = [(TOY.batch_size, count, n, TOY.head_dim) for n in heads]
    return tuple(jnp.asarray(draws.normal(size=shape), jnp.float32) for shape in shapes)


def _hidden(count: int) -> jax.Array:
    """[B, T, D]: what q, k and v might have been projected from."""
    draws = np.random.default_rng(count).normal(size=(TOY.batch_size, count, WIDTH))
    return jnp.asarray(draws, jnp.float32)


def _wo() -> jax.Array:
    """[N, H, D], an output projection."""
    draws = np.random.default_rng(0).normal(size=(TOY.num_heads, TOY.head_dim, WIDTH))
    return jnp.asarray(draws, jnp.float32)


def _run(
    policy: Policy,
    rows: tuple[int, ...] = (0, 1, 2),
    padding: float = 0.0,
    heads: int = TOY.num_kv_heads,
) -> tuple[LayerCache, list[np.ndarray]]:
    """Prompts of `LENGTHS` and some steps: the cache, and what came out, zeros where padded."""
    layer, at = _layer(policy, len(rows), heads), jnp.asarray(rows, jnp.int32)
    sizes = heads * GROUP, heads, heads
    lengths = jnp.asarray(LENGTHS, jnp.int32)
    valid = jnp.arange(max(LENGTHS), dtype=jnp.int32)[None] < lengths[:, None]
    prompt = [
        jnp.where(valid[..., None, None], x[:, :, :size], padding)[at]
        for x, size in zip(_tokens(max(LENGTHS)), sizes, strict=True)
    ]
    hidden = jnp.where(valid[..., None], _hidden(max(LENGTHS)), padding)[at]
    cache, out = _prefill(
        layer, layer.init(), *prompt, rope=ROPE, lengths=lengths[at], hidden=hidden,
        wo=_wo()[: sizes[0]],
    )  # fmt: skip
    outs = [np.where(valid[at][..., None, None], out, 0)]
    for index in range(STEPS):
        token = [x[at, :, :size] for x, size in zip(_tokens(1, index), sizes, strict=True)]
        cache, out = _step(layer, cache, *token, rope=ROPE)
        outs.append(np.asarray(out))
    return cache, outs


def _when(index: int) -> str:
    return f"step {index}" if index else "the prompt"


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


def _furthest(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(_apart(x, y) for x, y in zip(a, b, strict=True))
