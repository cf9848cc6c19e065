# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""What a policy is: a frozen dataclass whose layers turn (cache, chunk) into (cache, out).

A policy has no state. It is hashable, so that it can be a static argument of `jax.jit`; the cache
is data. `policy.at(layer, geometry)` gives a layer's policy, and models call nothing else.

Law: a new token is written, then attended to, then scores are taken, and only then is anything
evicted. What a step evicts, that step still saw.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxkv.cache.exported import exportable
from jaxkv.cache.geometry import Geometry
from jaxkv.cache.slab import Slab, new_positions
from jaxkv.core.scoring import of_heads
from jaxkv.core.typing import Hidden, Lengths, NewKeys, Positions, Queries, Rotation, SinkLogits
from pallas_kernels.softmax import Partial, with_sink

_Shape = jax.ShapeDtypeStruct
LayerCache = Any  # a pytree of arrays with a static shape
# What a layer may need of a prompt beside its keys and values; see `ScoredPolicy`.
NEEDS = ("mass", "moments", "hidden", "constants", "queries", "unrotated_keys", "replay")
# Of these, what is there only while the prompt is read: no cache keeps it.
FLEETING = ("hidden", "queries", "unrotated_keys")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a layer policy says of itself, so that nobody has to find it out.

    Attributes:
      keeps: of each KV head, in the model's order, the most tokens that it ever keeps.
      grows: whether a head keeps every token: a row is full after `max_length` of them.
      copies: tokens that every head holds a second time.
      stride: decode steps from one that reads all that is kept to the next; those between read the
        copies.
      far: whether a query may see a key that is any number of tokens away. A window bounds
        distances, and so do positions inside the cache; where nothing does, a stream longer than
        what a model was trained on meets distances that it never saw.
      couples_heads: whether what a KV head keeps or reads depends on other heads of its layer.
      heads_alike: whether every KV head is kept in the same way, so that a layer of some heads is
        what these are in a layer of more.
      later: the most tokens of later prompts that are kept, where only a first one is chosen from;
        None where every prompt is.
    """

    keeps: tuple[int, ...]
    grows: bool = False
    copies: int = 0
    stride: int = 1
    far: bool = True
    couples_heads: bool = False
    heads_alike: bool = True
    later: int | None = None

    def kept(self, seen: int) -> tuple[int, ...]:
        """Tokens that each KV head keeps after `seen` of them, with no slot for the newest."""
        return tuple(min(seen, most) + min(seen, self.copies) for most in self.keeps)


@flax.struct.dataclass
class Constants:
    """Parameters of a layer, for policies that look at what becomes of attention's output.

    Attributes:
      wo: [N, H, D], the output projection of each query head.
      surrogate: what was put beside the layer's parameters to tell what a token is worth, arrays
        whose last axis is the KV heads where it is the last of them; None for most models.
    """

    wo: Array
    surrogate: dict[str, Array] | None = None

    def heads(self, queries: Sequence[int], keys: Sequence[int]) -> Constants:
        """Those of some query heads, and of the KV heads that they read."""
        surrogate = self.surrogate
        if surrogate is not None:
            mine = {name: take_heads(surrogate[name], keys, axis=-1) for name in ("w", "b")}
            surrogate = {**surrogate, **mine}
        return Constants(take_heads(self.wo, queries, axis=0), surrogate)


@flax.struct.dataclass
class Chunk:
    """New tokens on their way into a layer: (a part of) a prompt, or one decoded token a row.

    Attributes:
      q: [B, T, N, H], un-rotated.
      k: [B, T, K, H], un-rotated.
      v: [B, T, K, H].
      lengths: int32 [B], valid tokens in each row, the rest is padding on the right; None if all
        are. A row of length 0 leaves its cache as it was.
      rope: rotates (x [B, T, N, H], positions [B, T]); None for a model without. A `Scoring` also
        bends scores.
      decoding: whether these are decoded tokens, and T is 1. A prompt of one token is a prompt.
      hidden: [B, T, D], the states that q, k and v were projected from, for layers that need them.
      constants: of the layer, for those that need them and take a whole prompt at once.
      sink_logits: [N], scores that every query of a head gives to no key, in models that have them
        (zero in softmax-off-by-one; arXiv 2309.17453, section 3.3). Not StreamingLLM's sink tokens.
    """

    q: Queries
    k: NewKeys
    v: NewKeys
    lengths: Lengths | None
    rope: Rotation | None = flax.struct.field(pytree_node=False)
    decoding: bool = flax.struct.field(pytree_node=False)
    hidden: Hidden | None = None
    constants: Constants | None = None
    sink_logits: SinkLogits | None = None

    @property
    def count(self) -> int:
        """T."""
        return self.q.shape[1]

    def positions(self, slab: Slab) -> Positions:
        """Where the tokens stand that come next in a slab, int32 [B, T]; -1 where padded."""
        return new_positions(slab, self.count, self.lengths)

    def rotated(self, at: Positions) -> tuple[Queries, NewKeys]:
        """q and k at positions [B, T]."""
        return rotate(self.rope, self.q, at), rotate(self.rope, self.k, at)

    def with_sink(self, out: Queries, lse: Array) -> Partial:
        """Attention over all that the tokens see, [B, T, N, H] and [B, T, N]: with the sink too.

        It is one more part of the union, whose value is 0.
        """
        if self.sink_logits is None:
            return out, lse
        return with_sink(out, lse, self.sink_logits[None, None])

    def heads(self, queries: Sequence[int], keys: Sequence[int]) -> Chunk:
        """The chunk of some heads: those of q, and the KV heads that they read."""
        sinks = self.sink_logits
        return dataclasses.replace(
            self,
            q=take_heads(self.q, queries),
            k=take_heads(self.k, keys),
            v=take_heads(self.v, keys),
            rope=of_heads(self.rope, queries),
            constants=None if self.constants is None else self.constants.heads(queries, keys),
            sink_logits=None if sinks is None else take_heads(sinks, queries, axis=0),
        )


@runtime_checkable
class LayerPolicy(Protocol):
    """How one layer keeps and reads its keys. Frozen and hashable."""

    def init(self) -> LayerCache:
        """An empty cache."""
        ...

    def take(self, cache: LayerCache, chunk: Chunk) -> tuple[LayerCache, Queries]:
        """Takes in a chunk of a prompt, or a decoded token: which of them, `chunk.decoding` says.

        Returns:
          The cache after the chunk, and out [B, T, N, H], undefined where padded.
        """
        ...

    def facts(self) -> Facts:
        """What it keeps and needs, by the policy's own formula."""
        ...


