# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' own `generate` on torch, on the same weights: the comparison for one machine.

torch is no dependency; this module is imported when `--beside transformers` asks for it.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np

from jaxkv.checkpoints.export import config_to_hf, tensors_to_hf
from jaxkv.checkpoints.model import Model
from jaxkv.core.errors import InputError

QUIET = 0.5  # seconds after a run; OpenMP's threads spin for up to 0.2 s


class Peer:
    """The same model in transformers, with these parameters."""

    def __init__(self, model: Model):
        try:
            import torch  # pyright: ignore[reportMissingImports]
            import transformers
        except ImportError as error:
            raise InputError(
                f"--beside transformers needs torch ({error}): pip install torch==2.13.0 "
                "'jaxkv[transformers]'"
            ) from None
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._torch = torch
        fields = config_to_hf(model.config)
        config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
        self._model: Any = transformers.AutoModelForCausalLM.from_config(config)
        state = {
            name: torch.from_numpy(np.array(value, np.float32))
            for name, value in tensors_to_hf(model).items()
        }
        self._model.load_state_dict(state, strict=False)
        self._model.tie_weights()
        self._model.eval()
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.prefills: dict[int, list[float]] = {}
        self.steps: dict[int, list[float]] = {}

    def run(self, prompt: list[int], new_tokens: int) -> None:
        """One `generate`; notes the seconds of the prompt, and of each token after it."""
        torch, marks = self._torch, [time.perf_counter()]

        def mark(ids: Any, scores: Any, **kwargs: Any) -> Any:
            del scores, kwargs
            marks.append(time.perf_counter())
            return torch.zeros(ids.shape[0], dtype=torch.bool)

        ids = torch.tensor([prompt])
        with torch.no_grad():
            self._model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                eos_token_id=None, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                stopping_criteria=[mark],
            )  # fmt: skip
        # torch's threads wait for more work on a busy core; whoever is timed next needs it.
        time.sleep(QUIET)
        gaps = np.diff(marks)
        self.prefills.setdefault(len(prompt), []).append(float(gaps[0]))
        self.steps.setdefault(len(prompt), []).extend(float(gap) for gap in gaps[1:])

    def row(self, context: int) -> dict[str, float]:
        """Medians at this length of context."""
        row = {"prefill_s": statistics.median(self.prefills[context])}
        if self.steps[context]:
            row["step_ms"] = statistics.median(self.steps[context]) * 1e3
        return row
