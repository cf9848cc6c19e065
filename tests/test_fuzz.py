# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Malformed input of every kind ends as accepted, or as one line; soon, and in little memory.

A few hundred examples of a kind, the same in every run; JAXKV_FUZZ=5000 tries so many of each.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import toys
from bending import Right, bent_bytes, bent_json
from family_models import write_family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxkv.calibrate.command import parse_options as calibrate_options
from jaxkv.checkpoints import gguf, hf, orbax, toy
from jaxkv.cli.decode.options import parse_options as decode_options
from jaxkv.core.errors import InputError
from jaxkv.eval.questions.rows import read_rows
from jaxkv.eval.runner.options import parse_options as eval_options
from jaxkv.eval.tasks.loogle import read as read_loogle
from jaxkv.generate.saved import load_cache, save_cache
from jaxkv.models.decoder import init_cache
from jaxkv.policies.head_scores import full_heads, head_scores
from jaxkv.policies.streaming import StreamingLLM
from jaxkv.text import hf as hf_tokenizer
from jaxkv.text.template import render
from jaxkv.train.command import parse_options as train_options

EXAMPLES = int(os.environ.get("JAXKV_FUZZ", "100"))
SECONDS = 10.0
MEMORY = 2**30  # bytes that all examples of a kind may add to the most that the process has held


class Kind:
    """Files that are right, which one of them is bent, and what reads them."""

    def __init__(self, make: Callable[[Path], None], file: str, read: Callable[[Path], Any]):
        self.make, self.file, self.read = make, file, read


