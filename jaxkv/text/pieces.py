# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenizer engines from bare vocabularies: byte-level BPE, and SentencePiece's pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from jaxkv.core.errors import InputError

if TYPE_CHECKING:
    import tokenizers

# SentencePiece's kinds of pieces, which GGUF has taken over.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = (
    _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LARGE, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# Words end where small letters turn large.
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LARGE}*{_SMALL}+SHORT|[^\r\n\p{{L}}\p{{N}}]?{_LARGE}+{_SMALL}*SHORT"
    r"|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is split before merging: GPT-2's own way, the same with single digits, or a pattern.
BYTE_LEVEL_SPLITS: Mapping[str, str | None] = MappingProxyType(
    {
        "gpt2": None,
        "digits": None,
        "falcon": None,
        "llama3": _WORDS.replace("DIGITS", "{1,3}"),
        "dbrx": _WORDS.replace("DIGITS", "{1,3}"),
        "qwen2": _WORDS.replace("DIGITS", ""),
        "gpt4o": _CASED.replace("SHORT", f"{_SHORT}?").replace("DIGITS", "{1,3}"),
        "tekken": _CASED.replace("SHORT", "").replace("DIGITS", ""),
    }
)


_WHOLE = ("llama3", "tekken")  # a word that is a token is not made of others first


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A SentencePiece vocabulary; the place in the list is the id."""

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]


def byte_level(
    tokens: Sequence[str], merges: Sequence[tuple[str, ...]], kinds: Sequence[int], split: str
) -> tokenizers.Tokenizer:
    """GPT-2's kind of BPE.

    Args:
      tokens: in the byte-level alphabet; the place is the id.
      merges: pairs, the first merged first.
      kinds: how each token is used.
      split: a name of `BYTE_LEVEL_SPLITS`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pattern = BYTE_LEVEL_SPLITS[split]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    first = None
    if split == "digits":
        first = pre_tokenizers.Digits(individual_digits=True)
    elif pattern is not None:
        first = pre_tokenizers.Split(Regex(pattern), "isolated")
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(_bpe(models, vocab, merges, ignore_merges=split in _WHOLE))
    if split == "qwen2":
        backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
    parts = [level] if first is None else [first, level]
    if split == "falcon":
        first, last = pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.Digits(False)
        parts = [first, level, last, pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    _add(backend, tokens, kinds)
    return backend


def sentence_pieces(
    pieces: Pieces,
    *,
    add_prefix: bool = True,
    normalizer_steps: Sequence = (),
    swallowing: Container[str] = (),
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE, with bytes for what has no piece.

    Args:
      pieces: the vocabulary.
      add_prefix: whether a space is put before the text.
      normalizer_steps: engine normalizers to run on the text first.
      swallowing: special tokens that take the white space behind them.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    kinds = zip(pieces.texts, pieces.kinds, strict=True)
    unknown = next((text for text, kind in kinds if kind == UNKNOWN), None)
    ids = {text: i for i, text in enumerate(pieces.texts)}
    options = {"unk_token": unknown, "fuse_unk": True, "byte_fallback": BYTE in pieces.kinds}
    backend = Tokenizer(_bpe(models, ids, _merges(pieces), **options))
    steps = [*normalizer_steps, *([normalizers.Prepend("▁")] if add_prefix else [])]
    steps.append(normalizers.Replace(" ", "▁"))
    backend.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    undo += [decoders.Strip(" ", 1, 0)] if add_prefix else []
    backend.decoder = decoders.Sequence(undo)  # type: ignore[assignment]
    _add(backend, pieces.texts, pieces.kinds, swallowing)
    return backend


def _bpe(models, vocab: dict[str, int], merges: Sequence[tuple[str, ...]], **options):
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocab.keys():
            raise InputError(f"the tokenizer's merge {' '.join(merge)!r:.80} has unknown tokens")
    return models.BPE(vocab=vocab, merges=list(merges), **options)


def _merges(pieces: Pieces) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the highest score first.

    SentencePiece merges whichever neighbours make the best piece, so a pair ranks as its result.
    """
    usable = {
        text: score
        for text, score, kind in zip(pieces.texts, pieces.scores, pieces.kinds, strict=True)
        if kind in (NORMAL, USER_DEFINED)
    }
    found = [
        (-score, text, cut)
        for text, score in usable.items()
        for cut in range(1, len(text))
        if text[:cut] in usable and text[cut:] in usable
    ]
    place = {text: i for i, text in enumerate(pieces.texts)}
    found.sort(key=lambda item: (item[0], place[item[1]], item[2]))
    return [(text[:cut], text[cut:]) for _, text, cut in found]


def _add(
    backend: tokenizers.Tokenizer,
    tokens: Sequence[str],
    kinds: Sequence[int],
    swallowing: Container[str] = (),
) -> None:
    """Tells the engine which tokens are never made of, nor broken into, others."""
    from tokenizers import AddedToken

    added = [(t, kind) for t, kind in zip(tokens, kinds, strict=True) if kind in (2, 3, 4) and t]
    backend.add_special_tokens(
        [
            AddedToken(text, normalized=False, rstrip=text in swallowing)
            for text, kind in added
            if kind != USER_DEFINED
        ]
    )
    backend.add_tokens(
        [AddedToken(text, normalized=False) for text, kind in added if kind == USER_DEFINED]
    )
