# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxkv.train`: three arms, runs that are killed, what comes out, and wrong input."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkv
from jaxkv.checkpoints import toy
from jaxkv.decode.__main__ import main as decode
from jaxkv.eval.__main__ import main as evaluate
from jaxkv.eval.tasks.ppl import token_stream
from jaxkv.train.__main__ import main
from jaxkv.train.arms import SINKS, first_weights
from jaxkv.train.command import parse_options
from jaxkv.train.text import Samples

ROOT = Path(__file__).parent.parent
WORDS = "the rain in Spain stays mainly on a wide plain and falls where no one waits for it".split()
SIZES = (
    "--layers", "1", "--width", "32", "--heads", "2", "--vocab-size", "280", "--context", "16",
    "--batch", "4", "--validation", "0.1", "--warmup", "0.2", "--lr", "0.01",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def kept_at_home(tmp_path_factory) -> Any:
    """Tokenised texts are in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXKV_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    """Some thousand words, of which some follow others."""
    rng, at, words = np.random.default_rng(0), 0, []
    for _ in range(2000):
        at = (at + int(rng.choice([1, 1, 1, 5]))) % len(WORDS)
        words.append(WORDS[at])
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("\n".join(" ".join(words[i : i + 9]) for i in range(0, len(words), 9)))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, book) -> dict[str, Path]:
    """A model of each arm that needs nothing new."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    for name, more in {
        "vanilla": [], "sink-token": [], "two": ["--sink-tokens", "2"],
    }.items():  # fmt: skip
        arm = "sink-token" if name == "two" else name
        made[name] = folder / name
        words = ["--text", str(book), "--out", str(made[name]), "--attention", arm, *SIZES]
        main([*words, "--steps", "40", "--plot", str(folder / "loss.png"), *more])
    return made


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("jaxkv.train: error: ")
    return last


