# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures: attention maps, gates and what heads keep, time over the context."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import family_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from matplotlib.figure import Figure

from jaxkv.bench import kernels, plot
from jaxkv.bench.__main__ import main as bench
from jaxkv.calibrate.plot import draw_heads
from jaxkv.checkpoints import hf, toy
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError
from jaxkv.core.rope import Rope
from jaxkv.core.scoring import Scoring
from jaxkv.eval.__main__ import main
from jaxkv.eval.pictures import attention_maps, heads
from jaxkv.eval.pictures.attention_maps import (
    MapLayer,
    Options,
    drawn_layers,
    pieces,
    probabilities,
)
from jaxkv.eval.runner.result import Result
from jaxkv.eval.tasks.streams import streameval
from jaxkv.layers.base import Chunk
from jaxkv.policies.head_scores import GATES, SCORES, save_pattern
from jaxkv.policies.shares import save_shares

PNG, SVG = b"\x89PNG\r\n\x1a\n", b"<?xml"
TEXT = "One line of text, and then some more of it; and so on, and on, for a while. " * 20


@pytest.fixture(scope="module")
def model() -> Model:
    return toy.load()


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text"
    path.write_text(TEXT)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    main([*arguments, "--model", "tiny-random", "--json"])
    return json.loads(capsys.readouterr().out)


def results(found: Any) -> list[Result]:
    """What a report says, as `draw` takes it."""
    names = ("task", "score", "n", "by", "policy", "cache")
    return [
        Result(
            **{name: row[name] for name in names},
            details={name: value for name, value in row.items() if name not in names},
        )
        for row in (found if isinstance(found, list) else [found])
    ]