class WholePrompt(abc.ABC):
    """A layer policy that chooses what to keep when it has seen the whole prompt.

    A model runs the prompt through such a layer chunk by chunk, before it goes on to the next
    layer, so that only one layer's keys are there in full: it calls `open`, `provide`, `feed` for
    every chunk, and `close`. `take` does the same with the prompt as one chunk.

    Attributes:
      needs: of `NEEDS`, what the layer chooses by; with "hidden" among them chunks have their
        hidden states, and with "constants" `provide` has the layer's.
      joint: whether all layers of a model choose together, after the last of them has read.
    """

    needs: tuple[str, ...] = ()
    joint: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self) -> LayerCache:
        """An empty cache."""

    @abc.abstractmethod
    def step(self, cache: LayerCache, chunk: Chunk) -> tuple[LayerCache, Queries]:
        """Takes one decoded token a row."""

    @abc.abstractmethod
    def open(self, cache: LayerCache, count: int) -> Any:
        """A draft for a prompt of up to `count` tokens, on top of what is kept."""

    def provide(self, draft: Any, like: Hidden | None, constants: Constants | None) -> Any:
        """The draft with what the layer needs of its model, before anything is fed.

        Args:
          draft: from `open`.
          like: [B, count, D], of the shape and dtype of all hidden states that will come; None
            where none will.
          constants: of the layer, for those that need them.
        """
        del like, constants
        return draft

    @abc.abstractmethod
    def feed(self, draft: Any, start: Array, count: int, chunk: Chunk) -> tuple[Any, Queries]:
        """Takes the chunk that begins at token `start` of the prompt.

        Args:
          draft: from `open`.
          start: int32 scalar, traced; the same in every row.
          count: what the draft was opened for.
          chunk: the next T tokens.

        Returns:
          The draft, and out [B, T, N, H], undefined where padded.
        """

    @abc.abstractmethod
    def close(self, draft: Any, cache: LayerCache, rope: Rotation | None) -> LayerCache:
        """The cache after the prompt; `cache` is the one that the draft was opened on."""

    @abc.abstractmethod
    def facts(self) -> Facts:
        """See `LayerPolicy`."""

    def take(self, cache: LayerCache, chunk: Chunk) -> tuple[LayerCache, Queries]:
        """A decoded token, or a whole prompt at once."""
        if chunk.decoding:
            return self.step(cache, chunk)
        draft = self.provide(self.open(cache, chunk.count), chunk.hidden, chunk.constants)
        draft, out = self.feed(draft, jnp.int32(0), chunk.count, chunk)
        return self.close(draft, cache, chunk.rope), out


