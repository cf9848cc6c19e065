# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels lower for CUDA, compile for an H100, and read a slab where it lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu
import jax
import jax.numpy as jnp
import pytest
from tpu import moves

from pallas_kernels.decode import mosaic_gpu
from pallas_kernels.dispatch import dispatch
from pallas_kernels.mass import mosaic_gpu as mass_gpu
from pallas_kernels.prefill import mosaic_gpu as prefill_gpu

pytestmark = pytest.mark.aot

KERNEL = "mosaic_gpu_v2"  # the call of XLA that holds it
MODELS = {  # query heads, KV heads, dimensions of a head
    "llama-3.1-8b and qwen3-8b": (32, 8, 128),
    "llama-3.2-1b": (32, 8, 64),
    "smollm2-135m": (9, 3, 64),
    "gemma-3-1b": (4, 1, 256),
}
BENT = {  # those, and what is done to their scores
    "mpt-7b": ((32, 32, 128), "slopes"),
    "gemma-2-2b": ((8, 4, 256), "soft_cap"),
}
# 3 heads or 1 of 1029 slots end inside a tile, and so do all together but for 8 rows.
CASES = [(model, slots, 1) for model in list(MODELS)[:2] for slots in (1029, 8192, 131072)] + [
    (model, slots, rows)
    for model in list(MODELS)[2:]
    for slots, rows in ((1029, 8), (8192, 1), (131072, 1))
]

# Model, slots, rows, and what else, of a chunk of 128 queries: fewer numbers than the slab has.
CHUNKS = [
    ("llama-3.1-8b and qwen3-8b", 8192, 1, {"places": 8}),
    ("llama-3.2-1b", 131072, 1, {}),
    ("smollm2-135m", 1029, 8, {}),
    ("gemma-3-1b", 8192, 1, {"window": 512}),
    ("mpt-7b", 1029, 1, {"alibi": True}),
    ("gemma-2-2b", 8192, 1, {"soft_cap": 50.0}),
]


def program(
    model: str, slots: int, rows: int = 1, *, places: int = 1, sinks: int = 0,
    window: int | None = None, with_mass: bool = False, soft_cap: float | None = None,
    alibi: bool = False,
) -> tuple[Callable[..., Any], tuple[Any, ...], int]:  # fmt: skip
    """A decode step's attention, the shapes of its arguments, and the numbers in K."""
    n, heads, h = MODELS[model] if model in MODELS else BENT[model][0]
    q = jax.ShapeDtypeStruct((rows, n, h), jnp.bfloat16)
    slab = jax.ShapeDtypeStruct((rows, heads, slots, h), jnp.bfloat16)
    q_pos = jax.ShapeDtypeStruct((rows,), jnp.int32)
    k_pos = jax.ShapeDtypeStruct((rows, places, slots), jnp.int32)
    slopes = jax.ShapeDtypeStruct((n,), jnp.float32)
    options = dict(
        scale=h**-0.5, sinks=sinks, window=window, with_mass=with_mass, soft_cap=soft_cap
    )

    def attend(q, k, v, q_pos, k_pos, q_sink, slopes):
        sink, steep = q_sink if sinks else None, slopes if alibi else None
        return mosaic_gpu.decode_attention(
            q, k, v, q_pos, k_pos, q_sink=sink, slopes=steep, **options
        )

    return attend, (q, slab, slab, q_pos, k_pos, q, slopes), rows * heads * slots * h


def check(model: str, slots: int, rows: int = 1, **options: Any) -> None:
    attend, args, size = program(model, slots, rows, **options)
    compiled = gpu.compile_for(attend, *args)
    text = compiled.as_text()
    assert KERNEL in text
    assert moves(text, size) == []
    heads = args[1].shape[1]
    # Partial outputs, some KiB for each block of threads that the GPU holds; marks and distances.
    marks = 8 * rows * slots * max(options.get("places", 1), heads if slots % 8 else 1)
    marks *= 1 + options.get("alibi", False)
    scores = 64 * rows * heads * slots if options.get("with_mass") else 0
    assert compiled.memory_analysis().temp_size_in_bytes < (2 << 20) + marks + scores


@pytest.mark.parametrize(("model", "slots", "rows"), CASES)
def test_lowers_for_cuda(model: str, slots: int, rows: int) -> None:
    attend, args, _ = program(model, slots, rows)
    assert KERNEL in gpu.lower_for(attend, *args)


def test_lowers_where_the_process_asked_for_64_bits() -> None:
    attend, args, _ = program("llama-3.2-1b", 1029, 4)

    def dispatched(*args):
        return dispatch({"mosaic_gpu": attend}, "mosaic_gpu", *args)

    with jax.enable_x64(True):
        assert KERNEL in gpu.lower_for(dispatched, *args)


def test_lowers_with_everything() -> None:
    attend, args, _ = program(
        "llama-3.2-1b", 1029, 4, places=8, sinks=4, window=1000, with_mass=True
    )
    assert KERNEL in gpu.lower_for(attend, *args)


