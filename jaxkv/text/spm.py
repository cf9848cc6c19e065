# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""A SentencePiece `.model` file -> a tokenizer engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jaxkv.core.errors import InputError
from jaxkv.core.optional import require
from jaxkv.core.reading import read_bytes
from jaxkv.text.engine import MOST_ENGINE, refusing
from jaxkv.text.pieces import Pieces, sentence_pieces
from jaxkv.text.tokenizer import Tokenizer, make

if TYPE_CHECKING:
    import tokenizers

_BPE = 2


def load(path: Path) -> Tokenizer:
    """A tokenizer from the file alone, with its own bos and eos and no chat template."""
    engine = backend(path)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    special = {role: text for role, text in special.items() if engine.token_to_id(text) is not None}
    bos = engine.token_to_id("<s>")
    return make(
        engine,
        bos_ids=() if bos is None else (bos,),
        eos_ids=(engine.token_to_id("</s>"),),
        special_tokens=special,
    )


def backend(path: Path) -> tokenizers.Tokenizer:
    """The engine that splits text as the `sentencepiece` library does."""
    require("sentencepiece", "sentencepiece", str(path))
    from sentencepiece import sentencepiece_model_pb2 as messages
    from tokenizers import Regex, normalizers

    proto = messages.ModelProto()  # type: ignore[attr-defined]
    data = read_bytes(path, MOST_ENGINE)
    with refusing(f"{path} cannot be read as a SentencePiece model"):
        proto.ParseFromString(data)
    kind, rules = proto.trainer_spec.model_type, proto.normalizer_spec
    if not proto.pieces or kind != _BPE:
        raise InputError(f"{path} is a SentencePiece model of kind {kind}; supported: {_BPE} (bpe)")
    steps: list = []
    if rules.precompiled_charsmap:
        with refusing(f"the normalizer of {path} cannot be used"):
            steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    pieces = Pieces(
        [piece.piece for piece in proto.pieces],
        [piece.score for piece in proto.pieces],
        [piece.type for piece in proto.pieces],
    )
    return sentence_pieces(pieces, add_prefix=rules.add_dummy_prefix, normalizer_steps=steps)
