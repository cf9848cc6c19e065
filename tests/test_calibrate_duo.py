# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.calibrate duo`: its two streams, data and schedule, and runs that resume."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from dense_model import DenseModel

from jaxkv.calibrate import passkeys, trained
from jaxkv.calibrate.__main__ import main
from jaxkv.calibrate.command import parse_options
from jaxkv.calibrate.gated import Gated, hidden_states, losses, stack_layers
from jaxkv.calibrate.haystacks import builtin
from jaxkv.calibrate.passkeys import Recipe
from jaxkv.calibrate.training import (
    histogram,
    make_optimizer,
    make_slope,
    make_step,
    rate,
    start,
    train,
)
from jaxkv.calibrate.wordings import ALPHABET, HELD_OUT, ORDINALS, WORDINGS
from jaxkv.checkpoints import toy
from jaxkv.checkpoints.model import Model
from jaxkv.models.block import rms_norm
from jaxkv.models.decoder import geometry, run_layers
from jaxkv.models.plan import plan
from jaxkv.policies.duo import DuoAttention
from jaxkv.policies.head_scores import GATES, full_heads, save_pattern, sparsify
from jaxkv.train.checkpoints import Checkpoints

POLICY = Gated(sinks=2, recent=5, chunk=8)
TOTAL, VALID = 32, 27
SHAPE = toys.CONFIG.num_layers, toys.CONFIG.num_kv_heads
PARAMS = toys.params()
STACKED = stack_layers(PARAMS)
TOKENS = toys.tokens(1, TOTAL)
LENGTHS = jnp.asarray([VALID], jnp.int32)
LABELS = jnp.asarray((np.arange(TOTAL) >= 19) & (np.arange(TOTAL) < VALID))[None]
GATES_01 = jnp.asarray(np.random.default_rng(3).uniform(0.1, 0.9, SHAPE), jnp.float32)
SMALL = [
    "duo", "--method", "train", "--model", "tiny-random", "--passkeys", "1", "--words", "2",
    "--number-share", "0", "--min-length", "256", "--max-length", "256", "--sinks", "4",
    "--recent", "16", "--steps", "5", "--checkpoint-every", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled() -> dict:
    return {}


@pytest.fixture(autouse=True)
def one_compilation(monkeypatch, compiled) -> None:
    """Commands of this file differ in nothing that is compiled into the large program."""
    make_slope = trained.make_slope

    def shared(losses):
        if not compiled:
            compiled["slope"] = make_slope(losses)
        return compiled["slope"]

    monkeypatch.setattr(trained, "make_slope", shared)


@pytest.fixture(scope="module")
def model() -> Model:
    return toy.load()


@functools.cache
def _compiled():
    both = jax.jit(hidden_states, static_argnums=(1, 3))
    loss = jax.jit(losses, static_argnums=(1, 3))
    return both, loss


def streams(gates) -> tuple[np.ndarray, np.ndarray]:
    """Both hidden states where they are defined, [T, D]."""
    full, mixed = _compiled()[0](STACKED, toys.CONFIG, gates, POLICY, TOKENS, LENGTHS)
    return np.asarray(full)[0, :VALID], np.asarray(mixed)[0, :VALID]


def loss(gates) -> tuple[jax.Array, jax.Array]:
    return _compiled()[1](STACKED, toys.CONFIG, gates, POLICY, TOKENS, LENGTHS, LABELS)


class Dense(DenseModel):
    """Both streams, with T x T masks (the paper's formula, section 3.2)."""

    def __init__(self, gates: np.ndarray) -> None:
        super().__init__(PARAMS, toys.CONFIG)
        self.gates = np.asarray(gates, np.float64)
        at = np.arange(VALID)
        back = at[:, None] - at[None]
        self.causal = back >= 0
        self.streaming = self.causal & ((back <= POLICY.recent) | (at[None] < POLICY.sinks))

    def losses(self) -> tuple[float, float]:
        full = mixed = self.params["embed"][np.asarray(TOKENS)[0, :VALID]]
        for layer, gate in zip(self.params["layers"], self.gates, strict=True):
            share = gate[None, :, None, None]
            far, near = (self.attend(mixed, layer, x) for x in (self.causal, self.streaming))
            mixed = self.rest(mixed, share * far + (1 - share) * near, layer)
            full = self.rest(full, self.attend(full, layer, self.causal), layer)
        full, mixed = (self.norm(x, self.params["final_norm"]) for x in (full, mixed))
        apart = ((full - mixed) ** 2).mean(-1)[np.asarray(LABELS)[0, :VALID]]
        return float(apart.mean()), float(np.abs(self.gates).mean())


class TestStreams:
    def test_open_gates_are_the_teacher(self):
        full, mixed = streams(jnp.ones(SHAPE))
        np.testing.assert_allclose(mixed, full, atol=1e-6)
        distill, size = loss(jnp.ones(SHAPE))
        assert float(distill) < 1e-12 and float(size) == 1.0

    def test_closed_gates_are_streaming_heads_as_deployed(self, tmp_path):
        config = toys.CONFIG
        save_pattern(tmp_path / "g", GATES, np.zeros(SHAPE), config.identity, {})
        policy = DuoAttention(str(tmp_path / "g"), 1.0, POLICY.sinks, POLICY.recent)
        shapes = geometry(config, 1, TOTAL)
        run = jax.jit(run_layers, static_argnums=(1, 2))
        x, _ = run(PARAMS, config, policy, TOKENS, plan(policy, shapes).init(), LENGTHS)
        expected = rms_norm(x, PARAMS["final_norm"], config.norm_eps)
        full, mixed = streams(jnp.zeros(SHAPE))
        np.testing.assert_allclose(mixed, np.asarray(expected)[0, :VALID], atol=1e-5)
        assert np.abs(full - mixed).max() > 0.1

    def test_the_loss_is_that_of_dense_masks(self):
        for gates in (GATES_01, jnp.zeros(SHAPE)):
            distill, size = loss(gates)
            wanted, wanted_size = Dense(np.asarray(gates)).losses()
            assert wanted > 1e-3
            np.testing.assert_allclose(distill, wanted, rtol=1e-4)
            np.testing.assert_allclose(size, wanted_size, rtol=1e-6)

    def test_the_gradient_is_that_of_finite_differences(self):
        slope = np.asarray(jax.grad(lambda gates: loss(gates)[0])(GATES_01))
        assert np.isfinite(slope).all()
        for index in np.ndindex(SHAPE):
            step = np.zeros(SHAPE)
            step[index] = 1e-5
            up, down = (Dense(np.asarray(GATES_01) + s * step).losses()[0] for s in (1, -1))
            np.testing.assert_allclose(slope[index], (up - down) / 2e-5, rtol=2e-3, atol=1e-6)

    def test_padding_never_matters(self):
        other = TOKENS.copy()
        other[0, VALID:] = 1
        again = _compiled()[1](STACKED, toys.CONFIG, GATES_01, POLICY, other, LENGTHS, LABELS)
        np.testing.assert_array_equal(loss(GATES_01)[0], again[0])


HAY = ("Call me Ishmael.", "Some years ago, never mind.")


def recipe(
    shortest: int, longest: int, keys: int, size: int, wordings=(WORDINGS["vault"],), hays=(HAY,)
) -> Recipe:
    return Recipe(shortest, longest, keys, size, 0.4, wordings, hays)


class TestExamples:
    VAULT = recipe(450, 510, 3, 2)

    def test_pass_keys_are_hidden_in_order_and_asked_for_in_the_tail(self, model):
        lengths, kinds = set(), set()
        decode = model.tokenizer.decode
        for step in range(20):
            example = passkeys.make_example(self.VAULT, model.tokenizer, 1, step)
            total = len(example.tokens)
            assert 450 <= total <= 510 and example.tokens.dtype == np.int32
            lengths.add(total)
            text = decode(example.tokens)
            book, tail = text.split(" </book>.\n\n")
            assert tail.startswith("Based on") and tail.endswith("\n\n")
            assert book.startswith("This is a very long story book: <book> ")
            at = [book.index(f"it's the {ordinal} passkey") for ordinal in ORDINALS[:3]]
            assert at == sorted(at)
            said = ""
            for ordinal in ORDINALS[:3]:
                key = book.split(f"it's the {ordinal} passkey to the vault: ")[1].split("\n\n")[0]
                asked = f"what is the {ordinal} passkey to the vault?\nPasskey: {key}\n\n"
                assert asked in tail
                number = key.isdigit()
                kinds.add(number)
                words = key.split(" ")
                assert 5 <= len(key) <= 7 if number else len(words) == 2 and {*words} <= {*ALPHABET}
                said += f" {key}"
            # A label is at the token before the one that it says.
            assert not example.labels[-1]
            assert decode(example.tokens[1:][example.labels[:-1]]) == said
        assert len(lengths) > 5 and kinds == {False, True}

    def test_every_wording_and_haystack_has_its_turn(self, model):
        many = recipe(700, 700, 1, 2, wordings=tuple(WORDINGS.values()), hays=(("A.",), ("B.",)))
        hays = set()
        for step, wording in enumerate(many.wordings):
            text = model.tokenizer.decode(
                passkeys.make_example(many, model.tokenizer, 0, step).tokens
            )
            who = wording.owners[0]
            question, opening = wording.asked(who)
            key = text.split(f"{question}\n{opening} ")[1].removesuffix("\n\n")
            assert wording.sentence(who, key) in text and key.split() != []
            hays |= {hay for hay in "AB" if f" {hay}. {hay}." in text}
        assert hays == {"A", "B"}

    def test_are_the_same_for_a_seed_and_a_step(self, model):
        def tokens(seed: int, step: int) -> list[int]:
            return passkeys.make_example(self.VAULT, model.tokenizer, seed, step).tokens.tolist()

        assert tokens(0, 7) == tokens(0, 7)
        assert tokens(0, 7) != tokens(0, 8)
        assert tokens(0, 7) != tokens(1, 7)

    def test_the_tightest_length_is_accepted_and_no_less(self, model):
        parts = passkeys._parts(recipe(1, 1, 2, 2), model.tokenizer, 0, 0)
        tight = 1 - parts.room
        exact = recipe(tight, tight, 2, 2)
        passkeys.check_room(exact, model.tokenizer, 0, 1)
        assert len(passkeys.make_example(exact, model.tokenizer, 0, 0).tokens) == tight
        with pytest.raises(ValueError, match=f"up to {tight} tokens"):
            passkeys.check_room(recipe(tight - 1, tight, 2, 2), model.tokenizer, 0, 1)

    def test_padding_keeps_the_labels(self, model):
        example = passkeys.make_example(self.VAULT, model.tokenizer, 0, 0)
        tokens, lengths, labels = trained.padded(example, 256)
        total = len(example.tokens)
        assert tokens.shape == labels.shape == (1, 512) and lengths.tolist() == [total]
        assert tokens[0, :total].tolist() == example.tokens.tolist()
        assert labels.sum() == example.labels.sum() and not labels[0, total:].any()

    def test_what_is_held_out_is_never_trained_on(self):
        other = trained.held_out(self.VAULT)
        assert other.wordings == tuple(HELD_OUT.values())
        assert not {w.told for w in other.wordings} & {w.told for w in WORDINGS.values()}
        assert not set(other.haystacks[0]) & {x for hay in builtin().values() for x in hay}
        assert (other.min_length, other.passkeys) == (450, 3)


def test_the_gates_that_are_judged_best_are_kept(tmp_path: Path) -> None:
    optimizer = make_optimizer(0.1, 6)
    slope = make_slope(lambda gates, x: (jnp.sum(gates) * jnp.sum(x), jnp.mean(gates)))
    judged: list[float] = []

    def judge(gates: jax.Array) -> float:
        judged.append(float(gates[0, 0]))
        return [3.0, 1.0, 2.0][len(judged) - 1]

    gates = train(
        make_step(slope, optimizer, 0.1), start(jnp.ones((1, 1), jnp.float32), optimizer),
        lambda index: (jnp.zeros(1, jnp.float32),), judge, 6, Checkpoints(tmp_path / "c", {}), 2,
        lambda *told: None,
    )  # fmt: skip
    assert judged == sorted(judged, reverse=True) and len(judged) == 3
    assert gates.tolist() == [[judged[1]]]


def test_the_schedule_is_that_of_the_code() -> None:
    rates = [float(rate(i, 2000)) for i in (0, 39, 40, 199, 399, 400, 1600, 1601, 1959, 1960, 1999)]
    wanted = [0.1, 0.1, 41 / 400, 0.5, 1.0, 1.0, 1.0, 399 / 400, 41 / 400, 0.1, 0.1]
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)
    assert [float(rate(i, 1)) for i in (0,)] == [1.0]


