# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The two compiled programs of generation, and the only place that compiles.

There is one prefill program for any prompt length and one decode program for any answer length;
short texts that follow a long one, such as a question about it, have a narrow prefill program. They
are compiled ahead of their first call, so that the time, the count and the peak memory are
known and not guessed, and so that a change of shape is an error and not a silent recompilation.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jaxkv.core.hosts import fetch
from jaxkv.core.shards import DATA
from jaxkv.core.typing import Lengths, Params, Tokens
from jaxkv.generate.running import advance, forward
from jaxkv.generate.sampling import Sampler
from jaxkv.generate.state import State
from jaxkv.layers.base import Policy
from jaxkv.layers.declared import as_compiled
from jaxkv.models.config import ModelConfig
from jaxkv.models.mesh import Meshed, on_all, put, sharding, spec_of
from pallas_kernels import compiler

DISPATCH = 8  # tokens per dispatch: the host sees them together, and prints
SHORT = 64  # tokens of the narrow prefill program, for what follows a long text


def prefill_chunk(
    params: Params,
    state: State,
    tokens: Tokens,
    lengths: Lengths,
    *,
    config: ModelConfig,
    policy: Policy,
) -> tuple[State, None]:
    """Takes one chunk [B, T] of the prompts, of which `lengths` [B] tokens a row are valid."""
    logits, cache = advance(params, config, policy, tokens, state.cache, lengths)
    logits = jnp.where((lengths > 0)[:, None], logits, state.logits)
    return dataclasses.replace(state, cache=cache, logits=logits), None


def decode_tokens(
    params: Params,
    state: State,
    limit: Array,
    eos: Array,
    *,
    config: ModelConfig,
    policy: Policy,
    sampler: Sampler,
) -> tuple[State, Array]:
    """Chooses and takes in up to `limit` tokens on the device, until every row is done.

    Args:
      params: the model's.
      state: the streams.
      limit: int32 scalar, at most `DISPATCH`.
      eos: int32 [E], ids that end a row; they are taken in as well.
      config: static.
      policy: static.
      sampler: static.

    Returns:
      The state, and ids int32 [B, DISPATCH], -1 where a row produced nothing.
    """

    def body(carry: tuple[Array, State, Array]) -> tuple[Array, State, Array]:
        index, state, ids = carry
        keys = jax.vmap(jax.random.split)(state.keys)
        active = jnp.logical_not(state.done)
        token = sampler(keys[:, 1], state.logits)
        ended = jnp.any(token[:, None] == eos[None], axis=1)
        logits, cache = forward(
            params, config, policy, token[:, None], state.cache, active.astype(jnp.int32)
        )
        ids = ids.at[:, index].set(jnp.where(active, token, -1))
        state = State(
            cache=cache,
            logits=jnp.where(active[:, None], logits[:, 0], state.logits),
            keys=keys[:, 0],
            done=state.done | ended,
        )
        return index + 1, state, ids

    def more(carry: tuple[Array, State, Array]) -> Array:
        index, state, _ = carry
        return (index < limit) & jnp.logical_not(jnp.all(state.done))

    ids = jnp.full((state.done.shape[0], DISPATCH), -1, jnp.int32)
    _, state, ids = jax.lax.while_loop(more, body, (jnp.int32(0), state, ids))
    return state, ids


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, with what its making cost.

    Attributes:
      call: the executable.
      compile_s: seconds of tracing, lowering and compiling (or reading from the disk cache).
      peak_bytes: arguments, outputs and temporaries at once, aliased buffers counted once.
      text: gives the compiled program.
    """

    call: Callable[..., Any]
    compile_s: float
    peak_bytes: int
    text: Callable[[], str | None]


Statics = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Signature:
    """The shapes and dtypes of a call's arguments, and how they lie over a mesh, hashable."""

    tree: Any
    leaves: tuple[tuple[tuple[int, ...], Any, Sharding | None], ...]

    @classmethod
    def of(cls, args: tuple) -> Signature:
        """Of arrays, or of anything with a shape and a dtype."""
        leaves, tree = jax.tree.flatten(args)
        return cls(tree, tuple((leaf.shape, leaf.dtype, _lies(leaf)) for leaf in leaves))

    @property
    def args(self) -> tuple:
        """Abstract."""
        shapes = [jax.ShapeDtypeStruct(x, dtype, sharding=how) for x, dtype, how in self.leaves]
        return jax.tree.unflatten(self.tree, shapes)


def _lies(leaf: Any) -> Sharding | None:
    """Over a mesh, or on a device that is not here; an array that is here says where it is."""
    how = getattr(leaf, "sharding", None)
    here = isinstance(leaf, Array) and not isinstance(how, NamedSharding)
    return None if here else how


def lowered(
    function: Callable[..., Any], signature: Signature, statics: Statics
) -> jax.stages.Lowered:
    """`function(*args, **statics)`, traced and not yet compiled; see `begin_program`."""
    args, given = signature.args, dict(statics)
    config = given.get("config")
    run = functools.partial(function, **given)
    if isinstance(config, Meshed):
        specs = jax.tree.map(spec_of, args)
        run = functools.partial(function, **{**given, "config": config.part})
        run = on_all(run, config, specs, (specs[1], PartitionSpec(DATA)))
    return jax.jit(run, donate_argnums=(1,)).lower(*args)


