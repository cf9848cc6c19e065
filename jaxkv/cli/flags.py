# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Flags that several commands have, each with one name, one default and one meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxkv.core.errors import InputError

Add = Callable[..., Any]  # a parser's `add_argument`

DTYPES = ("float32", "bfloat16")
WEIGHTS = ("int8", "int4")
KV_DTYPES = (*DTYPES, *WEIGHTS)


def add_model(add: Add) -> None:
    """--model, --revision, --tokenizer, --dtype and --weights."""
    add(
        "--model",
        type=str,
        default="smollm2-135m-instruct",
        metavar="NAME",
        help="alias (smollm2-135m-instruct, tiny-random), hub id, folder, .gguf or our checkpoint",
    )
    add_origin(add)
    add(
        "--dtype",
        type=str,
        default="float32",
        metavar="TYPE",
        help="float32 or bfloat16, of the weights (default: float32)",
    )
    add_weights(add)


def add_origin(add: Add) -> None:
    """--revision and --tokenizer."""
    add(
        "--revision",
        type=str,
        metavar="NAME",
        help="branch, tag or commit of a hub id (default: its main branch)",
    )
    add(
        "--tokenizer",
        type=str,
        metavar="NAME",
        help="of another model, named as this one is (default: its own)",
    )


def add_weights(add: Add) -> None:
    """--weights."""
    add(
        "--weights",
        type=str | None,
        metavar="TYPE",
        help="int8 or int4, of the layers' linear maps (default: --dtype, or as they were saved)",
    )


def add_kv_dtype(add: Add) -> None:
    """--kv-dtype."""
    add(
        "--kv-dtype",
        type=str | None,
        metavar="TYPE",
        help="float32, bfloat16, int8 or int4, of keys and values (default: that of the weights)",
    )


def add_policy(add: Add, default: str | None, told: str, field: str) -> None:
    """--policy, --policy.FIELD and --config.

    Args:
      add: of the parser.
      default: the policy's name; None where the command decides.
      told: what --policy takes.
      field: whose setting --policy.FIELD is.
    """
    add("--policy", type=str | None, default=default, metavar="NAME", help=told)
    add(
        "--policy.FIELD",
        dest="policy_field",
        metavar="VALUE",
        type=str | None,
        help=f"a setting of {field}, such as --policy.window 1020",
    )
    add_config(add)


def add_config(add: Add) -> None:
    """--config."""
    add(
        "--config",
        metavar="FILE.yaml",
        type=str | None,
        help="the same names as keys; the command line wins",
    )


def add_prefill_chunk(add: Add, default: str) -> None:
    """--prefill-chunk."""
    add(
        "--prefill-chunk",
        type=int | None,
        metavar="N",
        help=f"tokens of a prompt per call (default: {default})",
    )


def add_max_length(add: Add, default: str) -> None:
    """--max-length."""
    add(
        "--max-length",
        type=int | None,
        metavar="N",
        help=f"tokens a full cache can hold (default: {default})",
    )


def add_plot(add: Add, drawn: str) -> None:
    """--plot."""
    add(
        "--plot",
        type=str | None,
        metavar="FILE.png",
        help=f"draw {drawn} to a .png, .pdf or .svg file",
    )


def check_dtype(flag: str, value: str | None, allowed: Sequence[str] = DTYPES) -> None:
    """Refuses a type that weights, or keys and values, cannot have; None was not given.

    Raises:
      InputError: names the flag and what is allowed.
    """
    if value not in (None, *allowed):
        *most, last = allowed
        raise InputError(f"{flag} is {value!r}; it must be {', '.join(most)} or {last}")
