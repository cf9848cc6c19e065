# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""jaxkv as a model of EleutherAI's lm-evaluation-harness, under any policy.

    pip install lm_eval
    python -m jaxkv.integrations.lm_eval run --model jaxkv --tasks arc_easy \\
        --model_args model=smollm2-135m-instruct,policy=streaming,sinks=4,window=252 --batch_size 8

is `lm_eval` itself, with all of its flags, which knows `--model jaxkv` besides: the harness has no
way to find models of other packages. In Python, import this module before
`lm_eval.simple_evaluate`.
"""

from __future__ import annotations

from typing import Any

import lm_eval.models  # pyright: ignore[reportMissingImports]  # noqa: F401  the registry's own first
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
    get_rolling_token_windows,
    make_disjoint_window,
)

from jaxkv.checkpoints.sources import load
from jaxkv.cli.edge import one_line_errors
from jaxkv.core.errors import InputError
from jaxkv.core.progress import bars
from jaxkv.generate.api import answer
from jaxkv.generate.likelihood import continuations
from jaxkv.generate.sampling import make_sampler
from jaxkv.generate.session import Session, Settings
from jaxkv.policies.registry import describe, make_policy

NEW_TOKENS = 256  # where a task does not say, as in the harness's own models


@register_model("jaxkv")
class JaxKV(TemplateLM):
    """A model of jaxkv.

    Log-likelihoods are those of decoding: the context is a prompt, after which a policy chooses,
    and the continuation is taken in token by token.

    Args:
      model: an alias, hub id, folder, `.gguf` file or checkpoint: see `jaxkv.load`.
      policy: its name, as for `python -m jaxkv.decode`.
      dtype: "float32" or "bfloat16".
      weights: "int8" or "int4", of the layers' linear maps: see `jaxkv.load`.
      kv_dtype: of keys and values; None is `dtype`.
      batch_size: rows at once.
      max_length: longer contexts lose their beginning, as in the harness's own models; None is what
        the model was trained for.
      device: of no use here; jax takes what it finds.
      max_batch_size: as `device`.
      **settings: the policy's, such as `sinks=4`.
    """

    def __init__(
        self,
        model: str = "smollm2-135m-instruct",
        policy: str = "full",
        dtype: str = "float32",
        weights: str | None = None,
        kv_dtype: str | None = None,
        batch_size: int | str = 1,
        max_length: int | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ):
        del device, max_batch_size
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise InputError(f"batch_size is {batch_size!r}; it must be a number above 0")
        self.batch_size = int(batch_size)
        self._policy = make_policy(policy, settings)
        self._model = load(model, dtype=dtype, weights=weights)
        self._kv_dtype = kv_dtype
        self.max_length = max_length or self._model.config.max_positions
        self.tokenizer = self._model.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The first id that ends an answer."""
        if not self.tokenizer.eos_ids:
            raise InputError("the model's tokenizer names no end-of-sequence token")
        return self.tokenizer.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: as in the harness's own models."""
        named = self.tokenizer.special_tokens.get("bos_token")
        ids = self.tokenizer.bos_ids or (
            self.tokenizer.encode(named, special=True) if named else ()
        )
        return ids[0] if ids else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return self._model.fingerprint

    def get_model_info(self) -> dict[str, Any]:
        """What is written beside the results."""
        return {
            "model": self._model.name,
            "fingerprint": self._model.fingerprint,
            "policy": describe(self._policy),
        }

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model was trained to see it."""
        return self.tokenizer.render(chat_history, add_generation_prompt)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; what a model expects before a text comes first, unless it is there already."""
        del kwargs
        ids = self.tokenizer.encode(string, special=True)
        bos = list(self.tokenizer.bos_ids)
        if add_special_tokens is False or not bos or ids[: len(bos)] == bos:
            return ids
        return bos + ids

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of the model's length with as much context as there is."""
        pairs, owners = [], []
        for index, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in windows:
                pairs.append(make_disjoint_window(window))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._score(pairs, disable_tqdm), strict=True):
            totals[owner] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Answers, each up to its stop strings; rows of one batch share their settings."""
        texts: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        with bars() as progress:
            for indices in groups.values():
                for begin in range(0, len(indices), self.batch_size):
                    part = indices[begin : begin + self.batch_size]
                    texts |= zip(part, self._answers([requests[i] for i in part]), strict=True)
                    if not disable_tqdm:
                        progress("answering", len(texts), len(requests))
        for index, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[index])
        return [texts[index] for index in range(len(requests))]

    def _answers(self, requests: list[Any]) -> list[str]:
        wanted = dict(requests[0].args[1])
        until = wanted.get("until") or []
        draws = wanted.get("do_sample", wanted.get("temperature", 0) > 0)
        new_tokens = int(wanted.get("max_gen_toks", wanted.get("max_new_tokens", NEW_TOKENS)))
        sampler = make_sampler(
            float(wanted.get("temperature", 1.0)) if draws else 0.0,
            wanted.get("top_k"),
            wanted.get("top_p"),
        )
        settings = Settings(
            policy=self._policy,
            sampler=sampler,
            max_new_tokens=new_tokens,
            stop=tuple([until] if isinstance(until, str) else until),
            kv_dtype=self._kv_dtype,
        )
        room = max(self.max_length - new_tokens, 1)
        prompts = [self.tok_encode(request.args[0])[-room:] for request in requests]
        prompts += [prompts[-1]] * (self.batch_size - len(prompts))  # one program for all batches
        session = Session.begin(self._model, settings, len(prompts), max(map(len, prompts)))
        session.feed(prompts)
        return answer(session, [len(row) for row in prompts]).texts[: len(requests)]

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        del kwargs
        results = self._score([(c, t) for _, c, t in requests], disable_tqdm)
        for (text, _, _), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", text, result)
        return results

    def _score(
        self, pairs: list[tuple[list[int], list[int]]], silent: bool
    ) -> list[tuple[float, bool]]:
        """Pairs of contexts and continuations, cut from the left to what the model takes."""
        cut = [(c[-max(self.max_length - len(t), 1) :], t) for c, t in pairs]
        with bars() as progress:
            found = continuations(
                self._model, self._policy, cut, self.batch_size,
                None if silent else lambda done, total: progress("scoring", done, total),
                self._kv_dtype,
            )  # fmt: skip
        return [(one.log_likelihood, one.greedy) for one in found]


def main() -> None:
    """`lm_eval`, which knows `--model jaxkv` besides."""
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    with one_line_errors("jaxkv.integrations.lm_eval"):
        cli_evaluate()


if __name__ == "__main__":
    main()