def begin_program(
    function: Callable[..., Any], signature: Signature, statics: Statics
) -> Future[Program]:
    """Traces `function(*args, **statics)`, and compiles it beside what the caller does then.

    Its second argument is donated, and its first result is what has become of it. The second, if
    there is one, are arrays of rows. With a `config` that is on a mesh, every device runs the
    whole of it, on the parts of the arguments that lie there.

    Two programs that are compiled at once are ready when the longer one is. Tracing stays in the
    caller's thread, which what it set for jax may be bound to.
    """
    started = time.perf_counter()
    made = lowered(function, signature, statics)

    def compile_lowered() -> Program:
        compiled = made.compile(compiler_options=compiler.options())
        memory: Any = compiled.memory_analysis()
        peak = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
        return Program(compiled, time.perf_counter() - started, peak, compiled.as_text)

    beside = ThreadPoolExecutor(1)
    try:
        return beside.submit(compile_lowered)
    finally:
        beside.shutdown(wait=False)


def compile_program(
    function: Callable[..., Any], signature: Signature, statics: Statics
) -> Program:
    """As `begin_program`, and waits for it."""
    return begin_program(function, signature, statics).result()


@functools.lru_cache(maxsize=64)
def _compile_prefill(signature: Signature, statics: Statics) -> Future[Program]:
    return begin_program(prefill_chunk, signature, statics)


@functools.lru_cache(maxsize=64)
def _compile_decode(signature: Signature, statics: Statics) -> Future[Program]:
    return begin_program(decode_tokens, signature, statics)


@functools.lru_cache(maxsize=64)
def kept_program(function: Callable[..., Any], signature: Signature, statics: Statics) -> Program:
    """As `compile_program`, or the one that was made before."""
    return compile_program(function, signature, statics)


def _ready(begun: Future[Program]) -> Program:
    """Waits for a program; one that failed, for want of memory perhaps, can be asked for again."""
    try:
        return begun.result()
    except Exception:
        _compile_prefill.cache_clear()
        _compile_decode.cache_clear()
        raise


def forget_programs() -> None:
    """Lets go of all compiled programs, and of the memory and the memory maps that they take."""
    _compile_prefill.cache_clear()
    _compile_decode.cache_clear()
    kept_program.cache_clear()
    jax.clear_caches()


def compilations() -> dict[str, int]:
    """How many programs of each kind this process has compiled."""
    return {
        "prefill": _compile_prefill.cache_info().misses,
        "decode": _compile_decode.cache_info().misses,
    }


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs that serve a batch of streams from start to end.

    Attributes:
      prefill: takes `chunk` tokens a row.
      decode: makes up to `DISPATCH`; None where nothing is to be chosen.
      chunk: tokens.
      compile_prefill: gives a prefill program of so many tokens.
    """

    prefill: Program
    decode: Program | None
    chunk: int
    compile_prefill: Callable[[int], Program]

    def fit(self, longest: int) -> Programs:
        """The programs for a text of so many tokens, compiled if that was not asked for before."""
        if not longest <= SHORT < self.chunk:
            return self
        return dataclasses.replace(self, prefill=self.compile_prefill(SHORT), chunk=SHORT)


def programs(
    params: Params, config: ModelConfig, policy: Policy, sampler: Sampler, state: State,
    eos: Array, chunk: int, decodes: bool = True,
) -> Programs:  # fmt: skip
    """Compiles prefill and, where it `decodes`, decode, or finds them compiled."""
    batch = state.done.shape[0]
    streams: State = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_lies(leaf)), state
    )
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding(config))
    by_rows = sharding(config, DATA)
    statics = (("config", config), ("policy", as_compiled(policy)))

    def compile_prefill(size: int) -> Future[Program]:
        tokens = jax.ShapeDtypeStruct((batch, size), jnp.int32, sharding=by_rows)
        lengths = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=by_rows)
        return _compile_prefill(Signature.of((params, streams, tokens, lengths)), statics)

    decode = None
    if decodes:
        signature = Signature.of((params, streams, scalar, eos))
        decode = _compile_decode(signature, (*statics, ("sampler", sampler)))
    prefill = _ready(compile_prefill(chunk))
    ready = None if decode is None else _ready(decode)
    return Programs(prefill, ready, chunk, lambda size: _ready(compile_prefill(size)))


def feed(
    made: Programs,
    params: Params,
    config: ModelConfig,
    state: State,
    prompts: list[list[int]],
    progress: Callable[[int, int], None] | None = None,
) -> State:
    """Takes prompts of any lengths into the caches, chunk by chunk; token-exact.

    Args:
      made: the programs.
      params: the model's.
      config: the model.
      state: the streams; donated.
      prompts: token ids of each row.
      progress: called with (tokens of the longest prompt done, all of them).

    Returns:
      The state, whose `logits` are for the token after each prompt.
    """
    longest = max(len(prompt) for prompt in prompts)
    for begin in range(0, longest, made.chunk):
        tokens = np.zeros((len(prompts), made.chunk), np.int32)
        lengths = np.zeros((len(prompts),), np.int32)
        for row, prompt in enumerate(prompts):
            part = prompt[begin : begin + made.chunk]
            tokens[row, : len(part)] = part
            lengths[row] = len(part)
        chunk = put(config, tokens, DATA), put(config, lengths, DATA)
        state, _ = made.prefill.call(params, state, *chunk)
        if progress:
            jax.block_until_ready(state.logits)
            progress(min(begin + made.chunk, longest), longest)
    return state


def dispatch(
    made: Programs, params: Params, config: ModelConfig, state: State, eos: Array, limit: int
) -> tuple[State, np.ndarray]:
    """One call of the decode program.

    Args:
      made: the programs.
      params: the model's.
      config: the model.
      state: the streams; donated.
      eos: ids that end a row.
      limit: of new tokens, at most `DISPATCH`.

    Returns:
      The state, and the ids [B, n], -1 where a row produced nothing; n < limit if all rows ended.
    """
    assert made.decode is not None, "the session was begun for prompts alone"
    state, ids = made.decode.call(params, state, put(config, np.int32(limit)), eos)
    new = fetch(ids)
    return state, new[:, : int((new >= 0).any(axis=0).sum())]