def test_a_step_is_that_of_adamw_on_clipped_gates() -> None:
    slope = make_slope(lambda gates: (jnp.sum(gates) * 0.0, jnp.mean(jnp.abs(gates))))
    optimizer = make_optimizer(0.02, 10)
    state, report = make_step(slope, optimizer, 0.05)(
        start(jnp.asarray([[1.5, 0.5]], jnp.float32), optimizer)
    )
    np.testing.assert_allclose(report.loss, 0.05 * 0.75, rtol=1e-6)
    # Adam's first step is the learning rate, here half of the highest, whatever the slope.
    np.testing.assert_allclose(state.gates, [[0.99, 0.49]], rtol=1e-5)


def test_the_histogram_shows_every_gate() -> None:
    gates = np.array([[1.0] * 70, [0.0] * 70])
    gates[0, 0] = 0.55
    assert histogram(gates) == "gates 0.497 |█    ▁   █|"
    assert histogram(np.array([[1.2, -0.1]])) == "gates 0.500 |█        █|"


class TestCommand:
    def test_writes_gates_a_mask_and_a_picture(self, capsys, tmp_path, model):
        out, plot = tmp_path / "new" / "g.json", tmp_path / "g.png"
        text = tmp_path / "text"
        text.write_text("The rain in Spain stays mainly in the plain. " * 9)
        main([*SMALL, "--out", str(out), "--plot", str(plot), "--haystack", str(text)])
        said, told = capsys.readouterr()
        assert said.startswith(f"{out}: 3 layers of 2 KV heads") and said.count("\n") == 1
        assert "step 5/5" in told and "|" in told
        content = json.loads(out.read_text())
        gates = np.asarray(content["gates"])
        assert gates.shape == (3, 2) and (0 <= gates).all() and (gates <= 1).all()
        assert gates.min() < 1 and len(np.unique(gates)) > 1
        assert told.count("held out") == 3 and "best so far" in told
        assert content["full_heads"] == sparsify(gates, 0.5).tolist()
        for name, value in {
            "format": "jaxkv.duo", "model": model.config.identity, "name": "tiny-random",
            "sinks": 4, "recent": 16, "sparsity": 0.5, "seed": 0, "steps": 5, "lr": 0.02,
            "reg": 0.05, "haystack": [str(text)], "jax": jax.__version__, "method": "train",
            "wordings": list(WORDINGS),
        }.items():  # fmt: skip
            assert content[name] == value
        assert content["command"].startswith("python -m jaxkv.calibrate duo --method train")
        kept = full_heads(str(out), 0.5, geometry(model.config, 1, 64))
        assert [[head in heads for head in range(2)] for heads in kept] == content["full_heads"]
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert sorted(path.name for path in out.parent.iterdir()) == ["g.json"]

    def test_a_run_that_was_stopped_ends_with_the_same_gates(
        self, capsys, tmp_path, monkeypatch, compiled
    ):
        whole, out = tmp_path / "whole.json", tmp_path / "g.json"
        main([*SMALL, "--out", str(whole)])

        make_example = passkeys.make_example

        def stopped(recipe, tokenizer, seed, step):
            if step == 3 and recipe.wordings[0] in WORDINGS.values():  # not where gates are judged
                raise KeyboardInterrupt
            return make_example(recipe, tokenizer, seed, step)

        with monkeypatch.context() as patch:
            patch.setattr(trained, "make_example", stopped)
            with pytest.raises(SystemExit) as ended:
                main([*SMALL, "--out", str(out)])
        assert ended.value.code == 130 and not out.exists()
        folder = tmp_path / "g.json.checkpoints"
        assert [path.name for path in folder.iterdir()] == ["step-00000002"]
        # What a kill leaves while a state is written is not taken for one.
        (folder / ".step-00000004.x.part").mkdir()

        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*SMALL, "--out", str(out), "--lr", "0.01"])
        err = capsys.readouterr().err
        assert ended.value.code == 2 and err.count("\n") == 1
        assert "--lr 0.02" in err and "0.01" in err and "--restart" in err

        main([*SMALL, "--out", str(out)])
        assert "after step 2 of 5" in capsys.readouterr().err
        one, other = (json.loads(path.read_text()) for path in (whole, out))
        assert one["gates"] == other["gates"]
        assert not folder.exists()
        assert compiled["slope"]._cache_size() == 1

    def test_a_damaged_or_foreign_state_is_refused_and_can_be_dropped(self, capsys, tmp_path):
        out = tmp_path / "g.json"
        folder = tmp_path / "g.json.checkpoints"
        state = folder / "step-00000002"
        state.mkdir(parents=True)
        for text in ("", "{}", json.dumps({"format": 0, "step": 2, "run": {}})):
            (state / "run.json").write_text(text)
            assert "--restart" in fails(capsys, *SMALL, "--out", str(out))
        note = {"format": 2, "step": 2, "run": {}, "files": {}}
        options = parse_options([*SMALL, "--out", str(out)])[2].settings()
        note["run"] = {"weights": "tiny-random-20240", "--dtype": "float32", "--seed": 0, **options}
        (state / "run.json").write_text(json.dumps(note))
        assert "step-00000002 is damaged" in fails(capsys, *SMALL, "--out", str(out))
        (folder / "mine").write_text("kept")
        main([*SMALL, "--steps", "1", "--restart", "--out", str(out)])
        assert [path.name for path in folder.iterdir()] == ["mine"]

    def test_help_teaches(self, capsys):
        for arguments in (["--help"], ["duo", "--help"]):
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            assert ended.value.code == 0
            assert "examples:" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "arguments, said",
        [
            ([], "duo"),
            (["nosuch"], "duo, headkv"),
            (["--out", "x", "duo"], "comes first"),
            (["duo"], "--out"),
            (["duo", "--out", "."], "folder"),
            (["duo", "--out", "/dev/null/x"], "/dev/null"),
            (["duo", "--out", "x", "--plot", "x.doc"], ".png"),
            (["duo", "--out", "x", "--method", "guess"], "attention, closing, train, profile"),
            (["duo", "--out", "x", "--wordings", "vault,x"], "'x'; each must be one of vault"),
            (["duo", "--out", "x", "--examples", "0"], "--examples is 0; it must be at least 1"),
            (["duo", "--out", "x", "--steps", "0"], "--steps is 0; it must be at least 1"),
            (["duo", "--out", "x", "--steps", "many"], "--steps"),
            (["duo", "--out", "x", "--min-length", "9", "--max-length", "8"], "--max-length"),
            (["duo", "--out", "x", "--sinks", "-1"], "--sinks is -1; it must be at least 0"),
            (["duo", "--out", "x", "--recent", "0"], "--recent"),
            (["duo", "--out", "x", "--passkeys", "21"], "at most 20"),
            (["duo", "--out", "x", "--words", "0"], "--words"),
            (["duo", "--out", "x", "--lr", "0"], "--lr is 0.0; it must be above 0"),
            (["duo", "--out", "x", "--lr", "nan"], "--lr"),
            (["duo", "--out", "x", "--reg", "-1"], "--reg"),
            (["duo", "--out", "x", "--number-share", "2"], "from 0 to 1"),
            (["duo", "--out", "x", "--checkpoint-every", "0"], "--checkpoint-every"),
            (["duo", "--out", "x", "--seed", "-1"], "--seed"),
            (["duo", "--out", "x", "--haystack", "no/such"], "--haystack no/such"),
            (["duo", "--out", "x", "--haystack", "/dev/null"], "/dev/null is a pipe or a device"),
            (["duo", "--out", "x", "--nosuch", "1"], "nosuch"),
            (["duo", "--out", "x", "--model", "no/such.gguf"], "no/such.gguf"),
            (["duo", "--out", "x", "--model", "tiny-random", "--dtype", "int3"], "float32"),
            ([*SMALL, "--out", "x", "--min-length", "99"], "--min-length is 99"),
            ([*SMALL, "--out", "x", "--max-length", "5000"], "4096"),
        ],
    )  # fmt: skip
    def test_wrong_input_is_one_line(self, capsys, tmp_path, monkeypatch, arguments, said):
        monkeypatch.chdir(tmp_path)
        assert said in fails(capsys, *arguments)
        assert not list(tmp_path.iterdir())

    def test_a_haystack_that_is_no_text(self, capsys, tmp_path):
        path = tmp_path / "text"
        path.write_bytes(b"\xff\xfe")
        assert "UTF-8" in fails(capsys, "duo", "--out", "x", "--haystack", str(path))

    def test_options(self, tmp_path):
        calibration, common, options = parse_options([*SMALL, "--out", str(tmp_path / "x y")])
        assert calibration.name == "duo" and common.model == "tiny-random"
        assert (options.sinks, options.recent, options.steps) == (4, 16, 5)
        assert common.command.endswith(f"--out '{tmp_path / 'x y'}'")


def test_a_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    state = {"x": jnp.asarray([1 / 3, 1e-30], jnp.float32), "n": jnp.int32(7)}
    checkpoints = Checkpoints(tmp_path / "c", {"--lr": 0.1})
    assert checkpoints.restore(state) == (0, state)
    checkpoints.save(3, state)
    checkpoints.save(12, jax.tree.map(lambda x: x + x, state))
    step, back = checkpoints.restore(state)
    assert step == 12
    jax.tree.map(np.testing.assert_array_equal, back, jax.tree.map(lambda x: x + x, state))
    checkpoints.remove()
    assert not (tmp_path / "c").exists()


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    last = err.splitlines()[-1]
    assert last.startswith("jaxkv.calibrate: error: ") and "Traceback" not in err
    return last