def drawn(draw: Any, *arguments: Any) -> list[Any]:
    """The axes of a drawing, those of colour bars and hidden ones left out."""
    figure = Figure(layout="constrained")
    draw(figure, *arguments)
    figure.draw_without_rendering()  # a layout without room warns, and a warning is an error
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>" and axis.axison]


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def rotated(x: np.ndarray, theta: float) -> np.ndarray:
    """[T, heads, H] at positions 0, 1, ..: dimension i goes with i + H / 2."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def numpy_maps(model: Model, ids: np.ndarray) -> list[np.ndarray]:
    """Attention of a Llama over one row of tokens, in float64: [N, T, T] for each layer."""
    config = model.config
    heads, width, group = config.num_kv_heads, config.head_dim, config.group_size
    wide = lambda x: np.asarray(x, np.float64)  # noqa: E731
    norm = lambda x, w: x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_eps) * wide(w)  # noqa: E731
    x, maps = wide(model.params["embed"])[ids], []
    for layer in model.params["layers"]:
        qkv = (norm(x, layer["attn_norm"]) @ wide(layer["wqkv"])).reshape(
            len(ids), heads, group + 2, width
        )
        q = rotated(qkv[:, :, :group].reshape(len(ids), -1, width), config.rope.theta)
        k = np.repeat(rotated(qkv[:, :, group], config.rope.theta), group, axis=1)
        v = np.repeat(qkv[:, :, group + 1], group, axis=1)
        scores = np.einsum("tnh,snh->nts", q, k) / np.sqrt(width)
        maps.append(softmax(np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)))
        out = np.einsum("nts,snh->tnh", maps[-1], v).reshape(len(ids), -1)
        x = x + out @ wide(layer["wo"])
        gate, up = np.split(norm(x, layer["mlp_norm"]) @ wide(layer["w_gate_up"]), 2, axis=-1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ wide(layer["w_down"])
    return maps


class TestAttention:
    @pytest.mark.parametrize(
        ("length", "window", "slopes", "cap"),
        [(5, None, (), None), (19, 3, (), None), (19, None, (1.0, 0.5, 0.25, 0.125), None),
         (19, 6, (), 0.7)],
    )  # fmt: skip
    def test_a_layer_of_any_kind(self, length, window, slopes, cap):
        """Windows, ALiBi, soft caps; more and fewer tokens than a head has dimensions."""
        rope = None if slopes else Rope(8)
        q, k, v = toys.qkv(2, length)
        scoring = Scoring(rope, slopes, cap)
        chunk = Chunk(q, k, v, None, scoring, decoding=False)
        found, out = jax.jit(lambda chunk: MapLayer(window).take(None, chunk))(chunk)
        expected = []
        for row in range(2):
            mine, keys = np.float64(q[row]), np.float64(k[row])
            if rope:
                mine, keys = rotated(mine, rope.theta), rotated(keys, rope.theta)
            scores = np.einsum("tnh,snh->nts", mine, np.repeat(keys, 2, axis=1)) / np.sqrt(8)
            if cap:
                scores = cap * np.tanh(scores / cap)
            apart = np.arange(length)[:, None] - np.arange(length)
            if slopes:
                scores = scores - np.array(slopes)[:, None, None] * apart
            seen = (apart >= 0) & (apart <= (length if window is None else window))
            expected.append(softmax(np.where(seen, scores, -np.inf)))
        np.testing.assert_allclose(found, np.sum(expected, axis=0), atol=1e-5)
        values = np.repeat(np.float64(v), 2, axis=2)
        np.testing.assert_allclose(out, np.einsum("bnts,bsnh->btnh", expected, values), atol=1e-5)

    def test_all_layers_against_numpy(self, model):
        ids = np.random.default_rng(0).integers(0, 512, (2, 21))
        found = list(probabilities(model.params, model.config, jnp.asarray(ids, jnp.int32)))
        expected = np.sum([numpy_maps(model, row) for row in ids], axis=0)
        assert len(found) == model.config.num_layers
        np.testing.assert_allclose(np.stack(found), expected, atol=2e-5)

    @pytest.mark.parity
    @pytest.mark.filterwarnings("default")
    # Its eager attention, which alone tells probabilities, scales ALiBi's bias; its default not.
    @pytest.mark.parametrize("name", sorted(family_models.FAMILIES.keys() - {"falcon-alibi"}))
    def test_families_against_transformers(self, tmp_path, name):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        transformers = pytest.importorskip("transformers")
        folder = family_models.write_family(tmp_path / "a", name)
        ours, ids = hf.load(folder), np.random.default_rng(0).integers(0, 320, (2, 40))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            expected = theirs(torch.tensor(ids), output_attentions=True).attentions
        found = probabilities(ours.params, ours.config, jnp.asarray(ids, jnp.int32))
        for mine, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, other.sum(0).numpy(), atol=2e-5)

    def expected(self, model):
        """[L, N, T, T], the mean over five pieces of seven tokens."""
        ids = np.array(model.tokenizer.encode(TEXT)[:35]).reshape(5, 7)
        return np.mean([numpy_maps(model, row) for row in ids], axis=0)

    def test_the_report(self, capsys, text, model, monkeypatch):
        """Every figure of it, from NumPy's maps; in several batches, the last one smaller."""
        monkeypatch.setattr(attention_maps, "TOGETHER", 16)
        report = run(
            capsys, "attention", "--text-file", text, "--tokens", "7", "--samples", "5",
            "--layers", "2,0",
        )  # fmt: skip
        maps = self.expected(model)
        late = 100 * maps[:, :, 4:]
        assert report["policy"] == {"name": "full", "queries": 0, "moments": False}
        assert report["n"] == 5 and report["tokens"] == 7
        assert report["score"] == pytest.approx(late[..., 0].mean(), rel=1e-4)
        assert report["uniform_share"] == pytest.approx(100 * (1 / 5 + 1 / 6 + 1 / 7) / 3)
        by_layer = late[..., 0].mean(axis=(1, 2))
        assert report["by"] == pytest.approx(
            {"layer 0": by_layer[0], "layer 2": by_layer[2]}, rel=1e-4
        )
        np.testing.assert_allclose(report["first_token"], late[..., 0].mean(axis=2), atol=1e-3)
        np.testing.assert_allclose(
            report["first_tokens"], late[..., :4].sum(axis=-1).mean(axis=2), atol=1e-3
        )
        assert [(one["layer"], one["head"]) for one in report["maps"]] == [(0, None), (2, None)]
        for one in report["maps"]:
            assert [len(row) for row in one["rows"]] == list(range(1, 8))
            for query, row in enumerate(one["rows"]):
                expected = maps[one["layer"], :, query, : query + 1].mean(axis=0)
                np.testing.assert_allclose(row, expected, atol=1e-3)

    def test_the_picture_shows_the_report(self, capsys, text, tmp_path, model):
        path = tmp_path / "new" / "maps.png"
        report = run(
            capsys, "attention", "--text-file", text, "--tokens", "7", "--samples", "5",
            "--heads", "3,1", "--layers", "1,2", "--plot", str(path),
        )  # fmt: skip
        assert path.read_bytes().startswith(PNG)
        expected = self.expected(model)
        for one in report["maps"]:
            for query, row in enumerate(one["rows"]):
                mine = expected[one["layer"], one["head"], query, : query + 1]
                np.testing.assert_allclose(row, mine, atol=1e-3)
        *maps, shares = drawn(attention_maps.draw, results(report))
        assert [axis.get_title() for axis in maps] == [
            f"layer {layer}, head {head}" for head in (1, 3) for layer in (1, 2)
        ]
        told = {(one["layer"], one["head"]): one["rows"] for one in report["maps"]}
        for axis, key in zip(maps, [(1, 1), (2, 1), (1, 3), (2, 3)], strict=True):
            (image,) = axis.images
            shown = np.ma.filled(image.get_array(), np.nan)
            for query, row in enumerate(told[key]):
                np.testing.assert_allclose(shown[query, : query + 1], row, atol=1e-8)
                assert np.isnan(shown[query, query + 1 :]).all()
        heights = [bar.get_height() for bar in shares.patches]
        np.testing.assert_allclose(heights, np.mean(report["first_token"], axis=1))
        dots, dashes = shares.lines
        assert sorted(dots.get_ydata()) == sorted(x for row in report["first_token"] for x in row)
        assert dots.get_xdata().tolist() == [layer for layer in range(3) for _ in range(4)]
        assert set(dashes.get_ydata()) == {report["uniform_share"]}

    def test_pieces(self, model):
        """The text in order, none of it twice, each piece with its own BOS."""
        begun = dataclasses.replace(
            model, tokenizer=dataclasses.replace(model.tokenizer, bos_ids=(7,))
        )
        made = pieces(begun, Options(TEXT, 6, 3, None, None))
        assert made.dtype == np.int32 and made[:, 0].tolist() == [7, 7, 7]
        assert made[:, 1:].reshape(-1).tolist() == model.tokenizer.encode(TEXT)[:15]
        words = "a few words only"
        some = pieces(model, Options(words, 5, 100, None, None))
        assert len(some) == len(model.tokenizer.encode(words)) // 5
        with pytest.raises(InputError, match="--tokens is 40"):
            pieces(model, Options(words, 40, 1, None, None))

    def test_the_layers_of_the_paper(self):
        assert drawn_layers(32) == (0, 1, 2, 9, 16, 23, 31)
        for count in range(1, 100):
            layers = drawn_layers(count)
            assert layers[0] == 0 and layers[-1] == count - 1
            assert len(layers) == min(count, 7)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--tokens", "4"], "from 5 to 512"),
            (["--tokens", "513"], "from 5 to 512"),
            (["--samples", "0"], "at least 1"),
            (["--layers", "1,x"], "0,1,5"),
            (["--layers", "3"], "--layers has 3; the model has 0 to 2"),
            (["--heads", "0,9"], "--heads has 9; the model has 0 to 3"),
            (["--text-file", "nowhere"], "--text-file"),
            (["--policy", "window"], "--policy is not for attention"),
            (["--policy", "full,streaming"], "--policy is not for attention"),
            (["--policy.window", "9"], "--policy is not for attention"),
            (["--max-length", "9"], "--max-length is not for attention"),
            (["--plot", "x.doc"], ".png"),
        ],
    )
    def test_wrong_input_is_one_line(self, capsys, arguments, said):
        with pytest.raises(SystemExit) as ended:
            main(["attention", "--model", "tiny-random", *arguments])
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and out == ""
        assert said in err.splitlines()[-1] and "Traceback" not in err

    @pytest.mark.real_model
    def test_a_trained_model_has_a_sink(self, smollm2):
        ids = pieces(smollm2, Options(TEXT, 16, 8, None, None))
        found = probabilities(smollm2.params, smollm2.config, jnp.asarray(ids))
        share = [float(np.asarray(x)[:, 4:, 0].mean()) / len(ids) for x in found]
        # The first layers mix neighbours; of the others, most look at token 0 above all.
        assert max(share[:2]) < 0.2 and np.mean(np.array(share[2:]) > 0.4) > 0.6


