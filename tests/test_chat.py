# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Turns one by one put into a cache what the whole conversation reads as."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, processors

from jaxkv.checkpoints import toy
from jaxkv.checkpoints.model import Model
from jaxkv.cli.decode import interactive
from jaxkv.cli.decode.options import parse_options
from jaxkv.core.errors import InputError
from jaxkv.generate.prompts import prompt_ids
from jaxkv.generate.session import Session
from jaxkv.text.chat import next_turn
from jaxkv.text.pieces import BYTE, CONTROL, NORMAL, UNKNOWN, Pieces, byte_level, sentence_pieces
from jaxkv.text.stream import byte_of_character
from jaxkv.text.tokenizer import Tokenizer, make

TOY = toy.load()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["▁", *LETTERS, *"HINST[]/?!.<|>_#0123456789'", "▁h", "▁H", "he", "ll", "llo", "▁a", "▁▁"]
MERGES = [("▁", "h"), ("▁", "H"), ("h", "e"), ("l", "l"), ("ll", "o"), ("▁", "a"), ("▁", "▁")]
MARKS = ("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def llama2(rstrip: bool = False) -> tokenizers.Tokenizer:
    """Laid out as Llama 2's: BPE with bytes for what has no piece, a space before every text."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for word in (*(f"<0x{byte:02X}>" for byte in range(256)), *WORDS):
        vocab.setdefault(word, len(vocab))
    model = models.BPE(
        vocab=vocab, merges=MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    engine = tokenizers.Tokenizer(model)
    engine.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    engine.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)])
    engine.add_special_tokens([AddedToken(x, normalized=False) for x in ("<unk>", "<s>", "</s>")])
    engine.add_special_tokens([AddedToken(x, normalized=False, rstrip=rstrip) for x in MARKS])
    engine.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return engine


def pieces(add_prefix: bool) -> tokenizers.Tokenizer:
    """As a SentencePiece model or a GGUF file gives it."""
    texts = ["<unk>", "<s>", "</s>", *MARKS, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    kinds = [UNKNOWN, *[CONTROL] * (2 + len(MARKS)), *[BYTE] * 256, *[NORMAL] * len(WORDS)]
    scores = [-float(i) for i in range(len(texts))]
    return sentence_pieces(Pieces(texts, scores, kinds), add_prefix=add_prefix)


def bytewise(split: str) -> tokenizers.Tokenizer:
    """GPT-2's kind, with some words to merge."""
    tokens = ["<s>", "</s>", *MARKS, *byte_of_character(), "he", "ll", "llo", "Ġh", "Ġhe", "ĊĊ"]
    merges = [("h", "e"), ("l", "l"), ("ll", "o"), ("Ġ", "h"), ("Ġ", "he"), ("Ċ", "Ċ")]
    kinds = [CONTROL] * (2 + len(MARKS)) + [NORMAL] * (len(tokens) - 2 - len(MARKS))
    return byte_level(tokens, merges, kinds, split)


ENGINES = {
    "llama 2": llama2(),
    "phi 3": llama2(rstrip=True),
    "pieces": pieces(True),
    "pieces without a space before": pieces(False),
    "gpt 2": bytewise("gpt2"),
    "llama 3": bytewise("llama3"),
}
_EACH = "{% for m in messages %}"
_ROLE = "{% if m['role'] == 'user' %}"
_OPEN = "{% if add_generation_prompt %}"
TEMPLATES = {
    "llama 2": _EACH
    + _ROLE
    + "{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    + "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}",
    "mistral": "{{ bos_token }}"
    + _EACH
    + _ROLE
    + "{{ '[INST] ' + m['content'] + '[/INST]' }}"
    + "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
    "chatml": _EACH
    + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    + _OPEN
    + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "phi 3": _EACH
    + "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    + _OPEN
    + "{{ '<|assistant|>\n' }}{% endif %}",
    "no ends": _EACH
    + "{{ '### ' + m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
    + _OPEN
    + "{{ '### assistant\n' }}{% endif %}",
}


def tokenizer_of(engine: str, template: str) -> Tokenizer:
    """A tokenizer with its own bos and eos."""
    backend = tokenizers.Tokenizer.from_str(ENGINES[engine].to_str())
    return make(
        backend,
        bos_ids=[backend.token_to_id("<s>")],
        eos_ids=[backend.token_to_id("</s>")],
        chat_template=TEMPLATES[template],
        special_tokens=SPECIAL,
    )


ALL = {(e, t): tokenizer_of(e, t) for e in ENGINES for t in TEMPLATES}
said = st.text(st.sampled_from(LETTERS + "h e.?\n0'"), min_size=1, max_size=12).map(str.strip)
# An answer ends with what no tokenizer here joins to the turn after it.
turns = st.lists(
    st.tuples(said.filter(bool), said.map(lambda text: text + ".")), min_size=2, max_size=4
)