class TestModels:
    def test_a_zero_sink_stays_zero(self, tmp_path, book):
        out = tmp_path / "zero"
        words = ["--text", str(book), "--out", str(out), "--attention", "zero-sink", *SIZES]
        main([*words, "--steps", "5"])
        model = jaxkv.load(out)
        assert model.config.sink_logits and model.tokenizer.bos_ids == ()
        for layer in model.params["layers"]:
            assert layer["sink_logits"].tolist() == [0.0, 0.0]
            assert float(jnp.abs(layer["wqkv"]).max()) > 0
        # One more term in the softmax is another model than the same weights without it.
        ids = jnp.asarray([model.tokenizer.encode("the rain in Spain")], jnp.int32)
        vanilla = dataclasses.replace(model.config, sink_logits=False)
        plain = tuple({n: x for n, x in layer.items() if n != "sink_logits"}
                      for layer in model.params["layers"])  # fmt: skip
        both = []
        for config, layers in ((model.config, model.params["layers"]), (vanilla, plain)):
            cache = jaxkv.init_cache(config, jaxkv.Full(), 1, 32)
            params = {**model.params, "layers": layers}
            both.append(jaxkv.forward(params, config, jaxkv.Full(), ids, cache)[0])
        assert float(jnp.abs(both[0] - both[1]).max()) > 1e-4

    def test_sink_logits_are_learnt_where_it_is_asked_for(self, tmp_path, book):
        words = ["--text", str(book), *SIZES[SIZES.index("--context") :], "--steps", "4"]
        first, then = tmp_path / "first", tmp_path / "then"
        main([*words, *SIZES[: SIZES.index("--context")], "--out", str(first),
              "--attention", "zero-sink", "--learn-sinks"])  # fmt: skip
        main([*words, "--out", str(then), "--model", str(first)])
        for layer, after in zip(*(jaxkv.load(x).params["layers"] for x in (first, then)),
                                strict=True):  # fmt: skip
            assert (layer["sink_logits"] != 0).all()
            assert layer["sink_logits"].tolist() == after["sink_logits"].tolist()
            assert (layer["wqkv"] != after["wqkv"]).any()

    def test_a_loss_falls_on_what_is_held_out_too(self, trained):
        for folder in trained.values():
            report = told(folder)
            assert report["losses"][0] == pytest.approx(np.log(384) + 0.2, abs=0.2)
            assert report["loss"] < report["losses"][0] - 2
            assert report["held_out"] == pytest.approx(report["loss"], abs=0.5)
            assert [point["step"] for point in report["validation"]] == [40]
            assert len(report["losses"]) == 40 and report["tokens"] == 40 * 4 * 16
            assert report["tokens_per_s"] > 0 and report["peak_bytes"] > 0
            assert report["jax"] == jax.__version__ and report["settings"]["--lr"] == 0.01
            assert report["fingerprint"] == jaxkv.load(folder).fingerprint
        assert (trained["vanilla"].parent / "loss.png").read_bytes().startswith(b"\x89PNG")

    def test_a_sink_token_comes_first_by_itself(self, trained, capsys, book):
        first = {"vanilla": (), "sink-token": (280,), "two": (280, 281)}
        for name, ids in first.items():
            model = jaxkv.load(trained[name])
            assert model.tokenizer.bos_ids == ids and model.config.vocab_size == 384
            stream = token_stream(model, book.read_text(), 20)
            assert tuple(stream[: len(ids)]) == ids and len(stream) == 20 + len(ids)
            decode(["--model", str(trained[name]), "--raw", "--prompt", "the rain", "--json",
                    "--max-new-tokens", "6"])  # fmt: skip
            said = json.loads(capsys.readouterr().out)
            count = len(model.tokenizer.encode("the rain"))
            assert said["prompt_tokens"] == count + len(ids) and said["new_tokens"] == 6
            assert not set(SINKS) & set(said["text"].split())

    def test_a_sink_token_has_learnt_to_be_first(self, trained):
        """The text after it is likelier than after another token, and its row has moved."""
        model = jaxkv.load(trained["sink-token"])
        begun = first_weights(model.config, 0)["embed"]
        moved = jnp.abs(model.params["embed"] - begun).max(axis=1)
        decay = float(moved[282:].max())  # rows that no text has
        assert float(moved[280]) > 5 * decay

    def test_evaluations_take_it(self, trained, capsys, book):
        for name in ("vanilla", "sink-token"):
            evaluate(["ppl", "--model", str(trained[name]), "--text-file", str(book), "--tokens",
                      "60", "--policy", "streaming:sinks=1:window=8", "--json"])  # fmt: skip
            said = json.loads(capsys.readouterr().out)
            assert 1 < said["score"] < 30 and said["n"] == 59 + (name == "sink-token")

    def test_it_is_written_for_transformers(self, trained, tmp_path):
        for name in ("vanilla", "sink-token"):
            model = jaxkv.load(trained[name])
            jaxkv.export_hf(tmp_path / name, model)
            again = jaxkv.load(tmp_path / name)
            assert again.config == model.config
            assert again.tokenizer.bos_ids == model.tokenizer.bos_ids
            jax.tree.map(np.testing.assert_array_equal, again.params, model.params)

    def test_a_model_learns_on_through_a_policy(self, tmp_path, book, capsys):
        out = tmp_path / "tuned"
        words = ["--text", str(book), "--out", str(out), "--model", "tiny-random", "--context",
                 "32", "--chunk", "16", "--batch", "5", "--steps", "12", "--lr", "0.003",
                 "--policy", "streaming", "--policy.sinks", "1", "--policy.window", "6",
                 "--remat", "--json", "--validation", "0.05"]  # fmt: skip
        main(words)
        report = json.loads(capsys.readouterr().out)
        assert report == told(out) and report["attention"] == "its own"
        assert report["policy"] == {"name": "streaming", "sinks": 1, "window": 6}
        assert report["losses"][-1] < report["losses"][0] - 0.3
        model = jaxkv.load(out)
        assert model.config == toy.load().config
        assert model.tokenizer.chat_template == toy.tokenizer().chat_template


_KILLED = """
import os, signal, sys
from jaxkv.train import text
from jaxkv.train.__main__ import main
batch = text.Samples.batch
def killed(self, seed, step, size):
    if step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(self, seed, step, size)
text.Samples.batch = killed
main(sys.argv[1:])
"""


