# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Text as one long array of token ids, made once and then read from disk, and samples of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxkv.cli.arguments import read_text
from jaxkv.core.checksums import file_sum
from jaxkv.core.errors import InputError
from jaxkv.core.files import home, whole_folder
from jaxkv.core.progress import Progress
from jaxkv.text import hf
from jaxkv.text.tokenizer import Tokenizer, make

END = "<|endoftext|>"  # what a tokenizer that is trained here has after a text
LEAST_VOCABULARY = 257  # every byte, and the end of a text
_PIECE = 2**20  # characters that are tokenised at once
_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Attributes:
    tokens: uint16 or uint32 [S], of all files one after the other, each with its end.
    tokenizer: whose ids they are.
    key: tells one text and tokenizer from another.
    """

    tokens: np.ndarray
    tokenizer: Tokenizer
    key: str


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Pieces of a text, each a sample of `context` tokens and the token after it.

    Attributes:
      tokens: of the text, or a part of it.
      first: ids before every sample; they count as tokens of it.
      context: T.
    """

    tokens: np.ndarray
    first: tuple[int, ...]
    context: int

    @property
    def needs(self) -> int:
        """Tokens of the text that a sample takes."""
        return self.context + 1 - len(self.first)

    @property
    def apart(self) -> int:
        """Tokens of the text from a sample to the next, so that each is predicted once."""
        return self.context + 1 - max(len(self.first), 1)

    @property
    def count(self) -> int:
        """How many samples there are."""
        return max((len(self.tokens) - self.needs) // self.apart + 1, 0)

    @property
    def skip(self) -> int:
        """First targets that are no text."""
        return max(len(self.first) - 1, 0)

    def at(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets of samples that begin there, int32 [B, T] each."""
        rows = np.stack(
            [np.append(self.first, self.tokens[at : at + self.needs]) for at in starts.tolist()]
        ).astype(np.int32)
        return rows[:, :-1], rows[:, 1:]

    def batch(self, seed: int, step: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of a step: every sample once, in a drawn order, then all in another.

        Samples begin elsewhere each time. It is a function of its arguments alone.

        Args:
          seed: of the orders.
          step: from 0.
          size: B, of every step.
        """
        epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), self.count)
        chosen = zip(epochs.tolist(), places.tolist(), strict=True)
        spare = len(self.tokens) - self.needs - (self.count - 1) * self.apart
        starts = [
            _order(seed, epoch, self.count, self.apart, spare)[place] for epoch, place in chosen
        ]
        return self.at(np.asarray(starts))

    def spread(self, most: int) -> np.ndarray:
        """Where up to `most` samples begin that lie evenly over the text."""
        chosen = np.linspace(0, self.count - 1, min(most, self.count)).round().astype(np.int64)
        return np.unique(chosen) * self.apart


@functools.lru_cache(maxsize=2)  # a batch may reach from one order into the next
def _order(seed: int, epoch: int, count: int, apart: int, spare: int) -> np.ndarray:
    """Where samples begin, in an order, int64 [count]."""
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(count) * apart + rng.integers(spare + 1)


def split(
    text: Text, first: tuple[int, ...], context: int, share: float
) -> tuple[Samples, Samples]:
    """What is trained on, and the share at the end that is held out.

    Raises:
      InputError: one of them has no room for a sample.
    """
    size = len(text.tokens)
    cut = size - int(size * share)
    both = Samples(text.tokens[:cut], first, context), Samples(text.tokens[cut:], first, context)
    for samples, what in zip(both, ("training", f"validation, a share of {share:g},"), strict=True):
        if not samples.count:
            raise InputError(
                f"--text has {size} tokens, of which {len(samples.tokens)} are for {what} and a "
                f"sample of --context {context} takes {samples.needs}; give more text, a shorter "
                "context or another --validation"
            )
    return both


def files_of(names: Sequence[str]) -> list[Path]:
    """Files, and of folders every .txt file in and below them, in a fixed order.

    Raises:
      InputError: there is no such file, or a folder holds none.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(x for x in path.rglob("*.txt") if x.is_file())
            if not inside:
                raise InputError(f"--text {name}: the folder holds no .txt file")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"--text {name}: there is no such file or folder")
    return found


def tokenised(files: Sequence[Path], by: Tokenizer | int, progress: Progress) -> Text:
    """The files' text as token ids, from the cache folder if it is there.

    Args:
      files: of UTF-8 text.
      by: a tokenizer; or the size of a vocabulary, of which one is trained on the text.
      progress: called after every file.

    Raises:
      InputError: a file cannot be read, is not UTF-8, or holds no text.
    """
    made = by.backend.to_str() + str(by.eos_ids) if isinstance(by, Tokenizer) else f"trained {by}"
    parts = [_FORMAT, hashlib.sha256(made.encode()).hexdigest(), *map(file_sum, files)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    folder = home() / "texts" / key
    if not folder.is_dir():
        with whole_folder(folder) as part:
            tokenizer = _trained(files, by, progress) if isinstance(by, int) else by
            (part / "tokenizer").mkdir()
            tokenizer.save(part / "tokenizer")
            _write(part / "tokens", files, tokenizer, progress)
    tokenizer = by if isinstance(by, Tokenizer) else hf.load(folder / "tokenizer")
    return Text(np.memmap(folder / "tokens", _dtype(tokenizer), mode="r"), tokenizer, key)


def ids_of(tokenizer: Tokenizer) -> int:
    """How many ids there are up to the highest; some of them may have no token."""
    return max(tokenizer.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if ids_of(tokenizer) <= 2**16 else np.uint32)


def _trained(files: Sequence[Path], size: int, progress: Progress) -> Tokenizer:
    """A byte-level BPE of GPT-2's kind, of up to `size` tokens."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, pre_tokenizers, trainers

    progress("training a tokenizer", 0, 1)
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    engine.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    engine.train_from_iterator((piece for file in files for piece in _pieces(file)), trainer)
    progress("training a tokenizer", 1, 1)
    return make(engine, eos_ids=[engine.token_to_id(END)], special_tokens={"eos_token": END})


def _write(path: Path, files: Sequence[Path], tokenizer: Tokenizer, progress: Progress) -> None:
    """Ids of every file, and its end if the tokenizer has one; many pieces at once."""
    dtype, end, threads = _dtype(tokenizer), tokenizer.eos_ids[:1], os.cpu_count() or 1
    with open(path, "wb") as out, ThreadPoolExecutor(threads) as pool:
        for done, file in enumerate(files):
            progress("tokenising", done, len(files))
            pieces = _pieces(file)
            while some := list(itertools.islice(pieces, threads)):
                for ids in pool.map(tokenizer.encode, some):
                    out.write(np.asarray(ids, dtype).tobytes())
            out.write(np.asarray(end, dtype).tobytes())
    progress("tokenising", len(files), len(files))


def _pieces(file: Path) -> Iterator[str]:
    """A text in parts that end where a line does, but for lines that are longer."""
    text, begin = read_text("--text", str(file)), 0
    while begin < len(text):
        end = begin + _PIECE
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or end
        yield text[begin:end]
        begin = end