@pytest.mark.parametrize(("engine", "template"), ALL)
@settings(max_examples=25)
@given(turns=turns)
def test_turns_are_the_whole_conversation(engine: str, template: str, turns: list) -> None:
    tokenizer = ALL[engine, template]
    model = dataclasses.replace(TOY, tokenizer=tokenizer)
    cached = prompt_ids(model, turns[0][0])
    messages = [{"role": "user", "content": turns[0][0]}]
    for (_, answer), (question, _) in zip(turns, turns[1:], strict=False):
        messages += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": question},
        ]
        whole = tokenizer.encode(tokenizer.render(messages), special=True)
        new = next_turn(tokenizer, question, chat=True, ended=False)
        # An answer that was cut: before it is what was fed, behind it what is fed now.
        assert whole[: len(cached)] == cached and whole[len(whole) - len(new) :] == new
        between = whole[len(cached) : len(whole) - len(new)]
        assert tokenizer.decode(between).strip() == answer
        # One that ended by itself holds its end already, and is closed once.
        closed = next_turn(tokenizer, question, chat=True, ended=True)
        ends = sum(i in tokenizer.eos_ids for i in new)
        assert new[len(new) - len(closed) :] == closed
        assert sum(i in tokenizer.eos_ids for i in closed) == max(ends - 1, 0)
        cached = whole


@pytest.mark.parametrize("engine", ENGINES)
def test_a_raw_text_goes_on_in_the_middle(engine: str) -> None:
    tokenizer = ALL[engine, "no ends"]
    plain = tokenizer.encode("a hello")
    assert next_turn(tokenizer, " hello", chat=False, ended=False) == plain[1:]
    names = [
        tokenizer.backend.id_to_token(i)
        for i in next_turn(tokenizer, "llo", chat=False, ended=False)
    ]
    assert names == ["llo"]


def test_a_template_that_changes_answers_is_refused() -> None:
    loud = dataclasses.replace(
        ALL["gpt 2", "chatml"], chat_template=_EACH + "{{ m['content'] | upper }}{% endfor %}"
    )
    with pytest.raises(InputError, match="cannot continue a conversation"):
        next_turn(loud, "hello", chat=True, ended=False)


def test_twenty_turns_hold_the_ids_of_the_whole_conversation(monkeypatch, capsys) -> None:
    """Answers that are cut after a few tokens, by a model that says nothing but some letters."""
    tokenizer = ALL["llama 2", "llama 2"]
    vocab = tokenizer.backend.get_vocab()
    spoken = np.zeros((TOY.config.vocab_size, 1), np.float32)
    spoken[[vocab[x] for x in "bcdfgijkmnpqrstuvwxyz"]] = 1  # which are joined to nothing
    params = {**TOY.params, "embed": TOY.params["embed"] * spoken}
    model = Model(TOY.config, params, tokenizer, "toy", "toy")
    fed, answers = [], []
    feed, run = Session.feed, Session.run

    def feeding(session, prompts, progress=None):
        fed.append(list(prompts[0]))
        answers.append([])
        return feed(session, prompts, progress)

    def running(session, count):
        for new in run(session, count):
            answers[-1] += [int(i) for i in new[0] if i >= 0]
            yield new

    monkeypatch.setattr(Session, "feed", feeding)
    monkeypatch.setattr(Session, "run", running)
    asked = [f"turn {i} hello" for i in range(20)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(asked) + "\n"))
    # The template puts a space before an answer, which this model would not say by itself.
    options = parse_options(["--interactive", "--max-new-tokens", "5", "--answer-prefix", " "])
    interactive.chat(options, model, 0.0)
    assert len(fed) == 20 and all(len(answer) == 5 for answer in answers)
    messages, held = [], []
    for question, new, answer in zip(asked, fed, answers, strict=True):
        messages.append({"role": "user", "content": question})
        text = tokenizer.render(messages, continue_text=" " + tokenizer.decode(answer))
        held += [*new, *answer]
        assert held == tokenizer.encode(text, special=True)
        messages.append({"role": "assistant", "content": tokenizer.decode(answer)})


def test_a_conversation_from_a_file(tmp_path, capsys) -> None:
    from jaxkv.decode.__main__ import main

    told = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why?"},
    ]
    (tmp_path / "a.json").write_text(json.dumps(told))
    yaml = "".join(f"- {{role: {m['role']}, content: '{m['content']}'}}\n" for m in told)
    (tmp_path / "a.yaml").write_text(yaml)
    counts = []
    for name in ("a.json", "a.yaml"):
        words = ["--model", "tiny-random", "--max-new-tokens", "2", "--json"]
        main([*words, "--messages", str(tmp_path / name)])
        counts.append(json.loads(capsys.readouterr().out)["prompt_tokens"])
    tokenizer = toy.tokenizer()
    assert counts == [len(tokenizer.encode(tokenizer.render(told), special=True))] * 2
    (tmp_path / "b.json").write_text('{"role": "user"}')
    for words in (["b.json"], ["a.json", "--prompt", "x"], ["a.json", "--raw"], ["no.json"]):
        with pytest.raises(SystemExit) as end:
            main(["--messages", str(tmp_path / words[0]), *words[1:]])
        assert end.value.code == 2 and "--messages" in capsys.readouterr().err
