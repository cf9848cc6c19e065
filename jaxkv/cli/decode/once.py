# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""One answer, or one batch of them, from prompts or from a kept cache."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxkv.checkpoints.model import Model
from jaxkv.cli.decode.options import Options
from jaxkv.core.errors import InputError, visible
from jaxkv.core.hosts import is_first
from jaxkv.core.settings import flags_named
from jaxkv.generate.api import Generation, answer
from jaxkv.generate.prompts import message_ids, prompt_ids
from jaxkv.generate.saved import load_with_extras, save_cache
from jaxkv.generate.session import Session
from jaxkv.generate.state import State, gathered, row_keys
from jaxkv.text.chat import next_turn


def answer_once(options: Options, model: Model, load_s: float) -> Generation:
    """Answers the prompts, streaming the text of a single one to stdout."""
    if options.load_cache:
        session = resume(options, model, load_s)
        ids = _next_turns(options, session)
    else:
        prefix = options.answer_prefix
        how: dict[str, Any] = {"chat": options.chat, "answer_prefix": prefix}
        ids = [prompt_ids(model, text, system=options.system, **how) for text in options.prompts]
        if options.messages:
            ids = [message_ids(model, options.messages, prefix)]
        longest = max(map(len, ids))
        session = Session.begin(model, options.settings, len(ids), longest, load_s=load_s)
    if any(ids):
        with prefill_progress() as progress:
            session.feed(ids, progress)
    alone = len(ids) == 1 and not options.json

    shown = (lambda row, text: show(text)) if alone else None
    generation = answer(session, [len(row) for row in ids], shown)
    if not options.json:
        if alone:
            show("\n")
        else:
            for index, text in enumerate(generation.texts):
                show(f"--- {index + 1}\n{text}\n")
    if options.save_cache:
        keep(options.save_cache, session)
    return generation


def show(text: str) -> None:
    """A part of an answer on stdout: as it is to a pipe or a file, harmless to a terminal."""
    if is_first():
        print(visible(text, sys.stdout), end="", flush=True)


@contextlib.contextmanager
def prefill_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr for prompts that take more than one chunk."""
    from jaxkv.core.progress import bars

    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with bars() as draw:
        yield lambda done, total: draw("prompt", done, total)


def keep(path: str, session: Session) -> None:
    """Writes a session to a folder, whole or not at all; `resume` goes on from it."""
    model = session.model
    state = gathered(model.config, session.state, session.rows)
    extras = {
        "logits": state.logits,
        "keys": jax.random.key_data(state.keys),
        "done": jnp.asarray(session.closed),
    }
    if not is_first():
        return
    save_cache(path, state.cache, session.settings.policy, model=model.fingerprint, extras=extras)


def resume(options: Options, model: Model, load_s: float) -> Session:
    """The session that `keep` wrote.

    Raises:
      InputError: it is missing, damaged, or was made for other settings than those given now.
    """
    path, settings = options.load_cache or "", options.settings
    with flags_named(None, "--load-cache: "):
        cache, policy, extras = load_with_extras(path, options.policy, model=model.fingerprint)
    geometry = cache.geometry
    for flag, asked, made in (
        ("kv-dtype", settings.kv_dtype, geometry.dtype),
        ("max-length", settings.max_length, geometry.max_length),
    ):
        if asked not in (None, made):
            raise InputError(f"--{flag} is {asked}; --load-cache {path} was made with {made}")
    batch = geometry.batch_size
    if options.prompts and len(options.prompts) != batch:
        raise InputError(
            f"--load-cache {path} holds {batch} streams and there are {len(options.prompts)} "
            "prompts; give one for each, or none to go on where they stopped"
        )
    fresh = row_keys(settings.seed, batch)
    expected = {
        "logits": jax.ShapeDtypeStruct((batch, model.config.vocab_size), jnp.float32),
        "keys": jax.eval_shape(jax.random.key_data, fresh),
        "done": jax.ShapeDtypeStruct((batch,), jnp.bool_),
    }
    for name, shape in expected.items():
        found = extras.get(name)
        if found is None or (found.shape, found.dtype) != (shape.shape, shape.dtype):
            raise InputError(
                f"--load-cache {path} was not made by --save-cache: {name} is missing or has "
                "another shape"
            )
    keys = fresh if options.reseed else jax.random.wrap_key_data(extras["keys"])
    state = State(cache=cache, logits=extras["logits"], keys=keys, done=extras["done"])
    settings = dataclasses.replace(settings, policy=policy, max_length=None)
    return Session.begin(model, settings, batch, settings.prefill_chunk or 512, state, load_s)


def _next_turns(options: Options, session: Session) -> list[list[int]]:
    """What is fed to a session that goes on: a further turn, or nothing."""
    tokenizer, closed = session.model.tokenizer, session.closed
    if not options.prompts:
        rooms = session.rooms
        if rooms is not None and rooms.max() <= 0:
            raise InputError(f"--load-cache {options.load_cache} is full; no token fits in it")
        return [[] for _ in closed]
    chat = tokenizer.chat_template is not None if options.chat is None else options.chat
    return [
        next_turn(
            tokenizer, prompt, chat=chat, ended=bool(ended), answer_prefix=options.answer_prefix
        )
        for prompt, ended in zip(options.prompts, closed, strict=True)
    ]
