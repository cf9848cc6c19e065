# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a Hugging Face folder."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxkv.core.errors import InputError
from jaxkv.core.reading import read_bytes, read_json, read_text
from jaxkv.text import spm
from jaxkv.text.engine import MOST_ENGINE, check_added, engine_of, refusing
from jaxkv.text.template import MOST_TEMPLATE
from jaxkv.text.tokenizer import Tokenizer, make, put_before, without_engine

if TYPE_CHECKING:
    import tokenizers

_ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def load(folder: Path) -> Tokenizer:
    """Reads tokenizer.json or tokenizer.model, if one is there, and what goes with it."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        reason = f"{folder} holds neither tokenizer.json nor tokenizer.model"
        return without_engine(reason, _configured_eos_ids(folder))
    config = _json(folder / "tokenizer_config.json")
    backend = _backend(folder, config)
    special = {}
    for source in (_json(folder / "special_tokens_map.json"), config):
        special |= {role: text for role in _ROLES if (text := _text(source.get(role))) is not None}
    bos_ids = _bos_ids(folder, backend, config, special)
    return make(
        backend,
        bos_ids=bos_ids,
        eos_ids=_eos_ids(folder, backend, special),
        chat_template=_template(folder, config),
        special_tokens=special,
    )


def _backend(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if path.exists():
        backend = engine_of(read_text(path, str(path), MOST_ENGINE), str(path))
    else:
        backend = spm.backend(folder / "tokenizer.model")
    added = _added(folder, config)
    known = backend.get_added_tokens_decoder()
    for number in sorted(added):
        _add(backend, number, added[number], known)
    return backend


def _added(folder: Path, config: Mapping[str, Any]) -> dict[int, Any]:
    """Tokens that the small files add to the vocabulary, by id."""
    added: dict[int, Any] = {}
    for text, number in _json(folder / "added_tokens.json").items():
        if isinstance(number, int):
            added[number] = {"content": text}
    table = config.get("added_tokens_decoder")
    for number, entry in table.items() if isinstance(table, dict) else ():
        if re.fullmatch("[0-9]{1,12}", number) and _text(entry) is not None:
            added[int(number)] = entry if isinstance(entry, dict) else {"content": entry}
    for number, entry in added.items():
        check_added(entry["content"], number, str(folder / "tokenizer_config.json"))
    return added


def _add(backend: tokenizers.Tokenizer, number: int, entry: Any, known: Container[int]) -> None:
    from tokenizers import AddedToken

    text = _text(entry)
    if not text or backend.token_to_id(text) == number and number in known:
        return
    flags = {key: entry.get(key) is True for key in _FLAGS}
    token = AddedToken(text, **flags)
    with refusing("the tokenizer's added tokens cannot be used"):
        if entry.get("special") is True:
            backend.add_special_tokens([token])
        else:
            backend.add_tokens([token])
    if backend.token_to_id(text) != number:
        raise InputError(
            f"the tokenizer's added token {text!r:.80} has id {backend.token_to_id(text)}; "
            f"its configuration says {number}"
        )


def _bos_ids(
    folder: Path, backend: tokenizers.Tokenizer, config: Mapping[str, Any],
    special: Mapping[str, str],
) -> tuple[int, ...]:  # fmt: skip
    """What comes before a raw prompt: found by trying, or said where there is nothing to try.

    As in transformers 5: what tokenizer.json itself does counts, and no flag beside it.
    """
    ours = config.get("jaxkv_bos_ids")
    if isinstance(ours, list) and all(isinstance(i, int) for i in ours):
        return tuple(ours)
    wanted = config.get("add_bos_token")
    if isinstance(wanted, bool) and not (folder / "tokenizer.json").is_file():
        number = backend.token_to_id(special.get("bos_token", ""))
        return (number,) if wanted and number is not None else ()
    return put_before(backend)


def _eos_ids(
    folder: Path, backend: tokenizers.Tokenizer, special: Mapping[str, str]
) -> list[int | None]:
    return [*_configured_eos_ids(folder), backend.token_to_id(special.get("eos_token", ""))]


def _configured_eos_ids(folder: Path) -> list[int]:
    found: list[Any] = []
    for name in ("generation_config.json", "config.json"):
        value = _json(folder / name).get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    return [i for i in found if isinstance(i, int) and not isinstance(i, bool)]


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_bytes(path, MOST_TEMPLATE).decode("utf-8", errors="replace")
    value = _json(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(value, list):  # several, by name
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _text(value: Any) -> str | None:
    """A token is a text, or an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _json(path: Path) -> dict[str, Any]:
    """A small file that may be absent."""
    return read_json(path) if path.exists() else {}