class TestRuns:
    def words(self, book: Path, out: Path, *more: str) -> list[str]:
        return [
            "--text", str(book), "--out", str(out), *SIZES, "--steps", "12",
            "--checkpoint-every", "3", "--validate-every", "5", *more,
        ]  # fmt: skip

    def test_a_killed_run_ends_with_the_same_bits(self, tmp_path, book, capsys):
        whole, out = tmp_path / "whole", tmp_path / "killed"
        main(self.words(book, whole))
        command = [sys.executable, "-c", _KILLED, *self.words(book, out)]
        run = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True)
        assert run.returncode == -signal.SIGKILL and not out.exists()
        folder = tmp_path / "killed.checkpoints"
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["step-00000003", "step-00000006"]
        (folder / ".step-00000009.x.part").mkdir()  # of one that was killed while it wrote
        capsys.readouterr()
        main(self.words(book, out))
        assert "going on after step 6 of 12" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]
        one, other = told(whole), told(out)
        assert one["losses"] == other["losses"] and len(set(one["losses"])) == 12
        assert one["validation"] == other["validation"]
        assert [point["step"] for point in one["validation"]] == [5, 10, 12]
        jax.tree.map(
            np.testing.assert_array_equal, jaxkv.load(out).params, jaxkv.load(whole).params
        )

    def test_two_devices_give_the_losses_of_one(self, tmp_path, book):
        for name, more in {
            "one": (),
            "two": ("--mesh", "data=2"),
            "half": ("--micro-batch", "2"),
        }.items():
            main(self.words(book, tmp_path / name, *more))
        one, *others = (told(tmp_path / name) for name in ("one", "two", "half"))
        for other in others:
            np.testing.assert_allclose(other["losses"], one["losses"], atol=1e-5)
            assert other["held_out"] == pytest.approx(one["held_out"], abs=1e-5)

    def test_a_state_of_another_run_is_refused(self, tmp_path, book, capsys, monkeypatch):
        out = tmp_path / "m"

        def stopped(self: Samples, seed: int, step: int, size: int) -> Any:
            if step == 4:
                raise KeyboardInterrupt
            return batch(self, seed, step, size)

        batch = Samples.batch
        with monkeypatch.context() as patch:
            patch.setattr(Samples, "batch", stopped)
            with pytest.raises(SystemExit) as ended:
                main(self.words(book, out))
        assert ended.value.code == 130 and "the same command goes on" in capsys.readouterr().err
        other = tmp_path / "other.txt"
        other.write_text(book.read_text().upper())
        for more, named in {
            ("--attention", "sink-token"): "--attention 'vanilla', this one has 'sink-token'",
            ("--steps", "13"): "--steps 12, this one has 13",
            ("--text", str(other)): "--text",
            ("--policy", "window", "--policy.window", "4"): "--policy {'name': 'full'",
        }.items():
            said = fails(capsys, *self.words(book, out, *more))
            assert "m.checkpoints holds an unfinished run with" in said and named in said
        # One whose end is lost is refused too, and the one before it goes on.
        newest = tmp_path / "m.checkpoints" / "step-00000003"
        for path in newest.glob("arrays/**/*"):
            if path.is_file() and path.stat().st_size > 1000:
                path.write_bytes(path.read_bytes()[:-9])
        assert "step-00000003 is damaged" in fails(capsys, *self.words(book, out))
        main(self.words(book, out, "--restart"))
        assert "going on" not in capsys.readouterr().err
        assert "exists; give --overwrite" in fails(capsys, *self.words(book, out))
        main(self.words(book, out, "--overwrite", "--seed", "1"))

    def test_numbers_that_are_none_stop_it(self, tmp_path, book, capsys):
        out = tmp_path / "m"
        words = self.words(book, out, "--lr", "1e38", "--checkpoint-every", "1", "--warmup", "0")
        said = fails(capsys, *words)
        assert "is nan at step" in said or "is inf at step" in said
        assert "m.checkpoints keeps the state after step" in said and not out.exists()
        kept = sorted((tmp_path / "m.checkpoints").iterdir())
        assert 1 <= len(kept) <= 2
        assert int(said.rpartition(" ")[2]) == int(kept[-1].name[5:])


