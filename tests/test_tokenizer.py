# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenizers from every source, against the libraries that defined them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv.checkpoints import toy
from jaxkv.core.errors import InputError
from jaxkv.core.fields import Fields
from jaxkv.text import hf, spm
from jaxkv.text.gguf import tokenizer_from_gguf
from jaxkv.text.pieces import BYTE_LEVEL_SPLITS, byte_level
from jaxkv.text.tokenizer import Tokenizer

TEXTS = [
    "",
    "Hello world",
    "  leading  spaces\n\n\tand tabs ",
    "naïve café 日本語 текст 🙂👩‍👩‍👧 e\u0301",
    "don't I'LL x=1+2; def f(a, b):\n    return a**b\r\n\r\n",
    "1234567890 3.14 2024-01-01 ½",
    "a" * 300 + " " * 50,
    "<|im_start|>user\nhi<|im_end|>",
    "\x00\x01 \ufeff\u2581▁",
]
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"}]
TOY = toy.tokenizer()
text_with_care = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=100, deadline=None)
@given(text=text_with_care)
def test_any_text_survives_the_toy(text: str) -> None:
    assert TOY.decode(TOY.encode(text)) == text


def test_special_tokens_are_text_unless_asked_for() -> None:
    text = "a<|im_end|>b"
    assert 2 in TOY.encode(text, special=True)
    assert 2 not in TOY.encode(text)
    assert TOY.decode(TOY.encode(text)) == text
    assert TOY.decode(TOY.encode(text, special=True)) == "ab"
    assert TOY.decode(TOY.encode(text, special=True), skip_special=False) == text


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        TOY.encode("a\udc80")


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    assert TOY.decode([*TOY.encode("ab"), 10**6, 513]) == "ab"
    assert TOY.decode(np.asarray(TOY.encode("ab"), np.int32)) == "ab"


def _streamed(tokenizer: Tokenizer, ids: list[int], skip_special: bool) -> list[str]:
    stream = tokenizer.stream(skip_special)
    return [*(stream.feed([i]) for i in ids), stream.finish()]


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 520), max_size=30), skip=st.booleans())
def test_streamed_bytes_join_to_the_whole(ids: list[int], skip: bool) -> None:
    assert "".join(_streamed(TOY, ids, skip)) == TOY.decode(ids, skip)


def test_a_stream_never_shows_half_a_character() -> None:
    ids = TOY.encode("é🙂!")
    assert _streamed(TOY, ids, True) == ["", "é", "", "", "", "🙂", "!", ""]
    assert _streamed(TOY, ids[:1], True) == ["", "\ufffd"]


def test_render_is_what_transformers_renders() -> None:
    rendered = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
    assert TOY.render(CHAT, add_generation_prompt=False) == rendered
    assert TOY.render(CHAT, continue_text="Yes") == rendered + "<|im_start|>assistant\nYes"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no\nsystem') }}",
        "{% for",
        "{{ messages[0].content.__class__.__mro__[1].__subclasses__() }}",
        "{{ nothing.at.all }}",
    ],
)
def test_templates_cannot_do_harm(template: str) -> None:
    tokenizer = Tokenizer(TOY.backend, chat_template=template)
    with pytest.raises(InputError, match="chat template") as caught:
        tokenizer.render(CHAT)
    assert "\n" not in str(caught.value)


def test_no_template_no_chat() -> None:
    with pytest.raises(InputError, match="no chat template"):
        Tokenizer(TOY.backend).render(CHAT)


def _engine(folder: Path, **config) -> Tokenizer:
    TOY.save(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return hf.load(folder)


def test_small_files_of_a_folder(tmp_path: Path) -> None:
    end = {"content": "<|endoftext|>", "special": True}
    added = {"512": {"content": "<think>"}, "513": {"content": "<|new|>", "special": True}}
    # tokenizer.json adds none, and it decides.
    tokenizer = _engine(tmp_path, eos_token=end, bos_token="<|im_start|>", add_bos_token=True)
    assert tokenizer.bos_ids == () and tokenizer.eos_ids == (2, 0)
    assert tokenizer.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 99999, true]}')
    tokenizer = _engine(tmp_path / ".", added_tokens_decoder=added, add_bos_token=False)
    assert tokenizer.bos_ids == () and tokenizer.eos_ids == (2,)
    assert tokenizer.encode("<think><|new|>", special=True) == [512, 513]
    assert tokenizer.decode([512, 513]) == "<think>"
    assert tokenizer.encode("<|new|>") != [513]
    with pytest.raises(InputError, match="<x>.*has id 512.*says 600"):
        _engine(tmp_path, added_tokens_decoder={"600": {"content": "<x>"}})


