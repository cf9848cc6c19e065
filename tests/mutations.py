# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Plants faults, one by one, in a copy of the code, and expects the test of each to turn red.

`make mutations` runs it; each takes some seconds. That the tests are green without a fault, the
test command shows. A law that no planted fault breaks tests nothing: a new law has a row here.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE = 2
ROOT = Path(__file__).parent.parent
RING = "jaxkv/layers/ring.py"
FULL = "jaxkv/layers/full.py"
SLAB = "jaxkv/cache/slab.py"
STORE = "jaxkv/cache/store.py"
KEPT = "(self.sinks + self.window,)"
SLOTS = "slots = self.sinks + self.window + 1\n"
RING_SLOTS = "jnp.where(at < self.sinks, at, self.sinks + (at - self.sinks) % self.ring)"
VALID = "positions if lengths is None else jnp.where(offset < lengths[:, None], positions, -1)"
LAWS = "tests/test_laws.py::test_"


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A fault and the test that is to find it.

    Attributes:
      what: the fault, in words.
      test: the test's id.
      changes: files, and in each a text that is there once and what stands there instead.
    """

    what: str
    test: str
    changes: tuple[tuple[str, str, str], ...]


MUTATIONS = [
    Mutation(
        "gates and what they gate are not brought to the order of the devices",
        "tests/test_mesh_models.py::test_families[norms-heads]",
        (("jaxkv/models/placed.py", "x = _paired(x, config.mesh.shape[MODEL])", "pass"),),
    ),
    Mutation(
        "devices merge what they have seen without a common maximum",
        "tests/test_mesh.py::test_devices_give_what_one_gives[full-slots-2x4]",
        (("jaxkv/core/shards.py", "top = lax.pmax(lse, MODEL)", "top = lse"),),
    ),
    Mutation(
        "decoded tokens leave the sink logits out",
        "tests/test_sink_logits.py::test_it_is_one_more_term_of_what_is_kept[snapkv]",
        (
            (
                "jaxkv/layers/selected.py",
                "out, _ = chunk.with_sink(*seen)",
                "out, _ = seen",
            ),
        ),
    ),
    Mutation(
        "slots are dealt out in one run, so that a short context lies on one device",
        "tests/test_mesh_models.py::test_tokens_are_dealt_out",
        (("jaxkv/core/shards.py", "return min(BLOCK, size & -size)", "return size"),),
    ),
    Mutation(
        "heads that choose together are kept apart",
        "tests/test_mesh.py::test_devices_give_what_one_gives[tova-heads-2x4]",
        (("jaxkv/models/layouts.py", "if planned.couples_heads:", "if False:"),),
    ),
    Mutation(
        "a process reads only what lies on its own devices",
        "tests/test_hosts.py::test_two_processes_give_what_one_device_gives",
        (("jaxkv/core/hosts.py", "if isinstance(x, Array) and not (", "if False and not ("),),
    ),
    Mutation(
        "a policy compiles something of its own",
        "tests/test_architecture.py::test_programs_are_made_where_it_says",
        ((FULL, "def poison(", "import jax\n\n\n@jax.jit\ndef poison("),),
    ),
    Mutation(
        "a policy says that it keeps a token more than its paper does",
        LAWS + "bytes_are_the_papers_and_the_compilers[streaming]",
        ((RING, KEPT, KEPT.replace(",)", " + 1,)")),),
    ),
    Mutation(
        "positions are left out of a cache's bytes",
        LAWS + "bytes_are_the_papers_and_the_compilers[full]",
        (
            (
                "jaxkv/cache/bytes.py",
                "for x in jax.tree.leaves(cache))",
                "for x in jax.tree.leaves(cache) if x.dtype.kind == 'f')",
            ),
        ),
    ),
    Mutation(
        "a ring takes a fifth more than was asked for, and says so",
        LAWS + "physical_bytes_stay_near_the_budget[streaming-1024-1.08]",
        (
            (RING, SLOTS, SLOTS.replace(" + 1", " + 205")),
            (RING, KEPT, KEPT.replace(",)", " + 204,)")),
        ),
    ),
    Mutation(
        "what a layer gives depends on whether it is traced",
        LAWS + "jit_changes_nothing[full]",
        (
            (
                FULL,
                "    return jnp.where((at >= slots)",
                "    out = 1.01 * out if 'Tracer' in type(out).__name__ else out\n"
                "    return jnp.where((at >= slots)",
            ),
        ),
    ),
    Mutation(
        "a step changes the type of its cache, and is traced again",
        LAWS + "one_trace_for_64_steps_and_the_old_cache_is_gone[full]",
        ((SLAB, "seen=slab.seen + count)", "seen=(slab.seen + count).astype(float))"),),
    ),
    Mutation(
        "the slot of the newest token is missing: a ring evicts before it attends",
        LAWS + "what_is_kept_is_what_the_paper_keeps[5-streaming]",
        (
            (RING, SLOTS, SLOTS.replace(" + 1", "")),
            (RING, "        return self.window + 1\n", "        return self.window\n"),
        ),
    ),
    Mutation(
        "padding is written into the cache",
        LAWS + "rows_are_independent_and_padding_never_matters[full]",
        (
            (
                SLAB,
                f"return {VALID}",
                "return positions",
            ),
        ),
    ),
    Mutation(
        "one row's scores choose for all rows",
        LAWS + "rows_are_independent_and_padding_never_matters[snapkv]",
        (
            (
                "jaxkv/layers/selected.py",
                "        recent = drafts.newest(slab, self.window)\n        slabs, begin",
                "        recent = drafts.newest(slab, self.window)\n"
                "        scores = jnp.broadcast_to(scores[:1], scores.shape)\n        slabs, begin",
            ),
        ),
    ),
    Mutation(
        "the scales of packed keys stay behind where their slots move",
        "tests/test_store.py::test_what_int8_holds_exactly_is_as_in_plain_arrays[snapkv]",
        (
            (
                STORE,
                "        found = jnp.take_along_axis(",
                "        if x.ndim == 3 and x.dtype == jnp.bfloat16:\n"
                "            return x[:, :, : index.shape[-1]]\n"
                "        found = jnp.take_along_axis(",
            ),
        ),
    ),
    Mutation(
        "the queries of padding count in the moments",
        "tests/test_evidence.py::test_evidence_is_that_of_the_whole_prompt[16-even]",
        (("jaxkv/layers/draft.py", "chunk.q, at >= SINK_QUERIES)", "chunk.q, at >= -1)"),),
    ),
    Mutation(
        "sinks compete for what a pool deals out",
        "tests/test_allocations.py::test_sinks_are_in_every_head_and_the_pool_suffices[11-0.0]",
        (
            (
                "jaxkv/layers/pooled.py",
                "self._caps(jnp.where(first, -jnp.inf, scores))",
                "self._caps(order)",
            ),
        ),
    ),
    Mutation(
        "a head's share is that of the next table, whatever lies between",
        "tests/test_allocations.py::test_what_is_kept_is_the_formulas[snapkv-table]",
        (("jaxkv/policies/shares.py", "(at - low) * (tables[high]", "(tables[high]"),),
    ),
    Mutation(
        "a partition is measured by its own ranges and not by the next one's",
        "tests/test_scores.py::test_a_score_of_a_head_is_the_formulas[LagKV]",
        (("jaxkv/policies/lagkv.py", "f(x[:, :, 1:], axis=3", "f(x[:, :, :-1], axis=3"),),
    ),
    Mutation(
        "scores are standardised over the rows of a batch",
        "tests/test_scores.py::test_compactors_score_is_the_formula",
        (
            (
                "jaxkv/policies/compactor.py",
                "0), axis=(1, 2), keepdims",
                "0), axis=(0, 1, 2), keepdims",
            ),
        ),
    ),
    Mutation(
        "chunks are cut where slots are, and not by position",
        "tests/test_scores.py::test_chunks_are_of_positions_wherever_they_lie[whole]",
        (
            (
                "jaxkv/policies/chunkkv.py",
                "prompt.positions // size",
                "jnp.broadcast_to(jnp.arange(free.shape[-1], dtype=jnp.int32)[None, None] // size, "
                "free.shape)",
            ),
        ),
    ),
    Mutation(
        "a shape is not what its annotation says",
        "tests/test_grouped.py::test_every_head_is_as_it_would_be_alone",
        (("jaxkv/core/typing.py", 'Lengths = Int[Array, "B"]', 'Lengths = Int[Array, "B T"]'),),
    ),
    Mutation(
        "sinks are overwritten like any other token",
        "tests/test_streaming.py::test_sinks_are_never_evicted",
        ((RING, RING_SLOTS, "at % self.ring"),),
    ),
    Mutation(
        "a repetition is scored at positions that begin anew",
        "tests/test_replay.py::test_scores_are_the_formula[how0-False]",
        (("jaxkv/layers/replayed.py", "rotated(at)", "rotated(at % 8)"),),
    ),
    Mutation(
        "a layer reads the blocks of others too",
        "tests/kernels/test_pool_spans.py::test_every_implementation_reads_the_same[False-spans1]",
        (("pallas_kernels/pool/xla.py", "(block < end)", "(block < end + 1)"),),
    ),
    Mutation(
        "of equal scores the last are kept, not the first",
        "tests/test_global.py::test_the_best_of_all_are_found",
        (("jaxkv/cache/shared.py", "place <= left[:, None]", "place < left[:, None]"),),
    ),
    Mutation(
        "the covariance is taken to the mean rotation once",
        "tests/test_expected.py::test_scores_are_the_formula[partial]",
        (("jaxkv/policies/expected.py", "turned * back[:, :, None]", "turned * k[:, :, None]"),),
    ),
    Mutation(
        "a surrogate that was fitted to states of spread 1 is written as it is",
        "tests/test_kvzap.py::TestFit::test_ridge_finds_a_planted_map",
        (("jaxkv/calibrate/fitting.py", "    w = w / spread[:, None]\n", ""),),
    ),
    Mutation(
        "a loop of writes has no static length, and no derivative",
        "tests/test_slab.py::test_both_ways_of_writing_have_a_derivative[5]",
        (("jaxkv/cache/store.py", "np.int32(old.shape[0])", "jnp.int32(old.shape[0])"),),
    ),
    Mutation(
        "samples of two sink tokens lie too far apart, and tokens are never predicted",
        "tests/test_train_step.py::TestSamples::test_every_token_is_predicted_once_in_an_epoch[first2]",
        (("jaxkv/train/text.py", "- max(len(self.first), 1)", "- min(len(self.first), 1)"),),
    ),
    Mutation(
        "norms and biases decay",
        "tests/test_train_step.py::TestStep::test_the_optimiser_is_adamw_with_a_warm_up_and_a_cosine",
        (("jaxkv/train/recipe.py", "x.ndim > 1, params", "x.ndim > 0, params"),),
    ),
    Mutation(
        "a run that goes on begins its samples anew",
        "tests/test_train.py::TestRuns::test_a_killed_run_ends_with_the_same_bits",
        (("jaxkv/train/loop.py", "batch(index), index + 1", "batch(index - begin), index + 1"),),
    ),
    Mutation(
        "a table of budgets counts the least of a prompt",
        "tests/test_calibrate_budgets.py::TestDealt::test_is_counting_the_best",
        (("jaxkv/calibrate/budgets.py", "np.argsort(-scores", "np.argsort(scores"),),
    ),
    Mutation(
        "a scale may be rounded down, and the largest number does not fit",
        "tests/kernels/test_packed.py::test_bit_by_bit_as_in_float64",
        (("pallas_kernels/rounding.py", "0xFFFF", "0x7FFF"),),
    ),
    Mutation(
        "sums of groups of inputs are scaled by another group's scale",
        "tests/test_weights.py::test_a_product_is_that_of_what_they_stand_for[float32-64-int4]",
        (("pallas_kernels/compiler.py", "parts * scale[:, None], axis=0)", "parts, axis=0)"),),
    ),
    Mutation(
        "the halves of a byte change places",
        "tests/kernels/test_int4.py::test_every_byte_is_two_numbers",
        (
            (
                "pallas_kernels/int4.py",
                "[(wide & 15) - ZERO, (wide >> 4) - ZERO]",
                "[(wide >> 4) - ZERO, (wide & 15) - ZERO]",
            ),
        ),
    ),
    Mutation(
        "the last block of integers counts some slots twice",
        "tests/kernels/test_int4.py::test_decode[None-False-bent0]",
        (("pallas_kernels/decode/xla.py", "jnp.where(fresh, at, -1)", "at"),),
    ),
    Mutation(
        "a gradient takes the keys that move into a pool for values",
        "tests/test_gradients.py::test_it_is_the_slope[global]",
        (
            (
                "jaxkv/cache/shared.py",
                "(tangents[1].k, tangents[1].v)",
                "(tangents[1].v, tangents[1].k)",
            ),
        ),
    ),
    Mutation(
        "the derivative of a loop has a turn too many",
        "tests/test_gradients.py::test_a_loop_of_any_length_has_that_of_its_turns[1]",
        (("pallas_kernels/loops.py", "index < count", "index <= count"),),
    ),
    Mutation(
        "a layer by itself forgets the scale of its products",
        "tests/test_alone.py::test_a_prompt_and_steps_are_dense_attention[None-scaled]",
        (("jaxkv/alone.py", "* jnp.float32(factor)", "* jnp.float32(1)"),),
    ),
    Mutation(
        "arrays of another shape are taken for a cache's",
        "tests/test_alone.py::test_arrays_of_another_cache_are_refused_in_one_line",
        (("jaxkv/cache/arrays.py", "if _told(found) != _told(shape):", "if False:"),),
    ),
    Mutation(
        "attention of nnx takes padding for tokens",
        "tests/integrations/test_nnx.py::test_padding_on_the_right_does_not_matter",
        (("jaxkv/integrations/nnx.py", "lengths=lengths, hidden", "hidden"),),
    ),
]  # fmt: skip


def plant(mutation: Mutation, tree: Path) -> None:
    for name, old, new in mutation.changes:
        text = (tree / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times, not once"
        (tree / name).write_text(text.replace(old, new), encoding="utf-8")


def outcome(mutation: Mutation, folder: Path) -> tuple[str, float]:
    """`red` and why, or what happened instead; and the seconds that it took."""
    begun = time.perf_counter()
    tree = Path(tempfile.mkdtemp(dir=folder)) / "tree"
    for part in ("jaxkv", "pallas_kernels", "tests", "tools", "configs"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    plant(mutation, tree)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", mutation.test]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    shutil.rmtree(tree)
    if done.returncode == 1 and "1 failed" in done.stdout:
        why = [line for line in done.stdout.splitlines() if line.startswith("E  ")]
        return f"red: {why[0][1:].strip():.90}", time.perf_counter() - begun
    said = (done.stdout + done.stderr).strip().splitlines()[-3:]
    return f"NOT RED: exit {done.returncode}: {' | '.join(said)}", time.perf_counter() - begun


def main() -> int:
    found = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = pool.map(lambda mutation: outcome(mutation, Path(name)), MUTATIONS)
        for mutation, (said, seconds) in zip(MUTATIONS, outcomes, strict=True):
            found.append(said)
            print(f"{seconds:5.1f} s  {mutation.what}\n         {mutation.test}")
            print(f"         {said}", flush=True)
    red = sum(said.startswith("red") for said in found)
    print(f"{red} passed, {len(found) - red} failed")
    return red != len(found)


if __name__ == "__main__":
    sys.exit(main())
