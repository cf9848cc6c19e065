# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Many devices give what one gives, under every policy, in every layout that is allowed."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import toys
from jax.sharding import Mesh
from policy_cases import CASES, Case

from jaxkv.cache.bytes import nbytes
from jaxkv.core.errors import InputError
from jaxkv.core.rope import Rope
from jaxkv.core.shards import DATA, LAYOUTS
from jaxkv.generate.loop import DISPATCH, Signature, compile_program, decode_tokens, prefill_chunk
from jaxkv.generate.running import laid_out, running
from jaxkv.generate.sampling import Greedy
from jaxkv.generate.state import State, gathered, start
from jaxkv.layers.base import Policy
from jaxkv.models.config import ModelConfig
from jaxkv.models.decoder import geometry
from jaxkv.models.layouts import against
from jaxkv.models.mesh import Meshed, device_bytes, mesh, meshed, put
from jaxkv.models.placed import placed
from jaxkv.policies.registry import POLICIES, make_policy

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    rope=Rope(8),
    max_positions=4096,
    tie_embeddings=True,
)
BATCH, TOKENS, STEPS = 8, 24, 64
SLOTS = 24 * 8  # of three blocks on each of eight devices
LENGTHS = np.array([24, 5, 17, 24, 1, 13, 9, 20], np.int32)
SHAPES = ((2, 4), (1, 8), (8, 1))
# A kind of layer in every layout; other policies by heads, where it matters what their scores are.
# With JAXKV_MESHES in the environment all of them in all settings, and on all meshes.
ALL = "JAXKV_MESHES" in os.environ
KINDS = [name for name, case in CASES.items() if case.hard_for is None]
FIRST = {type(case.policy): name for name, case in reversed(CASES.items())}
NAMES = [name for name in CASES if ALL or name in KINDS or name in FIRST.values()]
TRIED = [
    (name, layout, shape)
    for name in NAMES
    for layout in (LAYOUTS if ALL or name in KINDS else ("heads",))
    for shape in SHAPES[: None if ALL or name == "full" else 1]
]
TRIED += [(name, "rows", (1, 8)) for name in ("adakv", "headkv", "tova") if not ALL]
TRIED += [("duo", "slots", (1, 8))] * (not ALL)
# Its linear algebra on a CPU splits a batch over the threads that the devices themselves wait in:
# jaxlib 0.10.2 comes to a stop. By heads over model it is refused before.
TRIED = [case for case in TRIED if case[0] != "compactor" or case[1:] in (("heads", (2, 4)),)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is calibrated, for four KV heads."""
    folder = tmp_path_factory.mktemp("calibrated")
    rng = np.random.default_rng(1)
    written: dict[str, Any] = {
        "pattern": {"format": "jaxkv.duo", "gates": rng.random((2, 4)).tolist()},
        "scores": {"format": "jaxkv.headkv", "scores": rng.random((2, 8)).tolist()},
        "table": {
            "format": "jaxkv.shares", "model": "", "ratios": [0.1, 0.5],
            "shares": np.tile([0.5, 1.5, 0.75, 1.25], (2, 2, 1)).tolist(),
        },
    }  # fmt: skip
    for name, value in written.items():
        (folder / name).write_text(json.dumps(value))
    return {name: str(folder / name) for name in written}


def fitted(policy: Policy, files: dict[str, str]) -> Policy:
    mine = {name: path for name, path in files.items() if getattr(policy, name, None) is not None}
    return dataclasses.replace(policy, **mine)


@dataclasses.dataclass(frozen=True)
class Run:
    state: State
    ids: np.ndarray
    bytes: int
    kept_in_place: int


EVERY = slice(0, BATCH)


def run(config: ModelConfig, params: Any, policy: Policy, case: Case, rows: slice = EVERY) -> Run:
    """A ragged prompt, in two parts where that changes nothing, and `STEPS` greedy tokens."""
    state = start(config, policy, rows.stop - rows.start, SLOTS, "float32", 0)
    size = device_bytes(state.cache) if isinstance(config, Meshed) else nbytes(state.cache)
    # No token twice in a row: its keys would be of one length, and which is kept a matter of
    # rounding.
    draws = np.random.default_rng(0)
    tokens = np.stack([draws.permutation(config.vocab_size)[:TOKENS] for _ in range(BATCH)])
    tokens = tokens.astype(np.int32)[rows]
    lengths = LENGTHS[rows]
    statics = (("config", config), ("policy", policy))
    part = TOKENS // 2 if case.token_exact else TOKENS
    for begin in range(0, TOKENS, part):
        valid = np.clip(lengths - begin, 0, part).astype(np.int32)
        some = put(config, tokens[:, begin : begin + part], DATA), put(config, valid, DATA)
        args = params, state, *some
        state, _ = kept(prefill_chunk, Signature.of(args), statics).call(*args)
    eos, limit = put(config, np.array([-2], np.int32)), put(config, np.int32(DISPATCH))
    statics = (*statics, ("sampler", Greedy()))
    args = params, state, limit, eos
    program, ids = kept(decode_tokens, Signature.of(args), statics), []
    for _ in range(STEPS // DISPATCH):
        state, new = program.call(params, state, limit, eos)
        ids.append(np.asarray(new))
    alias = program.call.memory_analysis().alias_size_in_bytes
    return Run(state, np.concatenate(ids, axis=1), size, alias)


kept = functools.lru_cache(maxsize=None)(compile_program)


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    kept.cache_clear()


def over(shape: tuple[int, int]) -> Mesh:
    return mesh(data=shape[0], model=shape[1])


def place(config: ModelConfig, params: Any) -> Any:
    """The tree, each parameter where it belongs."""
    layers = tuple(
        {name: placed(config, f"layers.{i}.{name}", x) for name, x in layer.items()}
        for i, layer in enumerate(params["layers"])
    )
    rest = {name: placed(config, name, x) for name, x in params.items() if name != "layers"}
    return {**rest, "layers": layers}


ALONE: dict[str, Run] = {}


def alone(name: str, policy: Policy) -> Run:
    """On one device."""
    if name not in ALONE:
        ALONE[name] = run(CONFIG, toys.params(CONFIG), policy, CASES[name])
    return ALONE[name]


def apart(policy: Policy, case: Case, parts: int) -> Run:
    """As on one device, but each share of the rows by itself."""
    size = BATCH // parts
    runs = [
        run(CONFIG, toys.params(CONFIG), policy, case, slice(begin, begin + size))
        for begin in range(0, BATCH, size)
    ]
    states = [dataclasses.replace(x.state, keys=None) for x in runs]
    joined = [np.concatenate(x) for x in zip(*map(jax.tree.leaves, states), strict=True)]
    state = jax.tree.unflatten(jax.tree.structure(states[0]), joined)
    ids = np.concatenate([x.ids for x in runs])
    return Run(state, ids, sum(x.bytes for x in runs), sum(x.kept_in_place for x in runs))


def same(found: State, expected: State) -> None:
    for (path, x), y in zip(
        jax.tree_util.tree_flatten_with_path(found.cache)[0],
        jax.tree.leaves(expected.cache),
        strict=True,
    ):
        where = jax.tree_util.keystr(path)
        if np.issubdtype(x.dtype, np.integer):
            np.testing.assert_array_equal(x, np.asarray(y), err_msg=where)
        elif not where.endswith(".query"):  # a mean over heads, which a threshold alone looks at
            np.testing.assert_allclose(x, np.asarray(y), atol=1e-4, rtol=0, err_msg=where)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name, layout, shape", TRIED, ids=[f"{name}-{how}-{d}x{m}" for name, how, (d, m) in TRIED]
)
def test_devices_give_what_one_gives(
    name: str, layout: str, shape: tuple[int, int], files: dict[str, str]
) -> None:
    policy = fitted(CASES[name].policy, files)
    config = meshed(CONFIG, over(shape))
    assert isinstance(config, Meshed)
    planner = functools.partial(running, policy)
    g = geometry(CONFIG, BATCH, SLOTS)
    if reason := against(layout, config, planner, g):
        with pytest.raises(InputError, match="cache-layout is"):
            laid_out(config.with_layout(layout), policy, g)
        assert (name, layout) in REFUSED or shape[1] == 8, reason
        return
    assert (name, layout) not in REFUSED or shape[1] == 1
    config = config.with_layout(layout)
    if getattr(policy, "threshold", None) is not None:
        # Rows refresh together; over devices, those that lie together.
        expected = apart(policy, CASES[name], shape[0] * (shape[1] if layout == "rows" else 1))
    else:
        expected = alone(name, policy)
    found = run(config, place(config, toys.params(CONFIG)), policy, CASES[name])
    np.testing.assert_array_equal(found.ids, expected.ids)
    same(gathered(config, found.state, BATCH), expected.state)
    # Each device has its share to the byte, and writes into it in place.
    assert found.kept_in_place >= found.bytes
    assert found.bytes == sum(shared(x, name, layout, shape) for x in leaves(expected))


def leaves(run: Run) -> list[Any]:
    return jax.tree.leaves(run.state.cache)


def shared(x: Any, name: str, layout: str, shape: tuple[int, int]) -> int:
    """Bytes of a device's part of an array: of its rows, and of what the layout shares out.

    By heads all that is of each head; positions that all heads have alike are on all devices. By
    slots what keeps every token of full and of duo.
    """
    heads = x.ndim > 2 and x.shape[1] == CONFIG.num_kv_heads
    slots = x.ndim > 2 and x.shape[2] == SLOTS and name in ("full", "duo", "duo-empty-groups")
    split = {"rows": True, "heads": heads, "slots": slots}[layout]
    return x.nbytes // (shape[0] * (shape[1] if split else 1))


def test_the_page_says_what_is_allowed() -> None:
    """The table of docs/many_devices.md, of policies as they are without settings."""
    text = (Path(__file__).parent.parent / "docs" / "many_devices.md").read_text(encoding="utf-8")
    text = text[text.index("| by `heads` |") : text.index("## What fits")]
    table = re.findall(r"^\| ([a-z].*?) \| (.*?) \| (.*?) \| (.*?) \|$", text, re.M)
    two = dataclasses.replace(CONFIG, num_heads=4, num_kv_heads=2)  # what the cases' files are for
    config, g, told = meshed(two, over((1, 2))), geometry(two, 2, SLOTS), set()
    assert isinstance(config, Meshed)
    for names, heads, slots, rows in table:
        for name in set(re.findall(r"[\w-]+", names.rpartition(";")[2])) & set(POLICIES):
            told.add(name)
            if name in ("duo", "headkv"):
                policy = CASES[name].policy
            else:
                policy = make_policy(name, {"gate": "any"} if name == "kvzap" else {})
            for layout, cell in (("heads", heads), ("slots", slots), ("rows", rows)):
                why = against(layout, config, functools.partial(running, policy), g)
                assert cell.startswith(("no", "with")) == (why is not None), (name, layout, why)
    assert told == set(POLICIES)


# Wrong, were they not refused: heads that choose together, or are kept in ways of their own.
_NOT_BY_HEADS = (
    "duo", "duo-empty-groups", "snapkv-ada-sinks", "snapkv-table", "headkv", "headkv-all-pooled",
    "adakv", "adakv-no-floor", "recycled-dynamic", "tova", "chunkkv", "chunkkv-gated",
    "compactor", "expected", "own-keydiff-ada",
)  # fmt: skip
REFUSED = {(name, "heads") for name in _NOT_BY_HEADS} | {("recompute", "rows")}
