# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Prints the compiled decode programs as JSON; run without the flags that tests compile under."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import toys
from policy_cases import GATES, SCORES

from jaxkv import (
    H2O,
    TOVA,
    AdaKV,
    DuoAttention,
    Full,
    HeadKV,
    RecycledAttention,
    SnapKV,
    StreamingLLM,
)
from jaxkv.cache.bytes import nbytes
from jaxkv.generate.loop import Signature, compile_program, decode_tokens, programs
from jaxkv.generate.sampling import Greedy
from jaxkv.generate.state import start
from jaxkv.policies.streaming_plus import StreamingLLMPlus

SLOTS = 1043  # a number that nothing else has
CONFIG = dataclasses.replace(toys.CONFIG, num_layers=2)
POLICIES = {
    "full": Full(),
    "streaming": StreamingLLM(4, SLOTS - 5),
    "duo": DuoAttention(GATES, 0.5, 4, SLOTS - 5),
    "snapkv": SnapKV(900, decode_room=120),
    "headkv": HeadKV(700, scores=SCORES, decode_room=120),
    "adakv": AdaKV(900, decode_room=120),
    "recycled": RecycledAttention(301, 5),
    "recycled-dynamic": RecycledAttention(301, 5, 0.8),
    "streaming-plus": StreamingLLMPlus(4, 297, 5),
    "h2o": H2O(SLOTS - 1),
    "tova": TOVA(SLOTS - 1),
}


# A row alone is written and read by other instructions: one policy of each kind of cache.
ALONE = ("full", "duo", "adakv", "recycled")


def keys_of(cache) -> list[jax.Array]:
    """Every array of keys or values in a cache."""
    return [x for x in jax.tree.leaves(cache.layers) if x.ndim == 4]


def main() -> None:
    """One object for each policy and batch size."""
    params, eos, found = toys.params(CONFIG), jnp.asarray([2], jnp.int32), []
    weights = jax.tree.leaves(params)
    for name, policy in POLICIES.items():
        for batch in (1, 3) if name in ALONE else (3,):
            state = start(CONFIG, policy, batch, SLOTS, "float32", 0)
            # The decode program alone: compiling prefills that nobody looks at takes as long again.
            statics = (("config", CONFIG), ("policy", policy), ("sampler", Greedy()))
            signature = Signature.of((params, state, jnp.int32(0), eos))
            made = compile_program(decode_tokens, signature, statics)
            found.append(
                {
                    "policy": name,
                    "batch": batch,
                    "weights": [math.prod(x.shape) for x in weights if x.ndim > 1],
                    "first": len(weights),
                    "leaves": len(jax.tree.leaves(state.cache)),
                    "keys": sorted({math.prod(x.shape) for x in keys_of(state.cache)}),
                    "dims": sorted({x.shape[-2] for x in keys_of(state.cache)}),
                    "text": made.text(),
                }
            )
    print(json.dumps({"steps": found, "temporaries": [temporaries(n) for n in (2, 8)]}))


def temporaries(layers: int) -> int:
    """Bytes that reading a prompt of 512 tokens takes beside parameters and state."""
    config = dataclasses.replace(toys.CONFIG, num_layers=layers)
    policy, params = SnapKV(64, window=8), toys.params(config)
    state = start(config, policy, 1, 512, "float32", 0)
    eos = jnp.asarray([2], jnp.int32)
    made = programs(params, config, policy, Greedy(), state, eos, 512).prefill
    return made.peak_bytes - nbytes((params, state))


if __name__ == "__main__":
    main()