class TestHeads:
    GATES = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]
    SCORES = [[1.0, 2.0, 0.0, 1.0], [4.0, 4.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]]

    @pytest.fixture
    def listed(self, model, tmp_path) -> str:
        gates, scores = tmp_path / "gates.json", tmp_path / "scores.json"
        save_pattern(gates, GATES, np.array(self.GATES), model.config.identity, {})
        save_pattern(scores, SCORES, np.array(self.SCORES), model.config.identity, {})
        return f"duo:pattern={gates}:sinks=4:recent=12,headkv:scores={scores}:budget=32,streaming"

    def test_the_report(self, capsys, listed):
        duo, headkv, streaming = run(capsys, "heads", "--policy", listed, "--length", "200")
        assert duo["kept_tokens"] == [[200, 16], [16, 200], [200, 16]]
        assert duo["calibrated"] == {"what": "gate", "values": self.GATES}
        assert duo["score"] == pytest.approx(100 * (600 + 48) / 1200) and duo["n"] == 6
        assert duo["by"] == {"least": 8.0, "most": 100.0}
        # Of keys and values: 648 tokens of 16 dimensions in four bytes; one slot more in a ring.
        assert duo["cache"]["nominal_bytes"] == 648 * 2 * 16 * 4
        assert duo["cache"]["physical_bytes"] > 651 * 2 * 16 * 4
        pairs = np.array(self.SCORES).reshape(3, 2, 2).mean(axis=-1) / 20
        assert headkv["calibrated"]["what"] == "score"
        np.testing.assert_allclose(headkv["calibrated"]["values"], pairs)
        kept = np.array(headkv["kept_tokens"])
        # Budgets grow with scores, and are the asked on average, with room for what is decoded.
        assert (np.diff(kept.reshape(-1)[np.argsort(pairs.reshape(-1))]) >= 0).all()
        assert kept.mean() == pytest.approx(32 + 128, abs=1)
        assert "calibrated" not in streaming and streaming["kept_tokens"] == [[200, 200]] * 3

    def test_shares_of_a_table(self, capsys, model, tmp_path):
        shares = np.array([[[0.5, 1.5], [1.0, 1.0], [0.8, 1.2]]])
        table = tmp_path / "shares.json"
        save_shares(table, [0.2], shares, model.config.identity, {})
        policy = f"snapkv:budget=40:allocation=table:table={table},headkv:allocation=uniform"
        snapkv, headkv = run(capsys, "heads", "--policy", policy, "--length", "200")
        assert snapkv["calibrated"]["what"] == "share"
        np.testing.assert_allclose(snapkv["calibrated"]["values"], shares[0])
        # Of the 40 the window of 32 is in every head, and 8 are dealt out; 128 more are decoded.
        assert snapkv["kept_tokens"] == [[164, 172], [168, 168], [166, 170]]
        assert "calibrated" not in headkv and headkv["kept_tokens"] == [[200, 200]] * 3

    def test_the_picture_shows_the_report(self, capsys, listed, tmp_path):
        path = tmp_path / "new" / "heads.svg"
        report = run(capsys, "heads", "--policy", listed, "--plot", str(path))
        assert path.read_bytes().startswith(SVG)
        axes = drawn(heads.draw, results(report))
        shown = [np.asarray(axis.images[0].get_array()) for axis in axes]
        duo, headkv, streaming = report
        expected = [duo["calibrated"]["values"], headkv["calibrated"]["values"]]
        expected += [duo["kept_tokens"], headkv["kept_tokens"], streaming["kept_tokens"]]
        assert len(shown) == 5
        for mine, told in zip(shown, expected, strict=True):
            np.testing.assert_allclose(mine, told)
        assert [axis.get_title().split("\n")[0] for axis in axes] == [
            "duo", "headkv", "", "", "streaming",
        ]  # fmt: skip
        # What is kept is compared: one scale for all, up to everything.
        assert len({axis.images[0].get_clim() for axis in axes[2:]}) == 1
        assert axes[2].images[0].get_clim()[1] == 1000

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--length", "0"], "at least 1"),
            (["--policy", "recompute"], "keeps tokens and no keys"),
            (["--policy", "duo"], "pattern is not given"),
            (["--policy", "duo:pattern=nowhere"], "nowhere"),
            (["--max-length", "9"], "--max-length is not for heads"),
            (["--plot", "/"], "must end in .png"),
        ],
    )
    def test_wrong_input_is_one_line(self, capsys, arguments, said):
        with pytest.raises(SystemExit) as ended:
            main(["heads", "--model", "tiny-random", *arguments])
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and out == ""
        assert said in err.splitlines()[-1] and "Traceback" not in err


