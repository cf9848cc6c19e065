# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.key_rounding`: what scores lose where keys are int8 and int4, and by how."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.checkpoints.sources import load
from jaxkv.cli.arguments import make_parser, parse, read_text
from jaxkv.cli.edge import as_process, one_line_errors
from jaxkv.core.files import check_target, write_json
from jaxkv.core.machine import where
from jaxkv.models.decoder import embed, run_block
from pallas_kernels import prefill_attention
from pallas_kernels.int4 import hadamard, part_size

COMMAND = "tools.key_rounding"
_DESCRIPTION = """Errors of scores, q k / sqrt(H), when keys are rounded: root mean square over the
standard deviation of the scores of each layer and head, mean over layers and heads.

  token    a scale a token, of keys as they lie, rotated: what int8 caches hold
  before   a scale a token, of keys before they are rotated
  channel  a scale a dimension, over 32 neighbouring tokens, before they are rotated: what KIVI and
           KVQuant build on; a token cannot be dropped or moved without its neighbours
  spread   as token, of their Hadamard transforms, of which queries get the same: what int4 ones do
  centred  as token, less the mean of the head's keys, which moves all scores of a query alike
"""
GROUP = 32
LEVELS = {"int8": 127, "int4": 7}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors(COMMAND):
        given, _ = parse(_parser(), list(sys.argv[1:] if arguments is None else arguments))
        if given.out:
            check_target("--out", given.out)
        model = load(given.model)
        ids = model.tokenizer.encode(read_text("--text-file", given.text_file)[: 20 * given.tokens])
        found = errors(model, ids[: given.tokens])
        report = {"model": given.model, "tokens": given.tokens, **where(), "rows": found}
        print(json.dumps(report))
        if given.out:
            write_json(given.out, report)


def errors(model: Any, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Of each form and each way to round."""
    tokens = jnp.asarray([list(ids)], jnp.int32)
    config, places = model.config, jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    x = embed(model.params, config, tokens)
    sums: dict[tuple[str, str], list[float]] = {}
    size = part_size(config.head_dim)
    for index, layer in enumerate(model.params["layers"]):
        rope = config.scoring(index)

        def attend(q, k, v, y, rope=rope):
            turned, keys = rope(q, places), rope(k, places)
            out, _ = prefill_attention(
                turned, keys.swapaxes(1, 2), v.swapaxes(1, 2), places, places[:, None],
                scale=config.head_dim**-0.5,
            )  # fmt: skip
            return (turned, k, keys), out

        x, (q, k, turned) = run_block(layer, config, x, attend)
        exact, middle = _scores(q, turned), turned.mean(axis=1, keepdims=True)
        for form, most in LEVELS.items():
            ways = {
                "token": _rounded(turned, most, (3,)),
                "before": rope(_rounded(k, most, (3,)), places),
                "channel": rope(_by_channel(k, most), places),
                "spread": hadamard(_rounded(hadamard(turned), most, (3,))) / size,
                "centred": _rounded(turned - middle, most, (3,)) + middle,
            }
            for way, keys in ways.items():
                off = np.asarray(_scores(q, keys) - exact)
                share = np.sqrt((off**2).mean(axis=(2, 3))) / np.asarray(exact).std(axis=(2, 3))
                sums.setdefault((form, way), []).append(float(share.mean()))
    return [
        {"form": form, "scale": way, "error": float(np.mean(x))} for (form, way), x in sums.items()
    ]


def _rounded(keys: jax.Array, most: int, axes: tuple[int, ...]) -> jax.Array:
    scale = jnp.max(jnp.abs(keys), axis=axes, keepdims=True) / most
    return jnp.round(keys / scale) * scale


def _by_channel(keys: jax.Array, most: int) -> jax.Array:
    b, t, heads, h = keys.shape
    return _rounded(keys.reshape(b, t // GROUP, GROUP, heads, h), most, (2,)).reshape(keys.shape)


def _scores(q: jax.Array, keys: jax.Array) -> jax.Array:
    """[1, N, 64, T]: the last queries over all keys."""
    group = q.shape[2] // keys.shape[2]
    keys = jnp.repeat(keys, group, axis=2)
    return jnp.einsum("btnh,bsnh->bnts", q[:, -64:], keys) * q.shape[3] ** -0.5


def _parser() -> Any:
    parser = make_parser(COMMAND, _DESCRIPTION)
    add = parser.add_argument
    add("--model", type=str, default="smollm2-135m-instruct", metavar="NAME", help="as for decode")
    add("--text-file", type=str, required=True, metavar="FILE", help="what is read")
    add("--tokens", type=int, default=1024, metavar="N", help="of it, a multiple of 32")
    add("--out", type=str | None, metavar="FILE.json", help="also write the report there")
    return parser


if __name__ == "__main__":
    as_process(main)
