# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line of `python -m jaxkv.decode`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from jaxkv.cli.arguments import make_parser, parse, parse_yaml
from jaxkv.cli.devices import Devices, add_devices, check_used, devices_of
from jaxkv.cli.flags import (
    WEIGHTS,
    add_kv_dtype,
    add_max_length,
    add_model,
    add_policy,
    add_prefill_chunk,
    check_dtype,
)
from jaxkv.core.errors import InputError
from jaxkv.core.reading import MOST_TEXT, as_text, parse_json, read_bounded, read_text
from jaxkv.core.settings import flags_named
from jaxkv.generate.sampling import make_sampler
from jaxkv.generate.saved import check_target
from jaxkv.generate.session import Settings
from jaxkv.layers.base import Policy
from jaxkv.policies.registry import POLICIES, fields_of, make_policy

COMMAND = "jaxkv.decode"
# What a message may start with that is a flag, spelt the same.
_FLAGS = (
    "max-new-tokens", "prefill-chunk", "max-length", "kv-dtype", "temperature", "top-k", "top-p",
    "system",
)  # fmt: skip

_DESCRIPTION = """Answer a prompt with a KV cache that stays small.

With no --model it fetches SmolLM2-135M-Instruct once (about 95 MB) and keeps it; with no --policy
it keeps attention sinks and a window (StreamingLLM), so a stream may be endless. Text goes to
stdout as it is made, one report line to stderr.

examples:
  python -m jaxkv.decode --prompt "Why is the sky blue?"
  python -m jaxkv.decode --prompt-file book.txt --policy streaming --policy.window 508
  python -m jaxkv.decode --prompt "One" --prompt "Two" --policy full --json
  python -m jaxkv.decode --interactive
  python -m jaxkv.decode --prompt-file book.txt --save-cache book
  python -m jaxkv.decode --load-cache book --prompt "Who is the prince?"
  python -m jaxkv.decode --model tiny-random --prompt "no download" --max-new-tokens 8
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command was asked to do.

    `policy` is None when none was named, `chat` when neither --chat nor --raw was given; `reseed`
    tells whether a seed was.
    """

    model: str
    dtype: str
    weights: str | None
    prompts: tuple[str, ...]
    settings: Settings
    policy: Policy | None
    chat: bool | None
    answer_prefix: str
    system: str | None
    messages: tuple[dict[str, Any], ...]
    interactive: bool
    reseed: bool
    save_cache: str | None
    load_cache: str | None
    json: bool
    devices: Devices = Devices()
    revision: str | None = None
    tokenizer: str | None = None


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Reads the command line, and the config file it names.

    Raises:
      InputError: in one line, what is wrong and what is allowed.
    """
    parser = _parser()
    given, fields = parse(parser, sys.argv[1:] if arguments is None else arguments)
    policy = _policy(given.policy, fields)
    prompts = _prompts(given)
    messages = _messages(given.messages) if given.messages else ()
    if given.interactive and (given.json or prompts or messages):
        raise InputError("--interactive asks for its prompts; give no --prompt, file or --json")
    if messages and (prompts or given.raw or given.load_cache or given.system is not None):
        raise InputError(
            "--messages are a whole conversation; give no --prompt, --system, --raw or --load-cache"
        )
    if not (given.interactive or prompts or messages or given.load_cache):
        raise InputError(
            "there is no prompt; give --prompt TEXT, --prompt-file FILE or --interactive"
        )
    if "" in (given.stop or ()):
        raise InputError("--stop is ''; it must have at least one character")
    if given.system is not None and (given.load_cache or given.raw):
        raise InputError("--system comes before a chat's first turn; give no --load-cache or --raw")
    if given.save_cache:
        with flags_named(None, "--save-cache: "):
            check_target(given.save_cache)
    check_dtype("--weights", given.weights, WEIGHTS)
    check_used(given)
    devices = devices_of(given)
    if devices.hosts is not None and given.interactive:
        raise InputError("--interactive asks one process for its prompts; give no --hosts")
    with flags_named(_FLAGS):
        settings = Settings(
            policy=policy or make_policy("streaming"),
            sampler=make_sampler(given.temperature, given.top_k, given.top_p),
            max_new_tokens=given.max_new_tokens,
            seed=given.seed or 0,
            stop=tuple(given.stop or ()),
            prefill_chunk=given.prefill_chunk,
            max_length=given.max_length,
            kv_dtype=given.kv_dtype,
            cache_layout=devices.layout,
        )
    return Options(
        model=given.model,
        dtype=given.dtype,
        weights=given.weights,
        prompts=prompts,
        settings=settings,
        policy=policy,
        chat=True if given.chat else False if given.raw else None,
        answer_prefix=given.answer_prefix,
        system=given.system,
        messages=messages,
        interactive=given.interactive,
        reseed=given.seed is not None,
        save_cache=given.save_cache,
        load_cache=given.load_cache,
        json=given.json,
        devices=devices,
        revision=given.revision,
        tokenizer=given.tokenizer,
    )


def _policy(name: str | None, fields: dict[str, Any]) -> Policy | None:
    if name is None and not fields:
        return None
    name = name or "streaming"
    with flags_named(["policy"]), flags_named(fields_of(name), "--policy."):
        return make_policy(name, fields)


def _prompts(given: argparse.Namespace) -> tuple[str, ...]:
    prompts = [("--prompt", text) for text in given.prompt or ()]
    prompts += [(f"--prompt-file {name}", _read(name)) for name in given.prompt_file or ()]
    for origin, text in prompts:
        if not text.strip():
            raise InputError(f"{origin} is empty ({text[:20]!r}); it must hold some text")
    return tuple(text for _, text in prompts)


def _messages(name: str) -> tuple[dict[str, Any], ...]:
    """The turns of a conversation, from a JSON or YAML file."""
    where = f"--messages {name}"
    parse_text = parse_yaml if name.endswith((".yaml", ".yml")) else parse_json
    turns = parse_text(read_text(name, where), where)
    if not isinstance(turns, list) or not turns or not all(isinstance(x, dict) for x in turns):
        raise InputError(f"{where} must hold a list of turns, each with a role and a content")
    return tuple(turns)


def _read(name: str) -> str:
    where = f"--prompt-file {name}"
    if name != "-":
        return read_text(name, where, MOST_TEXT)
    return as_text(read_bounded(sys.stdin.buffer, MOST_TEXT, where), where)


def _parser() -> Any:
    parser = make_parser(COMMAND, _DESCRIPTION)
    add_model(parser.add_argument_group("model").add_argument)
    add = parser.add_argument_group("policy").add_argument
    add_policy(
        add, None, f"{', '.join(POLICIES)}, or module:Class (default: streaming)", "the policy"
    )
    add_kv_dtype(add)
    add_max_length(add, "what the prompt needs")
    text = parser.add_argument_group("text")
    add = text.add_argument
    add(
        "--prompt",
        action="append",
        type=str,
        metavar="TEXT",
        help="what to answer; several make a batch",
    )
    add(
        "--prompt-file",
        action="append",
        type=str,
        metavar="FILE",
        help="a prompt from a file; - is stdin",
    )
    form = text.add_mutually_exclusive_group()
    form.add_argument(
        "--chat", action="store_true", help="use the model's chat template (default if it has one)"
    )
    form.add_argument("--raw", action="store_true", help="continue the text as it is")
    add("--system", type=str, metavar="TEXT", help="a message before the chat, of how to answer")
    add(
        "--messages",
        type=str,
        metavar="FILE",
        help="a conversation to go on with: a JSON or YAML list of turns with role and content",
    )
    add(
        "--answer-prefix",
        type=str,
        default="",
        metavar="TEXT",
        help="start of the assistant's answer",
    )
    add(
        "--interactive",
        action="store_true",
        help="an endless chat in constant memory; Ctrl-C stops the answer, Ctrl-D ends, /help "
        "tells the rest",
    )
    add = parser.add_argument_group("sampling").add_argument
    add("--max-new-tokens", type=int, default=256, metavar="N", help="per answer (default: 256)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)")
    add("--top-k", type=int | None, metavar="K", help="draw from the K likeliest tokens")
    add(
        "--top-p",
        type=float | None,
        metavar="P",
        help="draw from the likeliest tokens that reach P",
    )
    add(
        "--seed",
        type=int | None,
        metavar="N",
        help="of the draws (default: 0, or where a kept cache stopped)",
    )
    add(
        "--stop", action="append", type=str, metavar="TEXT", help="ends the answer; may be repeated"
    )
    add = parser.add_argument_group("devices").add_argument
    add_prefill_chunk(add, "by its length, at most 512")
    add_devices(add)
    add = parser.add_argument_group("output").add_argument
    add("--save-cache", type=str, metavar="DIR", help="keep the cache after the answer")
    add(
        "--load-cache",
        type=str,
        metavar="DIR",
        help="go on from a kept cache; with no prompt, with the text where it stopped",
    )
    add("--json", action="store_true", help="one JSON object on stdout and nothing else")
    return parser