class TestBench:
    ROWS = [
        {
            "policy": {"name": name, **fields},
            "context": context,
            "step_ms": step * context,
            "cache": {"physical_bytes": size * context},
            "prefill_s": 0.1 * step * context,
            "transformers": {"step_ms": 9.0 * context, "prefill_s": 7.0 * context},
        }
        for context in (2000, 500)
        for name, fields, step, size in (
            ("full", {}, 3.0, 3_000_000),
            ("streaming", {"sinks": 4, "window": 252}, 2.0, 2_000_000),
            ("streaming", {"sinks": 4, "window": 508}, 1.0, 1_000_000),
        )
    ]

    def test_lines_are_the_rows(self):
        step, prefill, cache = drawn(plot.draw, self.ROWS)
        assert [axis.get_ylabel() for axis in (step, prefill, cache)] == [
            "step (ms)", "prefill (s)", "cache (MB)",
        ]  # fmt: skip
        names = ["full", "streaming window=252", "streaming window=508", "transformers"]
        for axis, factors in ((step, [3, 2, 1, 9]), (prefill, [0.3, 0.2, 0.1, 7])):
            assert [line.get_label() for line in axis.lines] == names
            for line, factor in zip(axis.lines, factors, strict=True):
                assert list(line.get_xdata()) == [500, 2000]
                np.testing.assert_allclose(line.get_ydata(), [500 * factor, 2000 * factor])
        for line, factor in zip(cache.lines[:3], (3, 2, 1), strict=True):
            np.testing.assert_allclose(line.get_ydata(), [500 * factor, 2000 * factor])
        assert cache.lines[3].get_label() == "transformers" and len(cache.lines[3].get_xdata()) == 0

    def test_what_was_not_measured_has_no_panel(self):
        rows = [
            {name: value for name, value in row.items() if name not in ("step_ms", "transformers")}
            for row in self.ROWS
        ]
        axes = drawn(plot.draw, rows)
        assert [axis.get_ylabel() for axis in axes] == ["prefill (s)", "cache (MB)"]
        assert all(len(axis.lines) == 3 for axis in axes)

    def test_the_command_draws_what_it_reports(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr("jaxkv.bench.measure.matvec_bandwidth", lambda: 1e9)
        path = tmp_path / "new" / "prefill.svg"
        bench(
            ["prefill", "--model", "tiny-random", "--contexts", "20,40", "--runs", "1",
             "--plot", str(path), "--json"]
        )  # fmt: skip
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert path.read_bytes().startswith(SVG)
        prefill, cache = drawn(plot.draw, rows)
        assert list(prefill.lines[0].get_ydata()) == [row["prefill_s"] for row in rows]
        sizes = [row["cache"]["physical_bytes"] / 1e6 for row in rows]
        assert list(cache.lines[0].get_ydata()) == sizes

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["decode", "--plot", "x.png"], "two lengths or more"),
            (["decode", "--contexts", "9,9", "--plot", "x.png"], "two lengths or more"),
            (["decode", "--contexts", "9,10", "--plot", "x.doc"], ".png"),
            (["stream", "--tokens", "4000", "--plot", "x.png"], "not for stream"),
            (["decode", "--ops", "decode"], "for kernels"),
        ],
    )
    def test_wrong_input_is_one_line(self, capsys, arguments, said):
        with pytest.raises(SystemExit) as ended:
            bench([*arguments, "--model", "tiny-random"])
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and out == ""
        assert said in err.splitlines()[-1] and "Traceback" not in err


