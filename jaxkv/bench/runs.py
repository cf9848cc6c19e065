# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The timed runs: a prompt of random tokens, tokens after it, and a long stream."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.cache.bytes import nbytes, steps_taken
from jaxkv.checkpoints.model import Model
from jaxkv.generate.loop import DISPATCH, compilations
from jaxkv.generate.running import running
from jaxkv.generate.session import Session, Settings
from jaxkv.generate.state import start
from jaxkv.layers.base import Policy
from jaxkv.models.mesh import device_bytes
from jaxkv.policies.registry import describe

NEVER = jnp.asarray([-2], jnp.int32)  # no token ends a timed run


@dataclasses.dataclass
class Runner:
    """One policy at one length of context, timed again and again with the same two programs."""

    model: Model
    policy: Policy
    prompt: list[int]
    settings: Settings
    session: Session
    prefills: list[float]
    steps: list[float]

    @classmethod
    def make(
        cls, model: Model, policy: Policy, prompt: list[int], new_tokens: int, chunk: int | None,
        kv_dtype: str | None = None,
    ) -> Runner:  # fmt: skip
        """Compiles, and takes the prompt once, which is not counted."""
        settings = Settings(
            policy=policy, max_new_tokens=new_tokens, prefill_chunk=chunk, kv_dtype=kv_dtype
        )
        session = Session.begin(model, settings, 1, len(prompt))
        session.eos = NEVER
        runner = cls(model, policy, prompt, settings, session, [], [])
        runner.prefill()
        runner.prefills.clear()
        return runner

    def prefill(self) -> None:
        """Takes the prompt into an empty cache, and notes the seconds."""
        g = self.session.state.cache.geometry
        self.session.state = start(
            self.session.model.config, self.policy, g.batch_size, g.max_length, g.dtype,
            self.settings.seed,
        )  # fmt: skip
        self.session.longest = 0  # what reads its first prompt twice does so again
        jax.block_until_ready(self.session.state)
        began = time.perf_counter()
        self.session.feed([self.prompt])
        self.prefills.append(time.perf_counter() - began)

    def decode(self) -> None:
        """Decodes after the prompt, and notes the seconds of each token."""
        began = time.perf_counter()
        for ids in self.session.run(self.settings.max_new_tokens):
            now = time.perf_counter()
            if ids.shape[1] == DISPATCH:
                self.steps.append((now - began) / DISPATCH)
            began = time.perf_counter()

    def row(self, bandwidth: float) -> dict[str, Any]:
        """The medians, and how they stand to what must be read."""
        cache = self.session.state.cache
        # Over a mesh, of each device; the bandwidth is that of one.
        share = device_bytes(cache) / max(1, nbytes(cache))
        read = device_bytes(self.model.params) + self._keys_read() * share
        row: dict[str, Any] = {
            "policy": describe(self.policy),
            "context": len(self.prompt),
            "kv_dtype": cache.geometry.dtype,
            "cache": {
                "nominal_bytes": running(self.policy, cache.geometry).nominal_bytes,
                "physical_bytes": nbytes(cache),
                "peak_bytes": self.session.peak_bytes,
            },
            "compile_s": self.session.timing.compile_s,
        }
        if self.prefills:
            seconds = statistics.median(self.prefills)
            row |= {"prefill_s": seconds, "prefill_tokens_per_s": len(self.prompt) / seconds}
        if self.steps:
            seconds = statistics.median(self.steps)
            mean = statistics.fmean(self.steps)
            row |= {"step_ms": seconds * 1e3, "mean_step_ms": mean * 1e3}
            row |= {"tokens_per_s": 1 / seconds}
            if cache.layers:
                # A median leaves out a step of full attention now and then.
                paced = mean if steps_taken(cache.layers) else seconds
                row |= {"bytes_read": read, "roofline": read / bandwidth / paced}
        return row

    def _keys_read(self) -> float:
        """Bytes of keys and values that a step reads, on average."""
        cache = self.session.state.cache
        if counted := steps_taken(cache.layers):
            return counted["key_bytes_per_step"]
        # Numbers, and the scales of packed ones; positions are not counted.
        held = nbytes(
            [
                x
                for x in jax.tree.leaves(cache.layers)
                if x.ndim == 4 or (x.ndim == 3 and jnp.issubdtype(x.dtype, jnp.floating))
            ]
        )
        used = (len(self.prompt) + self.settings.max_new_tokens / 2) / _slots(cache)
        return held * min(1.0, used)


def _slots(cache: Any) -> int:
    return max((x.shape[2] for x in jax.tree.leaves(cache.layers) if x.ndim == 4), default=1)


def random_prompt(model: Model, length: int, seed: int = 0) -> list[int]:
    """Token ids without meaning: speed does not depend on them."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, model.config.vocab_size, length).tolist()


PAIRED = 1000  # tokens over which a stream's end is timed against a young stream


def stream(
    model: Model, policy: Policy, tokens: int, fed: bool, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Decodes a stream of `tokens` and holds its last thousand against a stream's third.

    Minutes lie between the two, in which a shared machine changes its pace. So a second stream is
    taken to its third thousand, and the two are timed by turns, a few tokens each.

    Args:
      model: the model.
      policy: one that never fills up.
      tokens: of the stream.
      fed: whether all but what is timed goes in as a prompt, which is much faster.
      progress: called with ("streaming", tokens done, all of them).

    Returns:
      The medians of both and their ratio, the bytes at both ends, and what was compiled after the
      first step.
    """
    settings = Settings(policy=policy, max_new_tokens=tokens)
    ends = {"last": tokens - PAIRED, "third": 2 * PAIRED}
    old, young = (Session.begin(model, settings, 1, 512 if fed else 64) for _ in ends)
    compiled, first_bytes = compilations(), nbytes(old.state.cache)
    for session, end in ((old, ends["last"]), (young, ends["third"])):
        session.eos = NEVER
        session.feed([random_prompt(model, end if fed else 8)])
    backend: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        if event.endswith("backend_compile_duration"):
            backend.append(event)

    streams = {"last": old.run(tokens), "third": young.run(2 * PAIRED + PAIRED)}
    done = {"last": 0, "third": 0}
    steps: dict[str, list[float]] = {"last": [], "third": []}

    def advance(name: str, until: int) -> None:
        while done[name] < until:
            began = time.perf_counter()
            ids = next(streams[name])
            steps[name] += [(time.perf_counter() - began) / ids.shape[1]] * ids.shape[1]
            done[name] += ids.shape[1]
            if done["last"] == DISPATCH + 1:  # what the host itself compiles is behind us
                jax.monitoring.register_event_duration_secs_listener(listen)
            progress("streaming", sum(done.values()), tokens + 3 * PAIRED)

    for name, end in ends.items():
        # The first two dispatches are on the way in either case.
        advance(name, DISPATCH + 1 if fed else end)
    starts = dict(done)
    for part in range(1, PAIRED // DISPATCH):
        for name in ("third", "last"):
            advance(name, starts[name] + part * DISPATCH)
    third, last = (statistics.median(steps[name][starts[name] :]) for name in ("third", "last"))
    return {
        "policy": describe(policy),
        "tokens": done["last"] + (ends["last"] if fed else 0),
        "fed": fed,
        "third_thousand_ms": third * 1e3,
        "last_thousand_ms": last * 1e3,
        "ratio": last / third,
        "bytes_at_start": first_bytes,
        "bytes_at_end": nbytes(old.state.cache),
        "programs_after_start": sum(compilations().values()) - sum(compiled.values()),
        "backend_compilations_after_start": len(backend),
    }