def test_templates_and_bos_found_elsewhere(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(TOY.backend.to_str())
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    backend.enable_truncation(2)
    backend.save(str(tmp_path / "tokenizer.json"))
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    tokenizer = hf.load(tmp_path)
    assert tokenizer.bos_ids == (1,) and tokenizer.chat_template == "d"
    assert len(tokenizer.encode("Hello")) > 2
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer.json"):
        hf.load(tmp_path)


@pytest.mark.parametrize("split", BYTE_LEVEL_SPLITS)
def test_pre_tokenizers(split: str) -> None:
    tokens = json.loads(TOY.backend.to_str())["model"]["vocab"]
    engine = byte_level(sorted(tokens, key=tokens.get), [], [1] * 512, split)
    words = [word for word, _ in engine.pre_tokenizer.pre_tokenize_str("it's 12345\n\n x!!")]
    digits = {
        "gpt2": ["Ġ12345"],
        "digits": ["Ġ", "1", "2", "3", "4", "5"],
        "llama3": ["Ġ", "123", "45"],
        "dbrx": ["Ġ", "123", "45"],
        "gpt4o": ["Ġ", "123", "45"],
        "qwen2": ["Ġ", "1", "2", "3", "4", "5"],
        "tekken": ["Ġ", "1", "2", "3", "4", "5"],
        "falcon": ["Ġ", "123", "45"],
    }[split]
    its = {"falcon": ["it", "'", "s"], "gpt4o": ["it's"]}.get(split, ["it", "'s"])
    assert words == [*its, *digits, "ĊĊ", "Ġx", "!!"]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("gpt4o", ["foo", "Bar", "ĠDON'T", "Ġ/", "usr", "/Ċ"]),
        ("tekken", ["foo", "Bar", "ĠDON", "'T", "Ġ/", "usr", "/Ċ"]),
    ],
)
def test_words_end_where_small_letters_turn_large(split: str, expected: list[str]) -> None:
    engine = byte_level(["a"], [], [1], split)
    words = [x for x, _ in engine.pre_tokenizer.pre_tokenize_str("fooBar DON'T /usr/\n")]
    assert words == expected


@pytest.mark.parametrize("bos", [(), (1,), (1, 0)])
@pytest.mark.parametrize("baked", [False, True])
def test_what_is_written_adds_what_was_read(tmp_path: Path, bos: tuple, baked: bool) -> None:
    """Also to transformers, which looks into tokenizer.json and at no flag."""
    backend = tokenizers.Tokenizer.from_str(TOY.backend.to_str())
    if baked:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    dataclasses.replace(TOY, backend=backend, bos_ids=bos).save(tmp_path)
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode("hello").ids == [*bos, *TOY.encode("hello")]
    os.remove(tmp_path / "tokenizer_config.json")
    assert hf.load(tmp_path).bos_ids == bos


@pytest.mark.parametrize(
    ("named", "swallows"),
    [
        ({"general.architecture": "phi3"}, True),
        ({"general.name": "Phi-3 mini"}, True),
        ({"general.name": "Llama"}, False),
    ],
)
def test_white_space_behind_phi3s_special_tokens(named: dict, swallows: bool) -> None:
    """Which a GGUF has no field for."""
    tokens = ["<unk>", "<s>", "</s>", "<|end|>", "<|endoftext|>", "▁", "a", "\n"]
    kinds = np.array([2, 3, 3, 3, 3, 1, 1, 1], np.int32)
    header = {"model": "llama", "tokens": tokens, "token_type": kinds, "add_space_prefix": False}
    header["scores"] = np.zeros(len(tokens), np.float32)
    fields = {f"tokenizer.ggml.{key}": value for key, value in header.items()}
    found = tokenizer_from_gguf(Fields({**fields, **named}, "header"), 99)
    behind = [] if swallows else [7]
    assert found.encode("a<|end|>\na", special=True) == [6, 3, *behind, 6]
    assert found.encode("<|endoftext|>\na", special=True) == [4, 7, 6]


