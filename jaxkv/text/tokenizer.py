# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, the same whatever file the vocabulary came from.

Every source is turned into one engine, a `tokenizers.Tokenizer`; the rest of the library sees only
this class.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

from jaxkv.core.errors import InputError
from jaxkv.text.engine import refusing
from jaxkv.text.stream import TextStream
from jaxkv.text.template import render

if TYPE_CHECKING:
    import tokenizers

# What closes a turn in the common templates, whether or not the checkpoint lists it as an end.
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>")
# What opens one, or stands around the name of who speaks.
_START_OF_TURN = (
    "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<|user|>",
    "<|assistant|>", "<|system|>",
)  # fmt: skip
_SPEAKING = ("bos_token", "eos_token", "pad_token", "sep_token", "cls_token", "mask_token")


class NoEngine:
    """Stands where a model came without an engine: whoever needs text is told so in one line."""

    def __init__(self, reason: str):
        self._reason = reason

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):  # Python asks for such by itself
            raise AttributeError(name)
        raise InputError(
            f"{self._reason}; give token ids, or another model's tokenizer (tokenizer, --tokenizer)"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Attributes:
    backend: the engine; it holds no special tokens to add by itself.
    bos_ids: ids that the model expects before a raw prompt. A chat template writes its own.
    eos_ids: every id that ends an answer.
    chat_template: Jinja source, or None.
    special_tokens: what templates know as `bos_token`, `eos_token` and so on.
    """

    backend: tokenizers.Tokenizer
    bos_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def missing(self) -> bool:
        """Whether there is none, and ids are all that goes in and comes out."""
        return isinstance(self.backend, NoEngine)

    def require(self) -> None:
        """Before the work, where text is needed.

        Raises:
          InputError: there is no tokenizer.
        """
        _ = self.backend.encode

    @property
    def vocab_size(self) -> int:
        """How many tokens there are; a model may have more rows than that."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text, with nothing put before or after it.

        Args:
          text: any text.
          special: whether the spelling of a special token becomes that token. Right for a rendered
            chat, wrong for text that a stranger wrote.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text is not valid Unicode: {error.reason} at {error.start}"
            ) from None
        with refusing("the tokenizer cannot read this text"):
            engine = self.backend if special else self._plain
            return engine.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[SupportsIndex], skip_special: bool = True) -> str:
        """The text of token ids; ids beyond the vocabulary have none."""
        with refusing("the tokenizer has no text for these ids"):
            return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def stream(self, skip_special: bool = True) -> TextStream:
        """A decoder that takes ids as they come."""
        return TextStream(self, skip_special)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        continue_text: str = "",
    ) -> str:
        """A conversation as the model was trained to see it.

        Args:
          messages: mappings with `role` and `content`.
          add_generation_prompt: whether the assistant's turn is opened at the end.
          continue_text: how its answer starts.
        """
        self.require()
        if self.chat_template is None:
            raise InputError("the model has no chat template: give a raw prompt")
        variables = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            **self.special_tokens,
        }
        return render(self.chat_template, variables) + continue_text

    def save(self, folder: Path) -> None:
        """Writes the files of a Hugging Face tokenizer; `hf.load` reads them back."""
        _write_json(folder / "generation_config.json", {"eos_token_id": list(self.eos_ids)})
        if self.missing:
            return
        config = {
            "add_bos_token": bool(self.bos_ids),
            "jaxkv_bos_ids": list(self.bos_ids),
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self.special_tokens,
        }
        # Not by the engine's own `save`, which reports a full disk as a plain Exception.
        (folder / "tokenizer.json").write_text(self._with_bos().to_str(), encoding="utf-8")
        _write_json(folder / "tokenizer_config.json", config)
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(
                self.chat_template, encoding="utf-8", newline=""
            )

    def _with_bos(self) -> tokenizers.Tokenizer:
        """The engine, which puts `bos_ids` before a text where it is asked for special tokens.

        That is where transformers looks for them.
        """
        import tokenizers

        if put_before(self.backend) == self.bos_ids:
            return self.backend
        names = [self.backend.id_to_token(i) for i in self.bos_ids]
        engine = tokenizers.Tokenizer.from_str(self.backend.to_str())
        engine.post_processor = tokenizers.processors.TemplateProcessing(  # type: ignore[assignment]
            single=[*names, "$A"],
            pair=[*names, "$A", *[f"{name}:1" for name in names], "$B:1"],
            special_tokens=list(dict.fromkeys(zip(names, self.bos_ids, strict=True))),
        )
        return engine

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    @functools.cached_property
    def decoder(self) -> dict:
        """The engine's description of how tokens become text."""
        import tokenizers

        small = tokenizers.Tokenizer(tokenizers.models.BPE())  # spares writing out the vocabulary
        if self.backend.decoder is not None:
            small.decoder = self.backend.decoder  # type: ignore[assignment]
        return json.loads(small.to_str())["decoder"] or {}

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """A copy of the engine that reads the spelling of a special token as plain text."""
        import tokenizers

        copy = tokenizers.Tokenizer.from_str(self.backend.to_str())
        copy.encode_special_tokens = True
        return copy