@pytest.mark.kernel("decode")
@gpu.needs_cuda_compiler
@pytest.mark.parametrize(("model", "slots", "rows"), CASES)
def test_compiles_for_an_h100(model: str, slots: int, rows: int) -> None:
    check(model, slots, rows)


@gpu.needs_cuda_compiler
@pytest.mark.parametrize("slots", [1029, 8192])
def test_sinks_a_window_rows_and_heads_of_their_own(slots: int) -> None:
    check("llama-3.1-8b and qwen3-8b", slots, 4, places=8, sinks=4, window=1000)


@gpu.needs_cuda_compiler
@pytest.mark.parametrize("model", BENT)
@pytest.mark.parametrize("sinks", [0, 4])
def test_bent_scores(model: str, sinks: int) -> None:
    alibi = BENT[model][1] == "slopes"
    options = {"alibi": True} if alibi else {"soft_cap": 50.0}
    check(model, 8192, sinks=sinks, window=1000 if sinks else None, **options)


@pytest.mark.parametrize("model", BENT)
def test_bent_scores_lower_for_cuda(model: str) -> None:
    attend, args, _ = program(model, 1029, 8, alibi=BENT[model][1] == "slopes", soft_cap=50.0)
    assert KERNEL in gpu.lower_for(attend, *args)


@gpu.needs_cuda_compiler
@pytest.mark.parametrize("model", MODELS)
def test_mass(model: str) -> None:
    check(model, 8192, with_mass=True)


@gpu.needs_cuda_compiler
def test_defaults_of_precision_do_not_reach_the_kernel() -> None:
    with jax.default_matmul_precision("highest"):
        check("smollm2-135m", 8192)


@gpu.needs_cuda_compiler
def test_another_order_costs_a_copy_that_is_found() -> None:
    """Else the tests above might see no copy in any program."""
    attend, (q, slab, _, *args), size = program("llama-3.2-1b", 8192)
    b, heads, slots, h = slab.shape
    slab = jax.ShapeDtypeStruct((b, slots, heads, h), slab.dtype)

    def turned(q, k, v, *args):
        return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), *args)

    text = gpu.compile_for(turned, q, slab, slab, *args).as_text()
    assert KERNEL in text and len(moves(text, size)) >= 2


def chunk(
    mass: bool, model: str, slots: int, rows: int, *, places: int = 1, window: int | None = None,
    alibi: bool = False, soft_cap: float | None = None,
) -> tuple[Callable[..., Any], tuple[Any, ...], int]:  # fmt: skip
    """Attention of a chunk or its mass, the shapes of its arguments, and the numbers in K."""
    n, heads, h = MODELS[model] if model in MODELS else BENT[model][0]
    q = jax.ShapeDtypeStruct((rows, 128, n, h), jnp.bfloat16)
    slab = jax.ShapeDtypeStruct((rows, heads, slots, h), jnp.bfloat16)
    q_pos = jax.ShapeDtypeStruct((rows, 128), jnp.int32)
    k_pos = jax.ShapeDtypeStruct((rows, places, slots), jnp.int32)
    lse = jax.ShapeDtypeStruct((rows, 128, n), jnp.float32)
    used = jax.ShapeDtypeStruct((), jnp.int32)
    slopes = jax.ShapeDtypeStruct((n,), jnp.float32)

    def attend(q, k, v, q_pos, k_pos, lse, used, slopes):
        options = dict(
            scale=h**-0.5, num_slots=used, slopes=slopes if alibi else None, soft_cap=soft_cap
        )
        if mass:
            return mass_gpu.attention_mass(q, lse, k, q_pos, k_pos, **options)
        return prefill_gpu.prefill_attention(
            q, k, v, q_pos, k_pos, window=window, sinks=4 if window else 0, **options
        )

    return attend, (q, slab, slab, q_pos, k_pos, lse, used, slopes), rows * heads * slots * h


every_chunk = pytest.mark.parametrize(("model", "slots", "rows", "options"), CHUNKS)
either = pytest.mark.parametrize("mass", [False, True], ids=["prefill", "mass"])


@either
@every_chunk
def test_chunks_lower_for_cuda(mass: bool, model: str, slots: int, rows: int, options) -> None:
    attend, args, _ = chunk(mass, model, slots, rows, **options)
    assert KERNEL in gpu.lower_for(attend, *args)


@pytest.mark.kernel("chunk")
@gpu.needs_cuda_compiler
@either
@every_chunk
def test_chunks_compile_for_an_h100(mass: bool, model: str, slots: int, rows: int, options) -> None:
    attend, args, size = chunk(mass, model, slots, rows, **options)
    compiled = gpu.compile_for(attend, *args)
    text = compiled.as_text()
    assert KERNEL in text
    assert moves(text, size) == []
    # Queries and outputs by head, positions, and which blocks to visit.
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * args[0].size + (2 << 20)