@pytest.mark.parametrize("listed", ["ordinary", "not at all"])
def test_a_role_makes_a_token_special(tmp_path: Path, listed: str) -> None:
    """Whatever its file says of it: an answer does not show it, and a text does not write it."""
    TOY.save(tmp_path)
    table = json.loads((tmp_path / "tokenizer.json").read_text())
    if listed == "ordinary":
        for entry in table["added_tokens"]:
            entry["special"] = False
    else:
        table["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    config = {"eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 13]}')
    again = hf.load(tmp_path)
    ids = TOY.encode("hello")
    assert again.eos_ids == (0, 13, 2)  # 2 closes a turn in the template
    assert again.special_ids >= {0, 1, 2} and 13 not in again.special_ids
    assert again.decode([*ids, 2, 1, 0]) == "hello"
    assert not {0, 1, 2} & {*again.encode("<|im_end|> <|im_start|> <|endoftext|>")}
    assert again.encode("<|im_end|>", special=True) == [2]


def _trained(kind: str, **options) -> bytes:
    """A SentencePiece model of this file's own words."""
    words = [line for text in (*TEXTS, Path(__file__).read_text()) for line in text.split("\n")]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([word for word in words if word and "\x00" not in word]),
        model_writer=model,
        vocab_size=400,
        model_type=kind,
        byte_fallback=True,
        character_coverage=0.98,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


LLAMA_LIKE = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.fixture(scope="module", params=["plain", "nfkc", "symbols"])
def pair(request, tmp_path_factory) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    options = {} if request.param == "nfkc" else dict(LLAMA_LIKE)
    if request.param == "symbols":
        options["user_defined_symbols"] = ["<|im_end|>"]
    path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    path.write_bytes(_trained("bpe", **options))
    return spm.load(path), sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_sentencepiece_ids(pair) -> None:
    ours, theirs = pair
    source = Path(__file__).read_text().split("\n")
    for text in [t for t in [*TEXTS, *source] if "<|" not in t and "\x00" not in t]:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), text
    assert ours.bos_ids == (theirs.bos_id(),) and ours.eos_ids == (theirs.eos_id(),)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_streamed_pieces_join_to_the_whole(pair, data: st.DataObject) -> None:
    ours, _ = pair
    bytes_too = st.one_of(st.integers(0, 410), st.integers(0, 262))
    ids, skip = data.draw(st.lists(bytes_too, max_size=30)), data.draw(st.booleans())
    assert "".join(_streamed(ours, ids, skip)) == ours.decode(ids, skip)


def test_sentencepiece_from_a_gguf_header(tmp_path: Path) -> None:
    data = _trained("bpe", **LLAMA_LIKE)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    ids = range(theirs.vocab_size())
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
        for i in ids
    ]
    header = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": np.asarray([theirs.get_score(i) for i in ids], np.float32),
        "tokenizer.ggml.token_type": np.asarray(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    ours = tokenizer_from_gguf(Fields(header, "m.gguf"), 512)
    assert ours.bos_ids == (1,) and ours.eos_ids == (2,)
    for text in TEXTS[1:-1]:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("a</s>", special=True)[-1] == 2 != ours.encode("a</s>")[-1]
    bare = tokenizer_from_gguf(Fields({**header, _PREFIX: False}, "m.gguf"), 512)
    assert bare.encode("ab") != ours.encode("ab") and bare.decode(bare.encode(" ab")) == " ab"
    ours.save(tmp_path)
    again = hf.load(tmp_path)
    assert again.encode(TEXTS[3]) == ours.encode(TEXTS[3]) and again.bos_ids == (1,)


_PREFIX = "tokenizer.ggml.add_space_prefix"


def test_damaged_sentencepiece_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(os.urandom(200) + b"\xff" * 20)
    with pytest.raises(InputError, match="SentencePiece"):
        spm.load(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(_trained("unigram"))
    with pytest.raises(InputError, match="kind 1; supported: 2"):
        spm.load(tmp_path / "tokenizer.model")


@pytest.mark.real_model
def test_the_real_tokenizer(smollm2) -> None:
    ours: Tokenizer = smollm2.tokenizer
    assert (ours.vocab_size, ours.bos_ids, ours.eos_ids) == (49152, (), (2,))
    assert ours.encode("Hello world 123") == [19556, 905, 216, 33, 34, 35]
    assert ours.encode("<|im_start|>user", special=True) == [1, 4093]
    rendered = ours.render([{"role": "user", "content": "hi"}])
    assert rendered.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert rendered.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text
        assert "".join(_streamed(ours, ours.encode(text), True)) == text


@pytest.mark.real_model
def test_ids_are_those_of_transformers(smollm2, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    smollm2.tokenizer.save(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = smollm2.tokenizer.encode(text, special=True)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert smollm2.tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    rendered = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert smollm2.tokenizer.render(CHAT) == rendered