class FromFull(abc.ABC):
    """A layer policy that can choose from a cache that kept everything."""

    def looks_at(self) -> tuple[tuple[str, ...], int]:
        """What it must know of the prompt, of `NEEDS`, and how many of its last queries."""
        return (), 0

    @abc.abstractmethod
    def from_full(
        self, empty: LayerCache, kept: Any, rope: Rotation | None, constants: Constants | None
    ) -> LayerCache:
        """The cache as it would be, had the layer read the prompt itself.

        Args:
          empty: a cache of this layer.
          kept: everything: a `Slab`, or a `draft.Read`, which holds more.
          rope: how the model scores in this layer.
          constants: of the layer.

        Raises:
          InputError: the layer needs what was not kept.
        """


@runtime_checkable
class Policy(Protocol):
    """A way to keep a small cache. Frozen and hashable; its fields are what users set."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def at(self, layer: int, geometry: Geometry) -> LayerPolicy:
        """The policy of layer `layer`."""
        ...


@flax.struct.dataclass
class Cache:
    """A model's cache: immutable, of static shape, donated from step to step.

    Attributes:
      layers: what each layer keeps.
      geometry: the static shapes that it was made for.
      pool: what layers hold together, where one budget is for all; None for most policies.
    """

    layers: tuple[LayerCache, ...]
    geometry: Geometry = flax.struct.field(pytree_node=False)
    pool: Any = None

    def __repr__(self) -> str:
        g = self.geometry
        rows = f"{g.batch_size} row{'s' * (g.batch_size > 1)}"
        kinds = Array | np.ndarray | _Shape
        leaves = jax.tree.leaves((self.layers, self.pool))
        arrays = [x for x in leaves if isinstance(x, kinds)]
        size = sum(x.size * x.dtype.itemsize for x in arrays)
        return f"<Cache: {len(self.layers)} layers, {rows}, {size:,} bytes, {g.dtype}>"


def _geometry(kept: dict[str, Any]) -> Geometry:
    return dataclasses.replace(Geometry(**kept), windows=tuple(kept["windows"]))


exportable(Cache, dataclasses.asdict, _geometry)


def rotate(rope: Rotation | None, x: Array, positions: Array) -> Array:
    """Rotates heads [B, T, N, H] to positions [B, T], where the model rotates at all."""
    return x if rope is None else rope(x, positions)


def take_heads(x: Array, order: Sequence[int], axis: int = 2) -> Array:
    """Heads [B, T, N, H] in an order; a slice of them, or all as they are, where that does."""
    begin, count = (order[0] if order else 0), len(order)
    if list(order) != list(range(begin, begin + count)):
        return jnp.take(x, jnp.asarray(order, jnp.int32), axis=axis, mode="clip")
    return x if count == x.shape[axis] else lax.slice_in_dim(x, begin, begin + count, axis=axis)