def without_engine(reason: str, eos_ids: Iterable[int] = ()) -> Tokenizer:
    """What a model has in the place of a tokenizer.

    Args:
      reason: why there is none, for errors.
      eos_ids: ids that end an answer.
    """
    engine: Any = NoEngine(reason)
    return Tokenizer(engine, eos_ids=tuple(dict.fromkeys(eos_ids)))


def put_before(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Ids that the engine puts before a text where it is asked for special tokens."""
    with refusing("the tokenizer cannot read a text"):
        encoding = backend.encode("a", add_special_tokens=True)
    mask = encoding.special_tokens_mask
    return tuple(encoding.ids[: mask.index(0)]) if 0 in mask else ()


def make(
    backend: tokenizers.Tokenizer,
    *,
    bos_ids: Iterable[int] = (),
    eos_ids: Iterable[int | None] = (),
    chat_template: str | None = None,
    special_tokens: Mapping[str, str] | None = None,
) -> Tokenizer:
    """A tokenizer whose `eos_ids` also hold what closes a turn in its template.

    What a token is for makes it special, whatever its file says: else answers would show the end of
    a turn, and a stranger's text could write one.
    """
    ends: list[int | None] = list(eos_ids)
    turns = [x for x in (*_END_OF_TURN, *_START_OF_TURN) if chat_template and x in chat_template]
    ends += [backend.token_to_id(token) for token in turns if token in _END_OF_TURN]
    roles = {text for role, text in (special_tokens or {}).items() if role in _SPEAKING}
    size = backend.get_vocab_size(with_added_tokens=True)
    marked = (backend.id_to_token(i) for i in ends if i is not None and 0 <= i < size)
    # An answer may also be made to end at a line feed, which stays text.
    roles |= {text for text in marked if text and text[0] + text[-1] in ("<>", "[]")}
    backend = _with_special(backend, sorted({*roles, *turns}))
    backend.no_truncation()
    backend.no_padding()
    size = backend.get_vocab_size(with_added_tokens=True)
    return Tokenizer(
        backend=backend,
        bos_ids=tuple(bos_ids),
        eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None and 0 <= i < size)),
        chat_template=chat_template,
        special_tokens=dict(special_tokens or {}),
    )


def _with_special(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> tokenizers.Tokenizer:
    """The engine, which leaves these tokens out of a text and does not read their spelling."""
    import tokenizers

    known = {x.content: x.special for x in backend.get_added_tokens_decoder().values()}
    if not all(known.get(text, True) for text in texts):  # a flag cannot be set in an engine
        table = json.loads(backend.to_str())
        for entry in table["added_tokens"]:
            entry["special"] = entry["special"] or entry["content"] in texts
        backend = tokenizers.Tokenizer.from_str(json.dumps(table))
    new = [x for x in texts if x and x not in known and backend.token_to_id(x) is not None]
    backend.add_special_tokens([tokenizers.AddedToken(text, normalized=False) for text in new])
    return backend


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