def test_kernels_are_lines_of_time():
    rows = [
        {"op": op, "implementation": name, "context": slots, "us": slots / speed,
         "of_copy_bandwidth": 0.5}
        for op in ("decode", "prefill")
        for name, speed in (("xla", 100.0), ("mosaic_gpu", 400.0))
        for slots in (1024, 4096)
    ]  # fmt: skip
    refused = {"op": "decode", "implementation": "pallas", "context": 1024, "refused": "no"}
    decode, prefill = drawn(kernels.draw, [*rows, refused])
    assert [axis.get_title() for axis in (decode, prefill)] == ["time of decode", "time of prefill"]
    labels = [line.get_label() for line in decode.lines]
    assert labels == ["xla", "mosaic_gpu", "bytes / copy bandwidth"]
    assert list(decode.lines[1].get_ydata()) == [1024 / 400, 4096 / 400]
    assert [text.get_text() for text in decode.get_xticklabels()] == ["1k", "4k"]
    assert [line.get_color() for line in decode.lines] == [x.get_color() for x in prefill.lines]


def test_streams_of_several_distances_have_two_panels():
    found = [
        Result(
            "streameval", 50.0, 9, {"20 back": 75.0, "40 back": low, "lines 0-9": 1.0},
            {"name": "window", "window": window}, {},
            {"curve": {"tokens": [100, 200], "score": [50.0, 25.0]}},
        )
        for window, low in ((8, 25.0), (16, None))
    ]  # fmt: skip
    over_stream, over_distance = drawn(streameval.draw, found)
    assert list(over_stream.lines[1].get_xdata()) == [100, 200]
    one, other = over_distance.lines
    assert (list(one.get_xdata()), list(one.get_ydata())) == ([20, 40], [75.0, 25.0])
    assert other.get_label() == "window window=16" and np.isnan(other.get_ydata()[1])
    found = [dataclasses.replace(result, by={"lines 0-9": 1.0}) for result in found]
    (axis,) = drawn(streameval.draw, found)
    assert axis.get_xlabel() == "position (tokens)"


def test_a_calibration_draws_its_heads():
    values = np.array([[0.0, 0.5, 2.0], [1.0, 0.25, 0.75]])
    (axis,) = drawn(draw_heads, values, "gates", "gate")
    np.testing.assert_array_equal(axis.images[0].get_array(), values)
    assert axis.images[0].get_clim() == (0.0, 2.0)
    (axis,) = drawn(draw_heads, values / 4, "gates", "gate")
    assert axis.images[0].get_clim() == (0.0, 1.0)