class TestCommand:
    @pytest.mark.parametrize(
        "words, said",
        [
            (["--text", "BOOK"], "--out is missing"),
            (["--out", "m"], "--text is missing"),
            (["--text", "no/such.txt", "--out", "m"], "--text no/such.txt: there is no such file"),
            (["--text", "EMPTY", "--out", "m"], "empty.txt holds no text"),
            (["--text", "BLANK", "--out", "m"], "blank.txt holds no text"),
            (["--text", "BYTES", "--out", "m"], "is not UTF-8"),
            (["--text", "FOLDER", "--out", "m"], "holds no .txt file"),
            (["--text", "/dev/null", "--out", "m"], "/dev/null is a pipe or a device"),
            (["--text", "SHORT", "--out", "m"], "give more text, a shorter context or another"),
            (["--text", "BOOK", "--out", "m", "--validation", "0.001"], "for validation"),
            (["--text", "BOOK", "--out", "m", "--validation", "1"], "above 0 and below 1"),
            (["--text", "BOOK", "--out", "FOLDER"], "--overwrite"),
            (["--text", "BOOK", "--out", "FOLDER", "--overwrite"], "not a checkpoint"),
            (["--text", "BOOK", "--out", "/dev/null/m"], "/dev/null"),
            (["--text", "BOOK", "--out", "/"], "no name of a folder"),
            (["--text", "BOOK", "--out", "short"], "short.checkpoints, which is a file"),
            (["--text", "BOOK", "--out", "m", "--attention", "none"],
             "--attention is 'none'; it must be vanilla, zero-sink, sink-token"),
            (["--text", "BOOK", "--out", "m", "--sink-tokens", "1"], "--sink-tokens is for"),
            (["--text", "BOOK", "--out", "m", "--learn-sinks"], "and this one has none"),
            (["--text", "BOOK", "--out", "m", "--attention", "sink-token", "--sink-tokens", "3"],
             "--sink-tokens is 3; it must be 1 or 2"),
            (["--text", "BOOK", "--out", "m", "--model", "tiny-random", "--layers", "2"],
             "--layers is for random weights"),
            (["--text", "BOOK", "--out", "m", "--model", "no/such.gguf"], "no/such.gguf"),
            (["--text", "BOOK", "--out", "m", "--model", "tiny-random", "--context", "5000"],
             "--context is 5000; the model was trained for 4096"),
            (["--text", "BOOK", "--out", "m", "--tokenizer", "no/such"], "--tokenizer no/such"),
            (["--text", "BOOK", "--out", "m", "--tokenizer", "FOLDER"], "tokenizer.json"),
            (["--text", "BOOK", "--out", "m", "--tokenizer", "x", "--vocab-size", "300"],
             "--vocab-size"),
            (["--text", "BOOK", "--out", "m", "--vocab-size", "256"], "from 257"),
            (["--text", "BOOK", "--out", "m", "--family", "mamba"], "gpt_neox or llama"),
            (["--text", "BOOK", "--out", "m", "--width", "100", "--heads", "3"], "--width is 100"),
            (["--text", "BOOK", "--out", "m", "--heads", "0"], "--heads is 0"),
            (["--text", "BOOK", "--out", "m", "--kv-heads", "2"], "--kv-heads is 2"),
            (["--text", "BOOK", "--out", "m", "--context", "1"], "--context is 1"),
            (["--text", "BOOK", "--out", "m", "--batch", "0"], "--batch is 0"),
            (["--text", "BOOK", "--out", "m", "--micro-batch", "3"], "a divisor of batch"),
            (["--text", "BOOK", "--out", "m", "--chunk", "7"], "--chunk is 7; it must be"),
            (["--text", "BOOK", "--out", "m", "--steps", "0"], "--steps is 0"),
            (["--text", "BOOK", "--out", "m", "--steps", "many"], "--steps"),
            (["--text", "BOOK", "--out", "m", "--lr", ".nan"], "--lr is nan"),
            (["--text", "BOOK", "--out", "m", "--lr", "0"], "--lr is 0.0; it must be above 0"),
            (["--text", "BOOK", "--out", "m", "--clip", "0"], "--clip"),
            (["--text", "BOOK", "--out", "m", "--lr-end", "2"], "--lr-end is 2.0"),
            (["--text", "BOOK", "--out", "m", "--weight-decay", "-1"], "--weight-decay is -1.0"),
            (["--text", "BOOK", "--out", "m", "--warmup", ".nan"], "--warmup is nan"),
            (["--text", "BOOK", "--out", "m", "--dtype", "int8"], "--dtype is 'int8'"),
            (["--text", "BOOK", "--out", "m", "--seed", "-1"], "--seed is -1"),
            (["--text", "BOOK", "--out", "m", "--checkpoint-every", "0"], "--checkpoint-every"),
            (["--text", "BOOK", "--out", "m", "--validate-every", "0"], "--validate-every"),
            (["--text", "BOOK", "--out", "m", "--plot", "m.doc"], "--plot m.doc"),
            (["--text", "BOOK", "--out", "m", "--mesh", "model=2"], "over data alone"),
            (["--text", "BOOK", "--out", "m", "--mesh", "data=3"], "it must divide them"),
            (["--text", "BOOK", "--out", "m", "--mesh", "two"], "--mesh is 'two'"),
            (["--text", "BOOK", "--out", "m", "--policy", "none"], "policy 'none' is unknown"),
            (["--text", "BOOK", "--out", "m", "--policy.window", "3"], "window"),
            (["--text", "BOOK", "--out", "m", "--policy", "window", "--policy.window", "0"],
             "--policy.window is 0"),
            (["--text", "BOOK", "--out", "m", "--policy", "recompute"], "--policy recompute"),
            (["--text", "BOOK", "--out", "m", "--policy", "snapkv"], "give --chunk"),
            (["--text", "BOOK", "--out", "m", "--policy", "kvzip", "--chunk", "8"], "prompt twice"),
            (["--text", "BOOK", "--out", "m", "--config", "no.yaml"], "no.yaml"),
        ],
    )  # fmt: skip
    def test_wrong_input_is_one_line(self, words, said, tmp_path, book, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty.txt").touch()
        (tmp_path / "blank.txt").write_text(" \n\t")
        (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
        (tmp_path / "short.txt").write_text("Too short.")
        (tmp_path / "short.checkpoints").write_text("no folder")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "precious").write_text("kept")
        places = {"BOOK": book, "EMPTY": "empty.txt", "BLANK": "blank.txt", "BYTES": "bytes.txt",
                  "SHORT": "short.txt", "FOLDER": "folder"}  # fmt: skip
        small = ("--vocab-size", "280", "--context", "16")
        words = [str(places.get(word, word)) for word in words]
        if not {"--tokenizer", "--model", "--vocab-size"} & set(words):
            words = [*small[:2], *words]
        assert said in fails(capsys, *small[2:], *words)
        assert not (tmp_path / "m").exists() and not list(tmp_path.glob("m.*"))
        assert (tmp_path / "folder" / "precious").read_text() == "kept"

    @pytest.mark.parametrize("name", ["5m", "20m", "pythia-160m"])
    def test_configs_are_what_they_say(self, name, tmp_path):
        words = ["--config", str(ROOT / "configs" / "train" / f"{name}.yaml")]
        words += ["--text", "t.txt", "--out", str(tmp_path / "m"), "--lr", "0.5"]
        options, _ = parse_options(words)
        assert options.recipe.lr == 0.5
        tokens = {"5m": 2046, "20m": 8190, "pythia-160m": 50277}[name]
        config = options.source.shape.config(tokens, options.recipe.context, "vanilla")
        count = sum(np.prod(x) for x in jax.tree.leaves(
            jaxkv.models.config.parameter_shapes(config), is_leaf=lambda x: isinstance(x, tuple)
            and all(isinstance(n, int) for n in x)))  # fmt: skip
        assert count / 1e6 == pytest.approx({"5m": 5.0, "20m": 20.5, "pythia-160m": 162.3}[name],
                                            rel=0.01)  # fmt: skip
        if name == "pythia-160m":
            assert config == jaxkv.named_config("pythia-160m")

    def test_states_lie_beside_a_folder_that_is_named_with_a_slash(self, tmp_path):
        options, _ = parse_options(["--text", "t.txt", "--out", f"{tmp_path}/m/"])
        assert options.out == str(tmp_path / "m")

    def test_help_teaches(self, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["--help"])
        assert ended.value.code == 0
        out = capsys.readouterr().out
        assert "examples:" in out and "zero-sink" in out and "%" not in out.split("examples:")[0]
