# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One answer, or one batch of them, from prompts or from a kept cache."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jaxkv.convert.model import Model
from jaxkv.decode.options import Options
from jaxkv.errors import InputError
from jaxkv.generate.api import Generation, Session, answer, prompt_ids
from jaxkv.generate.chat import next_turn
from jaxkv.generate.saved import load_with_extras, save_cache
from jaxkv.generate.state import State


def answer_once(options: Options, model: Model, load_s: float) -> Generation:
    """Answers the prompts, streaming the text of a single one to stdout."""
    if options.load_cache:
        session, ids = _resume(options, model, load_s)
    else:
        ids = [
            prompt_ids(model, prompt, chat=options.chat, answer_prefix=options.answer_prefix)
            for prompt in options.prompts
        ]
        longest = max(map(len, ids))
        session = Session.begin(model, options.settings, len(ids), longest, load_s=load_s)
    if any(ids):
        with prefill_progress() as progress:
            session.feed(ids, progress)
    alone = len(ids) == 1 and not options.json

    def show(row: int, text: str) -> None:
        del row
        print(text, end="", flush=True)

    generation = answer(session, [len(row) for row in ids], show if alone else None)
    if not options.json:
        if alone:
            print()
        else:
            for index, text in enumerate(generation.texts):
                print(f"--- {index + 1}\n{text}")
    if options.save_cache:
        _save(options.save_cache, session, model)
    return generation


@contextlib.contextmanager
def prefill_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr for prompts that take more than one chunk."""
    from jaxkv.convert.progress import bars

    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with bars() as draw:
        yield lambda done, total: draw("prompt", done, total)


def _save(path: str, session: Session, model: Model) -> None:
    state = session.state
    extras = {
        "logits": state.logits,
        "keys": jax.random.key_data(state.keys),
        "done": state.done,
    }
    save_cache(path, state.cache, session.settings.policy, model=model.fingerprint, extras=extras)


def _resume(options: Options, model: Model, load_s: float) -> tuple[Session, list[list[int]]]:
    """The session of a kept cache, and what is fed to it first."""
    path = options.load_cache or ""
    cache, policy, extras = load_with_extras(path, options.policy, model=model.fingerprint)
    batch = cache.geometry.batch_size
    if options.prompts and len(options.prompts) != batch:
        raise InputError(
            f"--load-cache {path} holds {batch} streams and there are {len(options.prompts)} "
            "prompts; give one for each, or none to go on where they stopped"
        )
    missing = [name for name in ("logits", "keys", "done") if name not in extras]
    if missing:
        raise InputError(f"--load-cache {path} was not made by --save-cache: no {missing[0]}")
    done = np.asarray(extras["done"])
    chat = model.tokenizer.chat_template is not None if options.chat is None else options.chat
    ids = [
        next_turn(
            model.tokenizer, prompt, chat=chat, ended=bool(done[row]),
            answer_prefix=options.answer_prefix,
        )
        for row, prompt in enumerate(options.prompts)
    ] or [[] for _ in range(batch)]  # fmt: skip
    keys = jax.random.wrap_key_data(extras["keys"])
    state = State(cache=cache, logits=extras["logits"], keys=keys, done=extras["done"])
    settings = dataclasses.replace(options.settings, policy=policy)
    longest = max(map(len, ids))
    return Session.begin(model, settings, batch, longest, state, load_s), ids
