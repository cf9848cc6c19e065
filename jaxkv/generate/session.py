# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A batch of streams from its first token on: what the commands and `generate` are made of."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxkv.cache.bytes import kept_tokens, nbytes, steps_taken, tokens_seen
from jaxkv.cache.packed import FORMS
from jaxkv.cache.slab import LAST_POSITION
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.hosts import fetch
from jaxkv.core.shards import DATA
from jaxkv.generate.compress import compressed
from jaxkv.generate.loop import DISPATCH, Programs, compilations, dispatch, feed, programs
from jaxkv.generate.room import ROUND, capacity, check_room, default_chunk, over_devices
from jaxkv.generate.running import prepared, running
from jaxkv.generate.sampling import Sampler, make_sampler
from jaxkv.generate.state import State, dealt, start
from jaxkv.layers.base import Cache, Policy
from jaxkv.models.decoder import CHUNK, geometry
from jaxkv.models.mesh import Meshed, check_layout, device_bytes, put
from jaxkv.models.plan import plan
from jaxkv.policies.full import Full
from jaxkv.policies.registry import check_policy_given, describe

MARGIN = 2**24  # positions that are left over: a prompt's last call may be padded


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to generate; see `generate`."""

    policy: Policy = dataclasses.field(default_factory=Full)
    sampler: Sampler = dataclasses.field(default_factory=make_sampler)
    max_new_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()
    prefill_chunk: int | None = None
    max_length: int | None = None
    kv_dtype: str | None = None
    cache_layout: str | None = None

    def __post_init__(self) -> None:
        check_policy_given(self.policy)
        check_layout(self.cache_layout)
        for name in ("max_new_tokens", "prefill_chunk", "max_length"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LAST_POSITION:
                raise InputError(
                    f"{name.replace('_', '-')} is {value}; it must be at least 1 and at most "
                    f"{LAST_POSITION}"
                )
        if self.kv_dtype not in (None, *FORMS):
            *most, last = FORMS
            raise InputError(
                f"kv-dtype is {self.kv_dtype!r}; it must be {', '.join(most)} or {last}"
            )
        if any(not text for text in self.stop):
            raise InputError("a stop string is empty; it must have at least one character")


@dataclasses.dataclass
class Timing:
    """Seconds, as they were spent."""

    load_s: float = 0.0
    compile_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    first_token_s: float = 0.0


@dataclasses.dataclass
class Session:
    """A batch of streams, with the programs that move it and the time they take."""

    model: Model
    settings: Settings
    state: State
    made: Programs
    timing: Timing
    began: float
    compiled: dict[str, int]
    eos: jax.Array
    fills: bool  # the cache holds `geometry.max_length` tokens and no more
    far: bool  # a query may see keys at any distance
    rows: int  # those that were asked for: over a mesh there may be some more, which are ended
    longest: int = 0  # tokens that a row has taken in, at most
    reading_peak: int = 0  # of programs that are no longer needed
    cut: set[int] = dataclasses.field(default_factory=set)  # rows that were ended from outside

    @classmethod
    def begin(
        cls, model: Model, settings: Settings, batch_size: int, longest: int,
        state: State | None = None, load_s: float = 0.0, decodes: bool = True,
    ) -> Session:  # fmt: skip
        """Allocates the caches and compiles the two programs, or one where nothing is chosen."""
        began, before = time.perf_counter(), compilations()
        model = prepared(model, settings.policy)
        usual = running(settings.policy, geometry(model.config, 1, ROUND))
        length = capacity(settings.max_length, longest, settings.max_new_tokens, usual.grows)
        # Most caches that never fill up are the same for every prompt, and so are their programs.
        if running(settings.policy, geometry(model.config, 1, length)).keeps == usual.keeps:
            length = ROUND
        dtype = settings.kv_dtype or str(model.params["embed"].dtype)
        longest_so_far = 0
        if state is not None:
            length = state.cache.geometry.max_length
            if state.cache.layers:
                longest_so_far = int(tokens_seen(state.cache.layers).max())
        fixed = settings.max_length is not None or state is not None
        model, length, rows = over_devices(
            model,
            settings.policy,
            settings.cache_layout,
            batch_size,
            length,
            fixed or not usual.grows,
        )
        # What reads a prompt twice takes further ones as they come.
        whole = usual.whole_prompt and usual.repeats is None
        chunk = settings.prefill_chunk or default_chunk(longest, whole)
        # What chooses after a prompt reads it in smaller parts, however much it is given at once.
        part = CHUNK if whole else chunk
        check_room(model, settings.policy, rows, length, dtype, chunk, part)
        config = model.config
        if state is None:
            state = start(config, settings.policy, rows, length, dtype, settings.seed)
        elif isinstance(config, Meshed):
            state = dealt(config, settings.policy, state, rows)
        eos = put(config, np.asarray(model.tokenizer.eos_ids or (-2,), np.int32))
        made = programs(
            model.params,
            model.config,
            settings.policy,
            settings.sampler,
            state,
            eos,
            chunk,
            decodes,
        )
        timing = Timing(load_s=load_s, compile_s=time.perf_counter() - began)
        new = {name: count - before[name] for name, count in compilations().items()}
        far = model.config.rope is not None and usual.far
        return cls(
            model, settings, state, made, timing, began, new, eos, usual.grows, far, batch_size,
            longest_so_far,
        )  # fmt: skip

    @property
    def rooms(self) -> np.ndarray | None:
        """Tokens that still fit in each row [B]; None if the policy never fills up."""
        if not self.fills:
            return None
        seen = tokens_seen(self.state.cache.layers)[: self.rows]
        return self.state.cache.geometry.max_length - seen

    @property
    def room(self) -> int | None:
        """Tokens that still fit in every row; None if the policy never fills up."""
        rooms = self.rooms
        return None if rooms is None else int(rooms.min())

    @property
    def closed(self) -> np.ndarray:
        """Rows [B] whose answer ended by itself: its end-of-sequence token is in the cache."""
        closed = np.array(fetch(self.state.done))[: self.rows]
        closed[list(self.cut)] = False
        return closed

    def feed(
        self, prompts: list[list[int]], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Takes prompts in, and wakes rows that had ended."""
        rooms = self.rooms
        for row, prompt in enumerate(prompts):
            self.model.check_ids(prompt, "a prompt's")
            if rooms is not None and len(prompt) >= rooms[row]:
                raise InputError(
                    f"the prompt has {len(prompt)} tokens and the full cache has room for "
                    f"{rooms[row]} and the answer; raise --max-length or choose a policy that "
                    "evicts"
                )
        missing = self.state.done.shape[0] - self.rows
        prompts = [*prompts, *[[]] * missing]
        planned = running(self.settings.policy, self.state.cache.geometry)
        if not self.longest and planned.repeats:
            self._read_twice(prompts, progress)
            return
        most = max(map(len, prompts))
        if self.longest and planned.later is not None and most > planned.later:
            name = describe(self.settings.policy)["name"]
            warnings.warn(
                f"a later prompt has {most} tokens, and {name} keeps the last {planned.later} of "
                "such; it chooses from the first prompt alone",
                stacklevel=2,
            )
        self._take(max(map(len, prompts)))
        self.cut.clear()
        made = self._fit(max(map(len, prompts)))
        began = time.perf_counter()
        config = self.model.config
        state = dataclasses.replace(self.state, done=self._awake())
        self.state = feed(made, self.model.params, config, state, prompts, progress)
        jax.block_until_ready(self.state.logits)
        self.timing.prefill_s += time.perf_counter() - began

    def _read_twice(
        self, prompts: list[list[int]], progress: Callable[[int, int], None] | None
    ) -> None:
        """Reads prompts with everything kept, and what the policy keeps of them is chosen then."""
        policy = self.settings.policy
        queries, moments = plan(policy, self.state.cache.geometry).looks_at
        settings = dataclasses.replace(
            self.settings, policy=Full(queries=queries, moments=moments), max_new_tokens=1,
            max_length=None,
        )  # fmt: skip
        longest = max(map(len, prompts))
        first = Session.begin(self.model, settings, len(prompts), longest, decodes=False)
        first.feed(prompts, progress)
        began, everything = time.perf_counter(), first.state.cache
        assert isinstance(everything, Cache), "of `Full`"
        cache, peak = compressed(
            self.model, everything, policy, prompts, progress, self.state.cache.geometry
        )
        jax.block_until_ready(cache)
        state = dataclasses.replace(self.state, cache=cache, logits=first.state.logits)
        self.state = dataclasses.replace(state, done=self._awake())
        self.cut.clear()
        self.longest = first.longest
        self.reading_peak = max(peak, first.peak_bytes)
        self.timing.compile_s += first.timing.compile_s
        self.timing.prefill_s += first.timing.prefill_s + time.perf_counter() - began

    def _awake(self) -> jax.Array:
        """No row has ended, but for those that nobody asked for."""
        done = np.arange(self.state.done.shape[0]) >= self.rows
        return put(self.model.config, done, DATA)

    @property
    def peak_bytes(self) -> int:
        """What the largest of its programs held at once."""
        made = self.made
        decoding = 0 if made.decode is None else made.decode.peak_bytes
        return max(self.reading_peak, made.prefill.peak_bytes, decoding)

    def _fit(self, longest: int) -> Programs:
        """The programs for prompts of so many tokens; a chunk that was asked for is kept to."""
        if self.settings.prefill_chunk is not None:
            return self.made
        began, before = time.perf_counter(), compilations()
        made = self.made.fit(longest)
        self.timing.compile_s += time.perf_counter() - began
        for name, count in compilations().items():
            self.compiled[name] += count - before[name]
        return made

    def run(self, max_new_tokens: int) -> Iterator[np.ndarray]:
        """Yields new ids [B, n], -1 where a row has ended."""
        made = 0
        while made < max_new_tokens:
            # The first dispatch is of one token, so that it is shown at once; a stop string may
            # come with any.
            most = 1 if made == 0 or self.settings.stop else DISPATCH
            limit = min(most, max_new_tokens - made, self._end_full_rows())
            if fetch(self.state.done).all():
                return
            self._take(limit)
            began = time.perf_counter()
            self.state, ids = dispatch(
                self.made, self.model.params, self.model.config, self.state, self.eos, limit
            )
            now = time.perf_counter()
            self.timing.decode_s += now - began
            if not self.timing.first_token_s:
                self.timing.first_token_s = self.timing.load_s + now - self.began
            made += limit
            yield ids[: self.rows]

    def _take(self, count: int) -> None:
        """Counts tokens, and says once where a stream grows beyond what the model has learnt."""
        trained, before = self.model.config.max_positions, self.longest
        if before + count > LAST_POSITION - MARGIN:
            raise InputError(
                f"the stream has {before} tokens, and positions end at {LAST_POSITION}; begin a "
                "new one"
            )
        self.longest += count
        if self.far and before <= trained < self.longest:
            name = describe(self.settings.policy)["name"]
            warnings.warn(
                f"a stream of {self.longest} tokens is longer than the {trained} that the model "
                f"was trained on, and {name} keeps all distances: answers may be nonsense; "
                "streaming and window stay within it",
                stacklevel=2,
            )

    def _end_full_rows(self) -> int:
        """Ends rows whose cache is full, and gives how many tokens fit in all others."""
        rooms = self.rooms
        if rooms is None:
            return DISPATCH
        active = ~fetch(self.state.done)[: self.rows]
        for row in np.flatnonzero(active & (rooms <= 0)):
            self.end_row(int(row))
        return int(min(rooms[active & (rooms > 0)], default=0))

    def end_row(self, row: int) -> None:
        """Ends a row from outside: a stop string, an interrupt, or a full cache."""
        self.cut.add(row)
        self.state = dataclasses.replace(self.state, done=self.state.done.at[row].set(True))

    def _lies(self) -> dict[str, Any]:
        """Where the cache is, if that is on many devices."""
        config = self.model.config
        if not isinstance(config, Meshed):
            return {}
        mesh = {name: int(size) for name, size in config.mesh.shape.items()}
        each = device_bytes(self.state.cache)
        return {"mesh": mesh, "layout": config.layout, "device_bytes": each}

    def stats(self, new_tokens: int) -> dict[str, Any]:
        """The report: what was run, how long it took, what is held."""
        policy, cache = self.settings.policy, self.state.cache
        timing = dataclasses.asdict(self.timing)
        spent = self.timing.decode_s
        timing["tokens_per_s"] = new_tokens / spent if spent else 0.0
        total = sum(timing[name] for name in ("compile_s", "prefill_s", "decode_s"))
        timing["tokens_per_s_with_compile"] = new_tokens / total if total else 0.0
        rows = range(self.rows)
        steps = [found for row in rows if (found := steps_taken(cache.layers, row))]
        return {
            "policy": describe(policy),
            "timing": timing,
            "cache": {
                "nominal_bytes": running(policy, cache.geometry).nominal_bytes,
                "physical_bytes": nbytes(cache),
                **self._lies(),
                "peak_bytes": self.peak_bytes,
                "kept_tokens": [kept_tokens(cache.layers, row) for row in rows],
                **({"steps": steps} if steps else {}),
            },
            "compilations": self.compiled,
        }
