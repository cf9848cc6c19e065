# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Prints the compiled decode programs as JSON; run without the flags that tests compile under."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import toys

from jaxkv import Full, StreamingLLM, Window
from jaxkv.generate.loop import programs
from jaxkv.generate.sampling import Greedy
from jaxkv.generate.state import start

SLOTS = 1043  # a number that nothing else has
POLICIES = {
    "full": Full(),
    "window": Window(SLOTS - 1),
    "streaming": StreamingLLM(4, SLOTS - 5),
}


def main() -> None:
    """One object for each policy and batch size."""
    params, eos, found = toys.params(), jnp.asarray([2], jnp.int32), []
    for name, policy in POLICIES.items():
        for batch in (1, 3):
            state = start(toys.CONFIG, policy, batch, SLOTS, "float32", 0)
            made = programs(params, toys.CONFIG, policy, Greedy(), state, eos, 8)
            found.append(
                {
                    "policy": name,
                    "batch": batch,
                    "first": len(jax.tree.leaves(params)),
                    "leaves": len(jax.tree.leaves(state.cache)),
                    "text": made.decode.text(),
                }
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
