# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Programs of eight chips: our kernels are there, collectives are few and small, no cache moves.

On CPUs that play eight devices none of this shows: XLA gives them other programs.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tpu
from jax.sharding import AxisType, Mesh
from test_tpu_models import CONFIG, pattern

from jaxkv import DuoAttention, Full
from jaxkv.checkpoints.named import abstract_params
from jaxkv.core.shards import DATA, MODEL
from jaxkv.generate.loop import Signature, decode_tokens, lowered, prefill_chunk
from jaxkv.generate.sampling import Greedy
from jaxkv.generate.state import abstract
from jaxkv.layers.base import Policy
from jaxkv.models.mesh import Meshed, device_bytes, meshed, sharding
from jaxkv.models.placed import abstract as abstract_on
from jaxkv.plan import aot
from jaxkv.plan.chips import CHIPS
from jaxkv.policies.head_scores import GATES
from pallas_kernels.target import aimed_at

pytestmark = [pytest.mark.aot, tpu.needs_libtpu]

SLOTS, CHUNK = 131072, 512
COLLECTIVE = re.compile(
    r"= (\(?[\w\[\],{}:()#*/ ]+?\)?) "
    r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
ARRAY = re.compile(r"(\w+?)\[([\d,]*)\]")
SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}


def collectives(text: str) -> list[tuple[str, int]]:
    """The name of each, and the bytes of what it gives."""
    found = []
    for line in text.splitlines():
        if match := COLLECTIVE.search(line):
            arrays = ARRAY.findall(match[1])
            size = sum(
                SIZES[kind] * int(np.prod([int(x) for x in dims.split(",") if x] or [1]))
                for kind, dims in arrays
            )
            found.append((match[2], size))
    return found


def over(chip: str, layout: str) -> Meshed:
    devices = np.asarray(aot.devices_of(CHIPS[chip], 8)).reshape(1, 8)
    config = meshed(CONFIG, Mesh(devices, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2))
    assert isinstance(config, Meshed)
    return config.with_layout(layout)


def compiled(config: Meshed, chip: str, policy: Policy, decode: bool) -> tuple[Any, Any, Any]:
    """The program, and the parameters and the state that it is for."""
    params = abstract_on(config, abstract_params(config, "bfloat16", None))
    state = abstract(config, policy, 1, SLOTS, "bfloat16")
    statics: Any = (("config", config), ("policy", policy))

    def integers(*shape: int, axes: Any = ()) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding(config, *axes))

    with aimed_at(CHIPS[chip].target):
        if decode:
            statics = (*statics, ("sampler", Greedy()))
            args = params, state, integers(), integers(2)
            made = lowered(decode_tokens, Signature.of(args), statics)
        else:
            args = params, state, integers(1, CHUNK, axes=(DATA,)), integers(1, axes=(DATA,))
            made = lowered(prefill_chunk, Signature.of(args), statics)
        return made.compile(), params, state


ALL = "JAXKV_MESHES" in os.environ
KINDS = [("full", "heads"), ("duo", "slots"), *[("full", "slots")] * ALL]
PROGRAMS = [
    (*kind, chip, decode)
    for kind in KINDS
    for chip in ("v5e", "v5p", "v6e", "h100")
    for decode in (True, False)
    if ALL or decode or chip in ("v5e", "h100")
]


@pytest.mark.kernel("many devices")
@pytest.mark.parametrize("name, layout, chip, decode", PROGRAMS)
def test_programs(name: str, layout: str, chip: str, decode: bool, tmp_path: Path) -> None:
    if chip == "h100" and not aot.has_compiler("gpu"):
        pytest.skip(aot.NEEDS["gpu"])
    policy: Policy = Full()
    if name == "duo":
        policy = DuoAttention(pattern(GATES, CONFIG.num_layers, tmp_path), 0.5, 64, 256)
    config = over(chip, layout)
    program, params, state = compiled(config, chip, policy, decode)
    tpu.COMPILED.append(chip)
    text, memory = program.as_text(), program.memory_analysis()
    assert ("mosaic_gpu_v2" if chip == "h100" else "tpu_custom_call") in text

    found = collectives(text)
    count, layers = Counter(kind for kind, _ in found), CONFIG.num_layers
    # Into the embedding's rows, out of attention and MLP of each layer, and the logits; by slots a
    # layer also gathers queries, keys and values, and merges: a maximum and a sum.
    expected = Counter({"all-reduce": 2 * layers + 2})
    if layout == "slots":
        expected += Counter({"all-gather": layers, "all-reduce": 2 * layers})
    if chip == "h100":  # logits are gathered there, and summed on a TPU
        expected += Counter({"all-gather": 1})
        expected["all-reduce"] -= 1
    assert count == expected
    sizes = sorted(size for _, size in found)
    slabs = [x for x in jax.tree.leaves(state.cache.layers) if len(x.shape) == 4]
    largest = max(map(shard, slabs))
    if decode:
        assert sizes[-1] <= 1.13 * 4 * CONFIG.vocab_size  # the logits
        assert sizes[-2] < largest * 2 / 8
    slots = max(x.sharding.shard_shape(x.shape)[2] for x in slabs)
    moves = [move for move in tpu.moves(text, largest) if re.search(rf"[\[,]{slots}[,\]]", move)]
    assert moves == []

    weights, cache = device_bytes(params), device_bytes(state.cache)
    assert memory.alias_size_in_bytes >= cache
    inputs = weights + device_bytes(state)
    assert inputs * 0.99 < memory.argument_size_in_bytes < inputs * 1.01
    # Of a chunk some arrays of the size of attention's output, in float32, are there at once.
    chunk = 0 if decode else 5 * 4 * CHUNK * CONFIG.num_heads * CONFIG.head_dim
    assert memory.temp_size_in_bytes < max(0.02 * weights + cache / 4, chunk)
    whole = 2 * SLOTS * CONFIG.num_kv_heads * CONFIG.head_dim * 2 * layers
    if name == "full":
        assert cache < 1.02 * whole / 8  # positions are on all devices where all heads keep alike


def shard(x: Any) -> int:
    """Numbers of an array that lie on a device."""
    return math.prod(x.sharding.shard_shape(x.shape))