def _hf(folder: Path) -> None:
    checkpoints.write_hf(folder)
    config = {
        **checkpoints.CONFIG, "hidden_act": "silu", "head_dim": 16, "attention_bias": False,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "eos_token_id": [2], "bos_token_id": 1, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def _gemma(folder: Path) -> None:
    write_family(folder, "gemma3")


def _sharded(folder: Path) -> None:
    checkpoints.write_hf(folder, shards=2)


def _tokenizer(folder: Path) -> None:
    toy.tokenizer().save(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"512": {"content": "<|new|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    (folder / "added_tokens.json").write_text('{"<|other|>": 513}')


def _read_tokenizer(folder: Path) -> None:
    tokenizer = hf_tokenizer.load(folder)
    tokenizer.decode(tokenizer.encode("Hello world<|im_end|>", special=True))
    tokenizer.decode([0, 5, 511, 10**6])


def _cache(folder: Path) -> None:
    policy = StreamingLLM(2, 7)
    save_cache(folder / "kept", init_cache(toys.CONFIG, policy, 1, 64), policy)


def _gates(folder: Path) -> None:
    values = {"format": "jaxkv.duo", "model": "", "gates": [[0.5, 1.0], [0.1, 0.3]]}
    values |= {"sparsity": 0.5, "full_heads": [[True, False], [False, True]]}
    (folder / "gates.json").write_text(json.dumps(values))


def _scores(folder: Path) -> None:
    table = {f"{layer}-{head}": [0.1 * head, 1.0] for layer in range(2) for head in range(4)}
    (folder / "scores.json").write_text(json.dumps(table))


def _rows(folder: Path) -> None:
    row = {"context": "c", "question": "q", "answer": ["a"], "max_new_tokens": 3, "length": 5}
    row |= {"depth": 0.5, "task": "t", "metric": "token_f1", "chat": True, "answer_prefix": "p"}
    (folder / "rows.json").write_text(json.dumps([row, row]))


def _loogle(folder: Path) -> None:
    pairs = [{"Q": "q", "A": "a", "type": "computation"}]
    record = {"input": "text", "qa_pairs": str(pairs)}
    (folder / "longdep_qa.jsonl").write_text(json.dumps(record))


def _yaml(folder: Path) -> None:
    (folder / "c.yaml").write_text(
        "prompt: &p [one, two]\nmax-new-tokens: 3\ntemperature: 0.5\nstop: *p\njson: true\n"
        "policy: {name: streaming, sinks: 2, window: 9}\nmodel: tiny-random\nseed: 7\n"
    )


def _messages(folder: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (folder / "m.json").write_text(json.dumps(turns))


SHAPE = toys.geometry()
KINDS = {
    "config.json": Kind(_hf, "config.json", hf.load),
    "config.json of Gemma": Kind(_gemma, "config.json", hf.load),
    "safetensors": Kind(_hf, "model.safetensors", hf.load),
    "an index": Kind(_sharded, "model.safetensors.index.json", hf.load),
    "generation_config.json": Kind(_hf, "generation_config.json", hf.load),
    "GGUF": Kind(
        lambda folder: checkpoints.write_gguf(folder / "m.gguf"), "m.gguf",
        lambda folder: gguf.load(folder / "m.gguf"),
    ),
    "tokenizer.json": Kind(_tokenizer, "tokenizer.json", _read_tokenizer),
    "tokenizer_config.json": Kind(_tokenizer, "tokenizer_config.json", _read_tokenizer),
    "special_tokens_map.json": Kind(_tokenizer, "special_tokens_map.json", _read_tokenizer),
    "added_tokens.json": Kind(_tokenizer, "added_tokens.json", _read_tokenizer),
    "our note": Kind(
        lambda folder: orbax.save(folder / "m", toy.load()), "m/jaxkv.json",
        lambda folder: orbax.load(folder / "m"),
    ),
    "our config.json": Kind(
        lambda folder: orbax.save(folder / "m", toy.load()), "m/config.json",
        lambda folder: orbax.load(folder / "m"),
    ),
    "a saved cache's note": Kind(_cache, "kept/cache.json", lambda f: load_cache(f / "kept")),
    "a saved cache's arrays": Kind(
        _cache, "kept/cache.safetensors", lambda f: load_cache(f / "kept")
    ),
    "gates": Kind(
        _gates, "gates.json",
        lambda f: full_heads.__wrapped__(str(f / "gates.json"), 0.5, SHAPE),  # not the kept one
    ),
    "scores": Kind(
        _scores, "scores.json", lambda f: head_scores.__wrapped__(str(f / "scores.json"), SHAPE)
    ),
    "rows": Kind(_rows, "rows.json", lambda f: read_rows(str(f / "rows.json"))),
    "LooGLE": Kind(
        _loogle, "longdep_qa.jsonl", lambda f: list(read_loogle(f / "longdep_qa.jsonl"))
    ),
    "YAML": Kind(_yaml, "c.yaml", lambda f: decode_options(["--config", str(f / "c.yaml")])),
    "messages": Kind(
        _messages, "m.json", lambda f: decode_options(["--messages", str(f / "m.json")])
    ),
}  # fmt: skip


@contextlib.contextmanager
def bounded(what: str, counts: dict[str, int]):
    """An example: accepted or refused, in time."""
    began = time.monotonic()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
        counts["accepted"] += 1
    except (InputError, OSError) as error:
        counts["refused"] += 1
        str(error).encode("utf-8", "backslashreplace")
    except SystemExit as end:  # --help
        assert end.code in (0, 2), what
    took = time.monotonic() - began
    assert took < SECONDS, f"{what} took {took:.1f} s"


@contextlib.contextmanager
def counted(what: str):
    """Counts of a kind, and the memory that all its examples took."""
    counts = {"accepted": 0, "refused": 0}
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield counts
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"fuzz: {what}: {counts}, {grown / 1e6:.0f} MB more at most")
    assert grown < MEMORY, f"{what} took {grown / 1e9:.1f} GB"
    assert counts["refused"] > 0, "nothing was bent"


quick = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("name", KINDS)
def test_a_bent_file(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    right = tmp_path / "right"
    right.mkdir()
    kind.make(right)
    kind.read(right)  # or nothing of it would be tried
    data = (right / kind.file).read_bytes()
    try:
        bent = st.one_of(bent_json(Right(json.loads(data))), bent_bytes(Right(data)))
    except ValueError:
        bent = bent_bytes(Right(data))
    with counted(name) as counts:

        @quick
        @given(data=bent)
        def check(data: bytes) -> None:
            (right / kind.file).write_bytes(data)
            with bounded(f"{name}: {data[:2000]!r}", counts):
                kind.read(right)

        check()


def test_a_bent_data_file_of_ours(tmp_path: Path) -> None:
    """Of orbax: whatever is changed in any of its files is found by their sums."""
    orbax.save(tmp_path / "m", toy.load())
    names = [p for p in (tmp_path / "m" / "params").rglob("*") if p.is_file() and p.stat().st_size]
    assert names
    with counted("orbax") as counts:

        @quick
        @given(data=st.data())
        def check(data: Any) -> None:
            path = data.draw(st.sampled_from(names))
            before = path.read_bytes()
            after = data.draw(bent_bytes(Right(before)))
            path.write_bytes(after)
            with bounded(f"{path.name}", counts):
                if after != before:
                    with pytest.raises(InputError, match="damaged or incomplete"):
                        orbax.load(tmp_path / "m")
                    raise InputError("as it should be")
            path.write_bytes(before)

        check()


_PARTS = [
    "{{ ", " }}", "{% for m in messages %}", "{% endfor %}", "{% if ", " %}", "{% endif %}",
    "m['content']", "messages", "bos_token", "loop.index", " * 10**8", " ~ ", " + 'a'", "'a' * ",
    "10**5", "range(", "99999", ")", " | tojson", " | join", " | replace('', 'aa')", "{% set x = ",
    "x", ".__class__", "raise_exception('no')", "namespace(", "{% macro f() %}", "f()", "dict(",
    "{% endmacro %}", " | center(10**8)", "[0]", "[::-1]", "strftime_now('%Y')", "\x00", "é", "\n",
]  # fmt: skip


def test_a_bent_template() -> None:
    parts = st.lists(st.sampled_from(_PARTS) | st.text(max_size=3), max_size=12).map("".join)
    said = {"messages": [{"role": "user", "content": "hello"}] * 2, "bos_token": "<s>"}
    with counted("templates") as counts:

        @quick
        @given(
            template=parts
            | bent_bytes(Right(toy._TEMPLATE.encode())).map(lambda b: b.decode("latin1"))
        )
        def check(template: str) -> None:
            with bounded(f"the template {template!r}", counts):
                render(template, said)

        check()


_WORDS = {
    "decode": (
        decode_options,
        "--model --dtype --kv-dtype --policy --policy.window --policy.sinks --policy.nonsense "
        "--policy.budget --policy.kernel --config --prompt --prompt-file --chat --raw --system "
        "--messages --answer-prefix --interactive --max-new-tokens --temperature --top-k --top-p "
        "--seed --stop --prefill-chunk --max-length --save-cache --load-cache --json --help --",
    ),
    "eval": (
        eval_options,
        "ppl passkey ruler rows streameval loogle niah --model --policy --policy.window --budgets "
        "--lengths --depths --rows --tokens --text-file --out --plot --json --seed --help --data "
        "--prefill-chunk --max-length --kv-dtype --config --rows-per-cell",
    ),
    "train": (
        train_options,
        "--text --out --model --attention --sink-tokens --tokenizer --vocab-size --family --layers "
        "--width --heads --kv-heads --context --batch --micro-batch --chunk --steps --lr --warmup "
        "--validation --dtype --remat --mesh --policy --policy.window --config --plot --seed "
        "--restart --overwrite --help",
    ),
    "calibrate": (
        calibrate_options,
        "duo headkv --model --out --plot --seed --steps --lr --policy.nonsense --policy --lengths "
        "--config --sinks --recent --text-file --batch --restart --help",
    ),
}
_VALUES = [
    "full", "streaming", "snapkv", "headkv", "full,window:window=3", "1", "0", "-1", "1e9", "10**9",
    "9" * 5000, "nan", "inf", "", " ", "/dev/zero", "/dev/null", "/", ".", "none.yaml",
    "tiny-random", "a=b", "[", "{a: 1", "[[[[", "2026-13-45", "&a [*a]", "true",
    "!!python/object:os.system x", "\udc80", "a\0b", "x" * 10_000, "float32", "int3",
    "512,1024", "1,,2", "0x10", "1_000", "٣",
    "1000000000", "100001", "12.0",
]  # fmt: skip


@pytest.mark.parametrize("command", _WORDS)
def test_a_bent_command_line(command: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    parse, words = _WORDS[command]
    word = st.sampled_from([*words.split(), *_VALUES]) | st.text(max_size=8)
    flag, value = st.sampled_from(words.split()), st.sampled_from(_VALUES) | st.text(max_size=8)
    pair = st.tuples(flag, value).map(list) | st.tuples(flag, value).map(lambda p: ["=".join(p)])
    lines = st.lists(pair | word.map(lambda x: [x]), max_size=4).map(lambda x: sum(x, []))
    begins = st.sampled_from(
        {
            "decode": [["--prompt", "a"], ["--model", "tiny-random", "--prompt", "a"]],
            "eval": [["passkey"], ["ppl"], ["rows"], ["streameval", "--out", "a.json"]],
            "calibrate": [["duo", "--out", "a.json"], ["headkv", "--out", "a.json"], ["duo"]],
            "train": [["--text", "a.txt", "--out", "a"], ["--out", "a"]],
        }[command]
    )
    lines = st.tuples(begins, lines).map(lambda x: [*x[0], *x[1]]) | lines
    with counted(f"command lines of {command}") as counts:

        @quick
        @given(line=lines)
        def check(line: list[str]) -> None:
            with (
                bounded(f"{command} {line!r:.2000}", counts),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                parse(line)

        check()
    shutil.rmtree(tmp_path, ignore_errors=True)
